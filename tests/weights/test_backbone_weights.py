"""State dicts of ConvNeXts and ViTs: layouts, inferred models, missing ones."""

import narrow_models
import numpy as np
import pytest
import tiny_model

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.weights import (
  convnext,
  detectron2,
  external,
  load_report,
  state_dicts,
  tensor_files,
  torchvision,
  vit,
)

VIT = {
  'kind': 'vit',
  'vit': {
    'width': 24,
    'depth': 4,
    'heads': 3,
    'window': 2,
    'global_blocks': (1, 3),
    'position_side': 3,
    'table_side': 4,
  },
}
CONVNEXT = {
  'kind': 'convnext',
  'convnext': {'blocks': (1, 2, 1, 1), 'widths': (4, 8, 12, 16)},
}
# The first names of a format, by which it is found.
FIRST = {
  'torchvision': ('features.0.0.weight', 'features.1.0.layer_scale'),
  'timm': ('stem.0.weight', 'stages.0.blocks.0.conv_dw.weight'),
  'original': ('downsample_layers.0.0.weight', 'stages.0.0.dwconv.weight'),
  'detector': (
    'norm0.weight',
    'downsample_layers.0.0.weight',
    'stages.0.0.dwconv.weight',
  ),
}


def their_tensors(variables, form):
  """Variables under the names and in the layout of a format."""
  tensors, ours = {}, load_report.flatten(variables)
  channels = state_dicts.roi_channels(ours)
  for path, array in ours.items():
    if form.kind == 'backbone' and not path.startswith('backbone/'):
      continue
    if form.lacks(path):
      continue
    array = state_dicts.to_torch(path, np.asarray(array, np.float32), channels)
    name = form.name(path)
    if name.endswith('pos_embed'):
      grid = array.reshape(1, -1, array.shape[-1])
      array = np.concatenate([np.full_like(grid[:, :1], 9.0), grid], axis=1)
    elif name.endswith('layer_scale'):
      array = array[:, None, None]
    tensors[name] = array
  return tensors


def assert_loaded(loaded, expected):
  actual, expected = map(load_report.flatten, (loaded, expected))
  assert actual.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(actual[name], array, err_msg=name)


def inferred_model(path):
  inferred = external.infer_model(path)
  config = config_lib.load_config(inferred.config, inferred.overrides)
  return MaskRCNN.from_config(config.model)


@pytest.mark.parametrize('system', FIRST)
def test_a_convnext(tmp_path, system):
  model = tiny_model.make_model(backbone=CONVNEXT)
  variables = narrow_models.random_variables(model)
  form = convnext.find_format(FIRST[system])
  tensors = their_tensors(variables, form)
  tensors['head.weight'] = np.zeros((5, 16), np.float32)
  path = tmp_path / 'convnext.pth'
  tensor_files.write(path, tensors)
  initial = narrow_models.random_variables(model, seed=1)
  loaded, report = external.load(path, initial)
  assert report.kind == external.kind(path) == 'backbone'
  assert report.unexpected == ['head.weight']
  assert {*report.loaded.values()} == tensors.keys() - {'head.weight'}
  norms = {x for x in report.missing if x.startswith('backbone/norm')}
  assert len(norms) == (0 if system == 'detector' else 8)
  ours = load_report.flatten(variables)
  expected = load_report.flatten(initial) | {x: ours[x] for x in report.loaded}
  assert_loaded(loaded, {'all': expected})
  made = inferred_model(path).backbone
  assert made.kind == 'convnext'
  assert made.convnext.blocks == model.backbone.convnext.blocks
  assert made.convnext.widths == model.backbone.convnext.widths


def test_layouts_of_a_convnext_by_hand():
  form = convnext.find_format(FIRST['torchvision'])
  depthwise = np.arange(2 * 49.0).reshape(2, 1, 7, 7)
  ours = form.layout('backbone/stage2/block1/depthwise/kernel', depthwise, 0)
  assert ours.shape == (7, 7, 1, 2) and ours[3, 5, 0, 1] == 49 + 3 * 7 + 5
  scale = np.arange(4.0).reshape(4, 1, 1)
  ours = form.layout('backbone/stage2/block1/layer_scale', scale, 0)
  np.testing.assert_array_equal(ours, [0, 1, 2, 3])


def test_another_network_with_a_stem_is_no_convnext():
  assert convnext.find_format(['features.0.0.weight', 'stem.0.weight']) is None
  # ConvNeXt V2 has a norm of responses and no scale.
  names = ['stem.0.weight', 'stages.0.blocks.0.conv_dw.weight']
  form = convnext.find_format([*names, 'stages.0.blocks.0.mlp.grn.weight'])
  assert form.is_layer('stages.0.blocks.0.mlp.grn.weight')


