"""Names and shapes of torchvision's and timm's state dicts, all accounted."""

import re

import foreign_models
import jax
import numpy as np
import pytest

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.weights import account as account_lib
from maskrcnn_jax.weights import foreign, tensor_writing, torchvision

# What a ResNet by torchvision or timm also has.
CLASSIFIER = {
  'fc.weight': np.zeros((7, 256), np.float32),
  'fc.bias': np.zeros(7, np.float32),
}
MODELS = {
  'coco:torchvision': {},
  'coco:torchvision_v2': {
    'norm': 'batch',
    'frozen_stages': 0,
    **foreign_models.SECOND,
  },
}
# Today's names -> those of 2019.
OLD = (
  (r'^(backbone\.fpn\.\w+\.\d)\.0\.', r'\1.'),
  (r'^rpn\.head\.conv\.0\.0\.', 'rpn.head.conv.'),
  (r'^roi_heads\.mask_head\.0\.0\.', 'roi_heads.mask_head.mask_fcn1.'),
)


def write(folder, tensors, name='weights.pth'):
  tensor_writing.write(folder / name, tensors)
  return folder / name


def backbone_tensors(model, seed=0):
  """The backbone alone, as a ResNet classifier names it."""
  tensors = torchvision.state_dict(foreign_models.random_variables(model, seed))
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
  actual, expected = map(account_lib.flatten, (loaded, expected))
  assert actual.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(actual[name], array, err_msg=name)


def error(path, variables):
  with pytest.raises(ValueError) as raised:
    foreign.load(path, variables)
  return str(raised.value)


@pytest.mark.parametrize('config', MODELS)
def test_a_whole_model_there_and_back(tmp_path, config):
  model = foreign_models.make_model(**MODELS[config])
  variables = foreign_models.random_variables(model)
  tensors = torchvision.state_dict(variables)
  path = write(tmp_path, tensors)
  loaded, account = foreign.load(path, foreign_models.shapes(model))
  assert_loaded(loaded, variables)
  assert account.kind == foreign.kind(path) == 'model'
  assert not (account.surplus or account.initial or account.implied)
  assert {*account.loaded.values(), *account.bookkeeping} == tensors.keys()
  assert all(x.endswith('.num_batches_tracked') for x in account.bookkeeping)
  again = torchvision.state_dict(loaded)
  assert again.keys() == tensors.keys()
  for name, array in tensors.items():
    assert again[name].dtype == array.dtype
    np.testing.assert_array_equal(again[name], array, err_msg=name)


@pytest.mark.parametrize(
  'config, count, counters', [('', 307, 0), ('_v2', 432, 69)]
)
def test_the_published_models_have_so_many_tensors(config, count, counters):
  """As PyTorch counts them: 44507633 and 46359409 parameters, and norms."""
  section = config_lib.load_config(f'coco:torchvision{config}').model
  shapes = foreign_models.shapes(MaskRCNN.from_config(section))
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
  tensors = torchvision.state_dict(zeros)
  assert len(tensors) == count
  names = [x for x in tensors if x.endswith('num_batches_tracked')]
  assert len(names) == counters
  size = sum(x.size for name, x in tensors.items() if name not in {*names})
  if config:
    # Means and variances are no parameters there.
    size -= sum(x.size for k, x in tensors.items() if '.running_' in k)
  assert size == (46_359_409 if config else 44_507_633)


def test_layouts_by_hand(tmp_path):
  """One entry of each kind of layer, by its place there and here."""
  model = foreign_models.make_model()
  tensors = torchvision.state_dict(foreign_models.random_variables(model))
  loaded, _ = foreign.load(
    write(tmp_path, tensors), foreign_models.shapes(model)
  )
  params = loaded['params']
  conv = tensors['backbone.body.layer2.0.conv2.weight']
  ours = params['backbone']['stage3']['block1']['conv2']['kernel']
  assert ours[0, 2, 3, 5] == conv[5, 3, 0, 2]
  deconv = tensors['roi_heads.mask_predictor.conv5_mask.weight']
  ours = params['mask_head']['deconv']['kernel']
  assert ours[0, 1, 3, 5] == deconv[3, 5, 0, 1]
  # 16 channels of 7 x 7: channel, row, column there.
  dense = tensors['roi_heads.box_head.fc6.weight']
  ours = params['box_head']['fc6']['kernel']
  assert ours[(2 * 7 + 5) * 16 + 11, 9] == dense[9, (11 * 7 + 2) * 7 + 5]
  # Deltas of class 3: dx, dy, dw, dh there.
  deltas = tensors['roi_heads.box_predictor.bbox_pred.weight']
  ours = params['box_head']['box_deltas']['kernel']
  for theirs, mine in enumerate((1, 0, 3, 2)):
    np.testing.assert_array_equal(ours[:, 12 + mine], deltas[12 + theirs])
  deltas = tensors['rpn.head.bbox_pred.bias']
  ours = params['rpn_head']['box_deltas']['bias']
  np.testing.assert_array_equal(ours[[5, 4, 7, 6]], deltas[4:8])


