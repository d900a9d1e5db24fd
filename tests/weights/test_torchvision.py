"""State dicts of torchvision and timm: names, shapes, inferred models."""

import json
import re

import golden_files
import jax
import narrow_models
import numpy as np
import pytest

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.weights import (
  external,
  load_report,
  state_dicts,
  tensor_files,
  torchvision,
)
from maskrcnn_jax.weights.load_report import LoadOptions

# Further tensors of a ResNet classifier.
CLASSIFIER = {
  'fc.weight': np.zeros((7, 256), np.float32),
  'fc.bias': np.zeros(7, np.float32),
}
MODELS = {
  'coco:torchvision': {},
  'coco:torchvision_v2': {
    'norm': 'batch',
    'frozen_stages': 0,
    **narrow_models.SECOND,
  },
}
# Today's names -> those of 2019.
OLD = (
  (r'^(backbone\.fpn\.\w+\.\d)\.0\.', r'\1.'),
  (r'^rpn\.head\.conv\.0\.0\.', 'rpn.head.conv.'),
  (r'^roi_heads\.mask_head\.0\.0\.', 'roi_heads.mask_head.mask_fcn1.'),
)


def write(folder, tensors, name='weights.pth'):
  tensor_files.write(folder / name, tensors)
  return folder / name


def backbone_tensors(model, seed=0):
  """The backbone alone, under the names of a ResNet classifier."""
  tensors = torchvision.state_dict(narrow_models.random_variables(model, seed))
  prefix = 'backbone.body.'
  found = {
    name.removeprefix(prefix): x
    for name, x in tensors.items()
    if name.startswith(prefix)
  }
  counters = {
    name.replace('running_mean', 'num_batches_tracked'): np.zeros((), np.int64)
    for name in found
    if name.endswith('running_mean')
  }
  return found | counters | CLASSIFIER


def assert_loaded(loaded, expected):
  actual, expected = map(load_report.flatten, (loaded, expected))
  assert actual.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(actual[name], array, err_msg=name)


def error(path, variables):
  with pytest.raises(UserError) as raised:
    external.load(path, variables)
  assert raised.value.path == str(path)
  return raised.value


@pytest.mark.parametrize('config', MODELS)
def test_a_model_is_the_same_after_a_round_trip(tmp_path, config):
  model = narrow_models.make_model(**MODELS[config])
  variables = narrow_models.random_variables(model)
  tensors = torchvision.state_dict(variables)
  path = write(tmp_path, tensors)
  loaded, report = external.load(path, narrow_models.shapes(model))
  assert_loaded(loaded, variables)
  assert report.kind == external.kind(path) == 'model'
  assert not (report.unexpected or report.missing or report.folded)
  assert {*report.loaded.values(), *report.training_state} == tensors.keys()
  assert report.training_state == [
    name for name, array in tensors.items() if array.dtype == np.int64
  ]


@pytest.mark.parametrize(
  'config, count, counters', [('', 307, 0), ('_v2', 432, 69)]
)
def test_tensor_counts_of_the_published_models(config, count, counters):
  """PyTorch counts 44507633 and 46359409 parameters."""
  section = config_lib.load_config(f'coco:torchvision{config}').model
  shapes = narrow_models.shapes(MaskRCNN.from_config(section))
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
  tensors = torchvision.state_dict(zeros)
  assert len(tensors) == count
  names = [x for x in tensors if x.endswith('num_batches_tracked')]
  assert len(names) == counters
  size = sum(x.size for name, x in tensors.items() if name not in {*names})
  if config:
    # PyTorch does not count means and variances.
    size -= sum(x.size for k, x in tensors.items() if '.running_' in k)
  assert size == (46_359_409 if config else 44_507_633)


