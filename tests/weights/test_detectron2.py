"""State dicts of Detectron2: names, shapes, order of classes and deltas."""

import pickle
import re

import jax
import narrow_models
import numpy as np
import pytest

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.weights import coco_classes, detectron2, external, load_report

NUM_CLASSES = 4
# Layers outside the backbone: ours -> Detectron2's.
HEADS = {
  **{f'fpn/lateral{i}': f'backbone.fpn_lateral{i}' for i in range(2, 6)},
  **{f'fpn/output{i}': f'backbone.fpn_output{i}' for i in range(2, 6)},
  'rpn_head/conv': 'proposal_generator.rpn_head.conv',
  'rpn_head/objectness': 'proposal_generator.rpn_head.objectness_logits',
  'rpn_head/box_deltas': 'proposal_generator.rpn_head.anchor_deltas',
  'box_head/fc6': 'roi_heads.box_head.fc1',
  'box_head/fc7': 'roi_heads.box_head.fc2',
  'box_head/class_logits': 'roi_heads.box_predictor.cls_score',
  'box_head/box_deltas': 'roi_heads.box_predictor.bbox_pred',
  'mask_head/conv1': 'roi_heads.mask_head.mask_fcn1',
  'mask_head/deconv': 'roi_heads.mask_head.deconv',
  'mask_head/mask_logits': 'roi_heads.mask_head.predictor',
}
# The same of the LSJ models: two RPN convolutions, a box head of four
# convolutions and a dense layer, and norm.
LSJ_HEADS = {
  **HEADS,
  **{f'{x}_norm': f'{y}.norm' for x, y in HEADS.items() if 'fpn/' in x},
  'rpn_head/conv': 'proposal_generator.rpn_head.conv.conv0',
  'rpn_head/conv2': 'proposal_generator.rpn_head.conv.conv1',
  **{f'box_head/conv{i}': f'roi_heads.box_head.conv{i}' for i in range(1, 5)},
  **{
    f'box_head/norm{i}': f'roi_heads.box_head.conv{i}.norm' for i in range(1, 5)
  },
  'mask_head/norm1': 'roi_heads.mask_head.mask_fcn1.norm',
}
del LSJ_HEADS['box_head/fc7']
LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'variance': 'running_var',
}


def backbone_name(path):
  """The name in Detectron2 of a variable of ours."""
  path = path.removeprefix('backbone/')
  for pattern, theirs in (
    (r'stem/conv/', 'stem.conv1.'),
    (r'stem/norm/', 'stem.conv1.norm.'),
    (r'stage(\d)/block(\d+)/', lambda m: f'res{m[1]}.{int(m[2]) - 1}.'),
    (r'shortcut_conv/', 'shortcut.'),
    (r'shortcut_norm/', 'shortcut.norm.'),
    (r'conv(\d)/', r'conv\1.'),
    (r'norm(\d)/', r'conv\1.norm.'),
  ):
    path = re.sub(pattern, theirs, path)
  scope, _, leaf = path.rpartition('.')
  return f'{scope}.{LEAVES[leaf]}'


def caffe2_name(path, norm='bn'):
  """The name in Caffe2 of a variable of ours."""
  scope, _, leaf = path.removeprefix('backbone/').rpartition('/')
  for pattern, theirs in (
    (r'stem/conv', 'conv1'),
    (r'stem/norm', 'res_conv1_bn' if norm == 'bn' else 'conv1_gn'),
    (r'stage(\d)/block(\d+)/', lambda m: f'res{m[1]}_{int(m[2]) - 1}_branch'),
    (r'shortcut_conv', '1'),
    (r'shortcut_norm', f'1_{norm}'),
    (r'branchconv(\d)', lambda m: f'branch2{"abc"[int(m[1]) - 1]}'),
    (r'branchnorm(\d)', lambda m: f'branch2{"abc"[int(m[1]) - 1]}_{norm}'),
  ):
    scope = re.sub(pattern, theirs, scope)
  return f'{scope}_{ {"kernel": "w", "scale": "s", "bias": "b"}[leaf] }'