def test_the_names_of_2019_mean_a_norm_without_epsilon(tmp_path):
  model = foreign_models.make_model()
  variables = foreign_models.random_variables(model)
  old = {}
  for name, array in torchvision.state_dict(variables).items():
    for pattern, theirs in OLD:
      name = re.sub(pattern, theirs, name)
    old[name] = array
  assert 'roi_heads.mask_head.mask_fcn1.bias' in old
  assert 'backbone.fpn.inner_blocks.3.weight' in old
  path = write(tmp_path, old)
  loaded, account = foreign.load(path, foreign_models.shapes(model))
  assert_loaded(loaded, variables)
  assert len(account.loaded) == len(old)
  recipe = foreign.recipe(path)
  assert recipe.config == 'coco:torchvision'
  assert 'model.backbone.norm_epsilon=0.0' in recipe.overrides


@pytest.mark.parametrize(
  'config, depth', [('coco:torchvision', 101), ('coco:torchvision_v2', 50)]
)
def test_a_file_tells_its_model(tmp_path, config, depth):
  model = foreign_models.make_model(depth=depth, **MODELS[config])
  tensors = torchvision.state_dict(foreign_models.random_variables(model))
  recipe = foreign.recipe(write(tmp_path, tensors))
  assert recipe.config == config
  assert recipe.classes == {}
  section = config_lib.load_config(recipe.config, recipe.overrides).model
  told = MaskRCNN.from_config(section)
  assert told.num_classes == 4
  assert told.backbone.depth == depth
  assert told.head_norm.kind == model.head_norm.kind
  told = foreign_models.shapes(told)
  assert jax.tree.structure(told) == jax.tree.structure(
    foreign_models.shapes(model)
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_equal(x.shape, y.shape),
    told,
    foreign_models.shapes(model),
  )


@pytest.mark.parametrize('depth, count', [(50, 265), (101, 520)])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_resnet(tmp_path, depth, count, suffix):
  model = foreign_models.make_model(depth=depth)
  tensors = backbone_tensors(model)
  path = write(tmp_path, tensors, f'resnet{suffix}')
  variables = foreign_models.random_variables(model, seed=1)
  loaded, account = foreign.load(path, variables)
  assert account.kind == foreign.kind(path) == 'backbone'
  assert len(account.loaded) == count
  assert account.surplus == ['fc.bias', 'fc.weight']
  assert len(account.bookkeeping) == count // 5
  parts = {name.partition('/')[0] for name in account.initial}
  assert parts == {'fpn', 'rpn_head', 'box_head', 'mask_head'}
  expected = foreign_models.random_variables(model)
  for collection, tree in expected.items():
    for part in tree:
      source = expected if part == 'backbone' else variables
      jax.tree.map(
        np.testing.assert_array_equal,
        loaded[collection][part],
        source[collection][part],
      )
  recipe = foreign.recipe(path)
  assert recipe.config == 'coco:torchvision'
  assert f'model.backbone.depth={depth}' in recipe.overrides


def test_a_resnet_with_another_stem_is_refused(tmp_path):
  """timm's resnet50d: three convolutions in the stem, pooled shortcuts."""
  model = foreign_models.make_model()
  tensors = backbone_tensors(model)
  tensors['conv1.0.weight'] = tensors.pop('conv1.weight')
  message = error(write(tmp_path, tensors), foreign_models.shapes(model))
  assert 'is neither a ResNet nor a Mask R-CNN with names of torch' in message
  tensors['conv1.weight'] = tensors['conv1.0.weight']
  tensors['layer1.0.downsample.2.weight'] = np.zeros(1, np.float32)
  message = error(
    write(tmp_path, tensors, 'b.pth'), foreign_models.shapes(model)
  )
  assert 'layer1.0.downsample.2.weight: the model has no such layer' in message
  assert 'conv1.0.weight: the model has no such layer' in message


def test_missing_and_misshaped_tensors_are_listed(tmp_path):
  model = foreign_models.make_model()
  tensors = torchvision.state_dict(foreign_models.random_variables(model))
  del tensors['rpn.head.cls_logits.bias']
  name = 'backbone.body.conv1.weight'
  tensors[name] = tensors[name][:, :2]
  tensors['roi_heads.keypoint_head.0.weight'] = np.zeros(1, np.float32)
  path = write(tmp_path, tensors)
  message = error(path, foreign_models.shapes(model))
  assert message.startswith(f'{path} does not fit the model, 3 tensors are')
  for line in (
    'backbone/stem/conv/kernel <- backbone.body.conv1.weight: is (7, 7, 2, 8), '
    'wanted (7, 7, 3, 8)',
    'rpn_head/objectness/bias <- rpn.head.cls_logits.bias: is missing, wanted '
    '(3,)',
    'roi_heads.keypoint_head.0.weight: the model has no such layer',
  ):
    assert line in message


def test_another_number_of_classes_is_named(tmp_path):
  model = foreign_models.make_model()
  tensors = torchvision.state_dict(foreign_models.random_variables(model))
  other = foreign_models.make_model(num_classes=91)
  message = error(write(tmp_path, tensors), foreign_models.shapes(other))
  assert message.endswith(
    'It was trained for 4 classes with background, the model is for 91: set '
    'model.num_classes=4, or training.finetune=true to train the predictors '
    'anew.'
  )


def test_what_has_no_name_there():
  model = foreign_models.make_model(box_dense=2)
  variables = foreign_models.random_variables(model)
  variables['params']['keypoint_head'] = {'conv': {'kernel': np.zeros(1)}}
  with pytest.raises(ValueError, match=r'keypoint_head.* no name in torchvis'):
    torchvision.state_dict(variables)