def test_a_sharper_mask_head_has_one_new_layer(tmp_path):
  model = narrow_models.make_model()
  path = write(
    tmp_path, torchvision.state_dict(narrow_models.random_variables(model))
  )
  sharper = model.clone(mask_upsample=4)
  new = {f'mask_head/deconv2/{leaf}' for leaf in ('kernel', 'bias')}
  assert {*error(path, narrow_models.shapes(sharper)).item} == new
  initial = narrow_models.random_variables(sharper, seed=1)
  loaded, report = external.load(path, initial, LoadOptions(strict=False))
  assert {*report.mismatched} == new
  for name in ('kernel', 'bias'):
    np.testing.assert_array_equal(
      loaded['params']['mask_head']['deconv2'][name],
      initial['params']['mask_head']['deconv2'][name],
    )


def test_layouts_by_hand(tmp_path):
  """One entry of each kind of layer, by its index in both layouts."""
  model = narrow_models.make_model()
  tensors = torchvision.state_dict(narrow_models.random_variables(model))
  loaded, _ = external.load(
    write(tmp_path, tensors), narrow_models.shapes(model)
  )
  params = loaded['params']
  conv = tensors['backbone.body.layer2.0.conv2.weight']
  ours = params['backbone']['stage3']['block1']['conv2']['kernel']
  assert ours[0, 2, 3, 5] == conv[5, 3, 0, 2]
  deconv = tensors['roi_heads.mask_predictor.conv5_mask.weight']
  ours = params['mask_head']['deconv']['kernel']
  assert ours[0, 1, 3, 5] == deconv[3, 5, 0, 1]
  # 16 channels of 7 x 7: channel, row, column in PyTorch.
  dense = tensors['roi_heads.box_head.fc6.weight']
  ours = params['box_head']['fc6']['kernel']
  assert ours[(2 * 7 + 5) * 16 + 11, 9] == dense[9, (11 * 7 + 2) * 7 + 5]
  # Deltas of class 3: dx, dy, dw, dh in torchvision.
  deltas = tensors['roi_heads.box_predictor.bbox_pred.weight']
  ours = params['box_head']['box_deltas']['kernel']
  for theirs, mine in enumerate((1, 0, 3, 2)):
    np.testing.assert_array_equal(ours[:, 12 + mine], deltas[12 + theirs])
  deltas = tensors['rpn.head.bbox_pred.bias']
  ours = params['rpn_head']['box_deltas']['bias']
  np.testing.assert_array_equal(ours[[5, 4, 7, 6]], deltas[4:8])


def test_names_of_2019_imply_a_norm_without_epsilon(tmp_path):
  model = narrow_models.make_model()
  variables = narrow_models.random_variables(model)
  old = {}
  for name, array in torchvision.state_dict(variables).items():
    for pattern, theirs in OLD:
      name = re.sub(pattern, theirs, name)
    old[name] = array
  assert 'roi_heads.mask_head.mask_fcn1.bias' in old
  assert 'backbone.fpn.inner_blocks.3.weight' in old
  path = write(tmp_path, old)
  loaded, report = external.load(path, narrow_models.shapes(model))
  assert_loaded(loaded, variables)
  assert len(report.loaded) == len(old)
  inferred = external.infer_model(path)
  assert inferred.config == 'coco:torchvision'
  assert 'model.backbone.norm_epsilon=0.0' in inferred.overrides


@pytest.mark.parametrize(
  'config, depth', [('coco:torchvision', 101), ('coco:torchvision_v2', 50)]
)
def test_the_model_is_inferred_from_a_file(tmp_path, config, depth):
  model = narrow_models.make_model(depth=depth, **MODELS[config])
  tensors = torchvision.state_dict(narrow_models.random_variables(model))
  inferred = external.infer_model(write(tmp_path, tensors))
  assert inferred.config == config
  assert inferred.classes == {}
  section = config_lib.load_config(inferred.config, inferred.overrides).model
  made = MaskRCNN.from_config(section)
  assert made.num_classes == 4
  assert made.backbone.depth == depth
  assert made.head_norm.kind == model.head_norm.kind
  assert narrow_models.shapes(made) == narrow_models.shapes(model)