def shape_there(path, shape):
  """Shape in PyTorch, with Detectron2's number of classes."""
  if path.startswith(('box_head/box_deltas', 'mask_head/mask_logits')):
    shape = (*shape[:-1], shape[-1] // NUM_CLASSES * (NUM_CLASSES - 1))
  if path == 'mask_head/deconv/kernel':
    return shape[2], shape[3], 2, 2
  return shape[::-1] if len(shape) < 4 else (shape[3], shape[2], *shape[:2])


def make_tensors(variables, name):
  """Random tensors of the variables that have a name."""
  rng = np.random.default_rng(0)
  tensors = {}
  for path, x in load_report.flatten(variables).items():
    theirs = name(path)
    if theirs:
      shape = shape_there(path, x.shape)
      tensors[theirs] = rng.normal(size=shape).astype(np.float32)
  return tensors


def backbone_tensors(variables, name):
  """Random tensors of the backbone; `name` gives their names."""
  return make_tensors(
    variables, lambda x: name(x) if x.startswith('backbone/') else None
  )


def model_tensors(variables, heads):
  def name(path):
    if path.startswith('backbone/'):
      return f'backbone.bottom_up.{backbone_name(path)}'
    scope, _, leaf = path.rpartition('/')
    return f'{heads[scope]}.{LEAVES[leaf]}'

  return make_tensors(variables, name)


def write(folder, content, name='model_final.pkl'):
  (folder / name).write_bytes(pickle.dumps(content))
  return folder / name


# Further entries of files of the model zoo.
ZOO = {
  f'proposal_generator.anchor_generator.cell_anchors.{i}': np.zeros((3, 4))
  for i in range(5)
} | {'pixel_mean': np.zeros((3, 1, 1)), 'pixel_std': np.zeros((3, 1, 1))}


@pytest.mark.parametrize('depth, count', [(50, 307), (101, 562)])
def test_a_model_of_the_zoo(tmp_path, depth, count):
  model = narrow_models.make_model(depth=depth, mask_convs=4)
  heads = HEADS | {
    f'mask_head/conv{i}': f'roi_heads.mask_head.mask_fcn{i}'
    for i in range(1, 5)
  }
  shapes = narrow_models.shapes(model)
  tensors = model_tensors(shapes, heads)
  path = write(
    tmp_path, {'model': tensors | ZOO, '__author__': 'Detectron2 Model Zoo'}
  )
  loaded, report = external.load(path, shapes)
  assert report.kind == external.kind(path) == 'model'
  assert len(report.loaded) == len(tensors) == count
  assert {*report.loaded.values()} == tensors.keys()
  assert report.training_state == [*sorted(ZOO), '__author__']
  assert not (report.unexpected or report.missing or report.folded)
  params = loaded['params']
  conv = tensors['backbone.bottom_up.res4.5.conv2.weight']
  ours = params['backbone']['stage4']['block6']['conv2']['kernel']
  np.testing.assert_array_equal(ours, conv.transpose(2, 3, 1, 0))
  norm = loaded['batch_stats']['backbone']['stem']['norm']
  name = 'backbone.bottom_up.stem.conv1.norm.running_var'
  np.testing.assert_array_equal(norm['variance'], tensors[name])


def test_order_of_deltas_and_classes(tmp_path):
  shapes = narrow_models.shapes(narrow_models.make_model())
  tensors = model_tensors(shapes, HEADS)
  # dx, dy, dw, dh of each of three anchors, and of each of three classes.
  deltas = np.arange(12, dtype=np.float32)
  name = 'roi_heads.box_predictor.cls_score'
  tensors |= {
    'proposal_generator.rpn_head.anchor_deltas.bias': deltas,
    'roi_heads.box_predictor.bbox_pred.bias': deltas,
    f'{name}.bias': np.float32([10, 20, 30, 99]),
    'roi_heads.mask_head.predictor.bias': np.float32([1, 2, 3]),
  }
  loaded, _ = external.load(write(tmp_path, tensors), shapes)
  arrays = load_report.flatten(loaded)
  swapped = [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]
  rows = tensors[f'{name}.weight'][[3, 0, 1, 2]]
  for path, expected in {
    'rpn_head/box_deltas/bias': swapped,
    # Those of the background are zeros.
    'box_head/box_deltas/bias': [0, 0, 0, 0, *swapped],
    'box_head/class_logits/bias': [99, 10, 20, 30],
    'box_head/class_logits/kernel': rows.T,
    'mask_head/mask_logits/bias': [0, 1, 2, 3],
  }.items():
    np.testing.assert_array_equal(arrays[path], expected, err_msg=path)


def test_coco_classes_have_their_own_ids():
  """The toothbrush is class 79 in Detectron2 and 90 here; 12 is unused."""
  bias = np.arange(81, dtype=np.float32)
  ours = detectron2.order_classes('box_head/class_logits/bias', bias, (91,))
  assert ours[0] == 80
  assert (ours[1], ours[11], ours[13], ours[90]) == (0, 10, 11, 79)
  unused = {*range(91)} - {0, *coco_classes.NAMES}
  assert sorted(unused) == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
  assert all(ours[i] == -1e4 for i in unused)
  scores = np.asarray(jax.nn.softmax(ours - 200.0))
  assert all(scores[i] == 0.0 for i in unused)
  deltas = np.arange(80 * 4, dtype=np.float32)
  ours = detectron2.order_classes(
    'box_head/box_deltas/bias', deltas, (91 * 4,)
  ).reshape(91, 4)
  np.testing.assert_array_equal(ours[13], [44, 45, 46, 47])
  assert not ours[[0, 12]].any()
  kernel = np.arange(80 * 2, dtype=np.float32).reshape(80, 2, 1, 1)
  ours = detectron2.order_classes(
    'mask_head/mask_logits/kernel', kernel, (1, 1, 2, 91)
  )
  np.testing.assert_array_equal(ours[90, :, 0, 0], [158, 159])
  assert not ours[[0, 12]].any()


def test_another_number_of_classes(tmp_path):
  tensors = model_tensors(
    narrow_models.shapes(narrow_models.make_model()), HEADS
  )
  other = narrow_models.shapes(narrow_models.make_model(num_classes=9))
  with pytest.raises(UserError) as error:
    external.load(write(tmp_path, tensors), other)
  assert (error.value.given, error.value.wanted) == (9, 4)


def make_inferred(inferred):
  section = config_lib.load_config(inferred.config, inferred.overrides).model
  return MaskRCNN.from_config(section)


@pytest.mark.parametrize('is_lsj', [False, True])
def test_the_model_is_inferred_from_a_file(tmp_path, is_lsj):
  options = narrow_models.SECOND if is_lsj else {}
  norm = {'norm': 'batch', 'frozen_stages': 0} if is_lsj else {}
  model = narrow_models.make_model(**norm, **options)
  tensors = model_tensors(
    narrow_models.shapes(model), LSJ_HEADS if is_lsj else HEADS
  )
  if is_lsj:
    tensors = with_counters(tensors)
  path = write(tmp_path, {'model': tensors})
  inferred = external.infer_model(path)
  made = make_inferred(inferred)
  assert inferred.config == 'coco:detectron2'
  assert made.bgr and made.backbone.stride_in_1x1 and made.roi_align.half_pixel
  assert made.num_classes == NUM_CLASSES
  assert made.head_norm.kind == ('batch' if is_lsj else 'none')
  # The file can be loaded into the inferred model.
  _, report = external.load(path, narrow_models.shapes(made))
  assert not report.unexpected and not report.missing


def with_counters(tensors):
  """Adds the counters of trainable batch norm."""
  return tensors | {
    name.replace('running_mean', 'num_batches_tracked'): np.int64([1])
    for name in tensors
    if name.endswith('running_mean')
  }


def test_stride_of_models_with_synchronized_batch_norm(tmp_path):
  """`Misc/*_syncbn`: one RPN convolution, and the stride in the 3x3."""
  options = narrow_models.SECOND | {'rpn_convs': 1}
  model = narrow_models.make_model(norm='batch', frozen_stages=0, **options)
  heads = LSJ_HEADS | {'rpn_head/conv': HEADS['rpn_head/conv']}
  tensors = model_tensors(narrow_models.shapes(model), heads)
  path = write(tmp_path, {'model': with_counters(tensors)})
  made = make_inferred(external.infer_model(path))
  assert made.backbone.norm == made.head_norm.kind == 'batch'
  assert made.rpn_convs == 1 and not made.backbone.stride_in_1x1
  _, report = external.load(path, narrow_models.shapes(made))
  assert not any('stride_in_1x1' in x for x in report.assumed)


@pytest.mark.parametrize('name', ['model_final.pkl', 'model_final_01ca85.pkl'])
def test_what_names_do_not_tell_is_assumed_or_known_by_the_file(tmp_path, name):
  """The published model of the second name divides by a deviation."""
  model = narrow_models.make_model()
  shapes = narrow_models.shapes(model)
  path = write(tmp_path, {'model': model_tensors(shapes, HEADS)}, name)
  made = make_inferred(external.infer_model(path))
  _, report = external.load(path, shapes)
  if name == 'model_final.pkl':
    assert made.pixel_std == (1 / 255,) * 3
    assert any('stride_in_1x1' in x for x in report.assumed)
    assert any('pixel_std' in x for x in report.assumed)
    assert 'assumed: ' in str(report)
  else:
    assert made.pixel_std == (0.229, 0.224, 0.225)
    assert not report.assumed and 'assumed' not in str(report)


def test_the_channels_are_those_of_the_file(tmp_path):
  model = narrow_models.make_model()
  tensors = model_tensors(narrow_models.shapes(model), HEADS)
  for order in (slice(None), slice(None, None, -1)):
    buffers = {'pixel_mean': [100, 110, 120], 'pixel_std': [51, 52, 53]}
    tensors |= {
      name: np.float32(values)[order].reshape(3, 1, 1)
      for name, values in buffers.items()
    }
    path = write(tmp_path, {'model': tensors})
    made = make_inferred(external.infer_model(path))
    # Blue is first where the smallest mean is.
    assert made.bgr == (order == slice(None))
    np.testing.assert_allclose(
      np.multiply(made.pixel_mean, 255), [120, 110, 100], rtol=1e-5
    )
    np.testing.assert_allclose(
      np.multiply(made.pixel_std, 255), [53, 52, 51], rtol=1e-5
    )


def test_a_coco_model_has_91_classes(tmp_path):
  model = narrow_models.make_model()
  tensors = model_tensors(narrow_models.shapes(model), HEADS)
  sizes = {'cls_score': 81, 'bbox_pred': 320, 'predictor': 80}
  for name, array in tensors.items():
    rows = sizes.get(name.split('.')[-2])
    if rows:
      tensors[name] = np.resize(array, (rows, *array.shape[1:]))
  path = write(tmp_path, {'model': tensors})
  inferred = external.infer_model(path)
  assert make_inferred(inferred).num_classes == 91
  assert inferred.classes == coco_classes.NAMES
  external.load(path, narrow_models.shapes(make_inferred(inferred)))


@pytest.mark.parametrize('depth', [50, 101])
def test_a_backbone_of_caffe2(tmp_path, depth):
  """MSRA's, with norms of a scale and a bias."""
  model = narrow_models.make_model(depth=depth)

  def name(path):
    return None if path.endswith(('/mean', '/variance')) else caffe2_name(path)

  tensors = backbone_tensors(narrow_models.shapes(model), name)
  extra = {x: np.zeros(3, np.float32) for x in ('conv1_b', 'fc1000_w')}
  path = write(
    tmp_path,
    {'blobs': tensors | extra | {'conv1_w_momentum': np.zeros(2)}, 'cfg': ''},
    'R-50.pkl',
  )
  variables = narrow_models.random_variables(model, seed=1)
  loaded, report = external.load(path, variables)
  assert report.kind == 'backbone'
  assert {*report.loaded.values()} == tensors.keys()
  norms = len([x for x in tensors if x.endswith('_s')])
  assert len(report.folded) == 2 * norms
  assert report.unexpected == ['conv1_b', 'fc1000_w']
  assert report.training_state == ['conv1_w_momentum', 'cfg']
  stats = loaded['batch_stats']['backbone']['stage3']['block1']['norm2']
  assert not stats['mean'].any() and np.all(stats['variance'] == 1.0)
  np.testing.assert_array_equal(stats['scale'], tensors['res3_0_branch2b_bn_s'])
  kernel = loaded['params']['backbone']['stem']['conv']['kernel']
  # Both take BGR.
  np.testing.assert_array_equal(
    kernel, tensors['conv1_w'].transpose(2, 3, 1, 0)
  )
  assert f'folded: {2 * norms} ' in str(report)
  made = make_inferred(external.infer_model(path))
  assert made.bgr and made.backbone.stride_in_1x1
  assert made.backbone.depth == depth
  assert made.backbone.norm == 'frozen'


def test_a_backbone_of_caffe2_with_group_norm(tmp_path):
  model = narrow_models.make_model(norm='group', frozen_stages=0)
  shapes = narrow_models.shapes(model)
  tensors = backbone_tensors(shapes, lambda x: caffe2_name(x, 'gn'))
  path = write(tmp_path, tensors, 'R-50-GN.pkl')
  loaded, report = external.load(path, shapes)
  assert {*report.loaded.values()} == tensors.keys()
  assert not report.folded
  scale = loaded['params']['backbone']['stem']['norm']['scale']
  np.testing.assert_array_equal(scale, tensors['conv1_gn_s'])
  made = make_inferred(external.infer_model(path))
  assert made.backbone.norm == 'group' and not made.backbone.stride_in_1x1
  assert made.backbone.group_channels == 1


def test_a_backbone_converted_from_torchvision(tmp_path):
  model = narrow_models.make_model()
  shapes = narrow_models.shapes(model)
  tensors = backbone_tensors(shapes, backbone_name)
  extra = {'stem.fc.weight': np.zeros(1, np.float32)}
  path = write(tmp_path, {'model': tensors | extra}, 'R-50.pkl')
  _, report = external.load(path, shapes)
  assert {*report.loaded.values()} == tensors.keys()
  assert report.unexpected == ['stem.fc.weight']
  made = make_inferred(external.infer_model(path))
  assert not made.bgr and not made.backbone.stride_in_1x1


def test_whole_models_of_caffe2_are_refused(tmp_path):
  names = ('conv1_w', 'res2_0_branch2a_w', 'fpn_inner_res5_2_sum_w')
  blobs = dict.fromkeys(names, np.zeros(1, np.float32))
  path = write(tmp_path, {'blobs': blobs})
  for function in (external.kind, external.infer_model):
    with pytest.raises(UserError) as error:
      function(path)
    assert error.value.path == str(path)
    assert 'Detectron 1' in str(error.value)