@pytest.mark.parametrize('suffix', ['.pth', '.npz'])
def test_a_vit_of_a_classifier(tmp_path, suffix):
  """Without relative positions, and with a class token."""
  model = tiny_model.make_model(backbone=VIT)
  variables = narrow_models.random_variables(model)
  form = vit.find_format(['blocks.0.attn.qkv.weight'])
  tensors = their_tensors(variables, form)
  tensors['cls_token'] = np.ones((1, 1, 24), np.float32)
  tensors['norm.bias'] = np.ones(24, np.float32)
  path = tmp_path / f'mae{suffix}'
  tensor_files.write(path, tensors)
  initial = narrow_models.random_variables(model, seed=1)
  loaded, report = external.load(path, initial)
  assert report.kind == 'backbone'
  assert report.unexpected == ['cls_token', 'norm.bias']
  tables = [x for x in report.missing if '/relative_' in x]
  assert len(tables) == 8
  ours = load_report.flatten(variables)
  expected = load_report.flatten(initial) | {x: ours[x] for x in report.loaded}
  assert_loaded(loaded, {'all': expected})
  made = inferred_model(path).backbone
  assert (made.kind, made.vit.width, made.vit.depth) == ('vit', 24, 4)
  assert made.vit.position_side == 3
  assert made.vit.global_blocks == (0, 1, 2, 3)


def test_a_vit_with_other_layers_is_refused(tmp_path):
  model = tiny_model.make_model(backbone=VIT)
  form = vit.find_format(['blocks.0.attn.qkv.weight'])
  tensors = their_tensors(narrow_models.random_variables(model), form)
  tensors['blocks.1.ls1.gamma'] = np.ones(24, np.float32)
  path = tmp_path / 'vit.pth'
  tensor_files.write(path, tensors)
  with pytest.raises(UserError) as error:
    external.load(path, narrow_models.shapes(model))
  assert error.value.item == ('blocks.1.ls1.gamma',)


def test_a_vitdet(tmp_path):
  options = {'rpn_convs': 2, 'box_convs': 4, 'box_dense': 1}
  model = tiny_model.make_model(
    backbone=VIT, head_norm={'kind': 'layer', 'epsilon': 1e-6}, **options
  )
  variables = narrow_models.random_variables(model)
  # The background, class 0 here, has neither deltas nor a mask.
  heads = variables['params']
  for layer, size in (
    (heads['box_head']['box_deltas'], 4),
    (heads['mask_head']['mask_logits'], 1),
  ):
    for array in layer.values():
      array[..., :size] = 0.0
  names = ['backbone.net.patch_embed.proj.weight']
  names += ['backbone.net.blocks.0.attn.qkv.weight']
  names += [f'proposal_generator.rpn_head.conv.conv{i}.weight' for i in (0, 1)]
  tensors = their_tensors(variables, vit.find_format(names))
  # Detectron2's background is the last class.
  scores, deltas = 'cls_score', 'bbox_pred'
  for leaf in ('weight', 'bias'):
    name = f'roi_heads.box_predictor.{scores}.{leaf}'
    tensors[name] = np.roll(tensors[name], -1, axis=0)
    name = f'roi_heads.box_predictor.{deltas}.{leaf}'
    tensors[name] = tensors[name][4:]
    name = f'roi_heads.mask_head.predictor.{leaf}'
    tensors[name] = tensors[name][1:]
  path = tmp_path / 'vitdet.pth'
  tensor_files.write(path, tensors)
  made = inferred_model(path)
  assert made.head_norm == model.head_norm
  assert made.backbone.vit == model.backbone.vit
  assert narrow_models.shapes(made) == narrow_models.shapes(model)
  loaded, report = external.load(path, narrow_models.shapes(model))
  assert report.kind == 'model' and not report.missing
  assert not report.unexpected
  assert_loaded(loaded, variables)
  up = tensors['backbone.simfp_2.0.weight']
  ours = loaded['params']['fpn']['upsample2a']['kernel']
  assert ours[0, 1, 3, 5] == up[3, 5, 0, 1]
  position = tensors['backbone.net.pos_embed']
  ours = loaded['params']['backbone']['pos_embed']
  np.testing.assert_array_equal(ours[1, 2], position[0, 1 + 3 + 2])
  assert detectron2.count_classes(81) == 91


@pytest.mark.parametrize('system', ['torchvision', 'detectron2'])
def test_a_resnext_is_inferred_from_its_shapes(tmp_path, system):
  backbone = {'depth': 50, 'width': 8, 'groups': 2, 'group_width': 16}
  model = tiny_model.make_model(backbone=backbone)
  variables = narrow_models.random_variables(model)
  first = {
    'torchvision': ['backbone.body.conv1.weight'],
    'detectron2': ['backbone.bottom_up.stem.conv1.weight'],
  }[system]
  form = {'torchvision': torchvision, 'detectron2': detectron2}[system]
  tensors = their_tensors(variables, form.find_format(dict.fromkeys(first)))
  path = tmp_path / 'resnext.pth'
  tensor_files.write(path, tensors)
  made = inferred_model(path)
  assert (made.backbone.groups, made.backbone.group_width) == (2, 16)
  kernel = narrow_models.shapes(made)['params']['backbone']['stage3']
  assert kernel['block1']['conv2']['kernel'].shape == (3, 3, 4, 8)
  # Detectron2's have their stride in the 3x3, and ImageNet's deviations.
  assert not made.backbone.stride_in_1x1
  assert made.pixel_std == (0.229, 0.224, 0.225)