@pytest.mark.parametrize('depth, count', [(50, 265), (101, 520)])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_resnet(tmp_path, depth, count, suffix):
  model = narrow_models.make_model(depth=depth)
  tensors = backbone_tensors(model)
  path = write(tmp_path, tensors, f'resnet{suffix}')
  variables = narrow_models.random_variables(model, seed=1)
  loaded, report = external.load(path, variables)
  assert report.kind == external.kind(path) == 'backbone'
  assert len(report.loaded) == count
  assert report.unexpected == ['fc.bias', 'fc.weight']
  assert len(report.training_state) == count // 5
  parts = {name.partition('/')[0] for name in report.missing}
  assert parts == {'fpn', 'rpn_head', 'box_head', 'mask_head'}
  expected = narrow_models.random_variables(model)
  for collection, tree in variables.items():
    expected[collection] = tree | {'backbone': expected[collection]['backbone']}
  assert_loaded(loaded, expected)
  inferred = external.infer_model(path)
  assert inferred.config == 'coco:torchvision'
  assert f'model.backbone.depth={depth}' in inferred.overrides


def test_a_resnet_with_another_stem_is_refused(tmp_path):
  """timm's resnet50d: three convolutions in the stem, pooled shortcuts."""
  model = narrow_models.make_model()
  tensors = backbone_tensors(model)
  tensors['conv1.0.weight'] = tensors.pop('conv1.weight')
  found = error(write(tmp_path, tensors), narrow_models.shapes(model))
  assert found.item == min(tensors)
  tensors['conv1.weight'] = tensors['conv1.0.weight']
  tensors['layer1.0.downsample.2.weight'] = np.zeros(1, np.float32)
  found = error(write(tmp_path, tensors, 'b.pth'), narrow_models.shapes(model))
  assert {*found.item} == {'conv1.0.weight', 'layer1.0.downsample.2.weight'}


def test_variables_without_a_name_in_torchvision():
  model = narrow_models.make_model(box_dense=2)
  variables = narrow_models.random_variables(model)
  variables['params']['keypoint_head'] = {'conv': {'kernel': np.zeros(1)}}
  with pytest.raises(UserError) as raised:
    torchvision.state_dict(variables)
  assert raised.value.item == 'keypoint_head/conv/kernel'


def recorded(pattern):
  found = golden_files.files(pattern, 'torchvision')
  return [pytest.param(json.loads(x.read_text()), id=x.stem) for x in found]


@pytest.mark.parametrize('spec', recorded('weights_spec*.json'))
def test_every_recorded_tensor_is_accounted_for(spec):
  arrays = {
    x['name']: np.broadcast_to(np.float32(0), x['shape'])
    for x in spec['tensors']
  }
  file = tensor_files.Tensors('recorded', arrays)
  form = torchvision.find_format(arrays)
  inferred = state_dicts.infer_model(file, form)
  config = config_lib.load_config(inferred.config, inferred.overrides)
  model = MaskRCNN.from_config(config.model)
  shapes = state_dicts.FileShapes(file, form)
  ours = load_report.flatten(narrow_models.shapes(model))
  assert {path: shapes.shape(path) for path in ours} == {
    path: x.shape for path, x in ours.items()
  }
  assert {form.name(path) for path in ours} == arrays.keys()
  assert sum(x.size for x in ours.values()) == spec['n_values']


@pytest.mark.parametrize('legacy', recorded('legacy_names*.json'))
def test_recorded_names_of_2019(legacy):
  model = narrow_models.make_model(mask_convs=4)
  variables = narrow_models.shapes(model)
  now = torchvision.state_dict(
    jax.tree.map(lambda x: np.zeros(x.shape, np.float32), variables)
  )
  old_of = {new: old for old, new in legacy['map'].items()}
  assert old_of.keys() <= now.keys()
  form = torchvision.find_format([old_of.get(name, name) for name in now])
  current = torchvision.find_format(now)
  for path in load_report.flatten(variables):
    name = current.name(path)
    assert form.name(path) == old_of.get(name, name)
