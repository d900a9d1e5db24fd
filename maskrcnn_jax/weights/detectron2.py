"""State dicts of Detectron2's Mask R-CNN, and its ImageNet backbones.

Background is Detectron2's last class and has neither deltas nor a mask; here it
is class 0. Of COCO it numbers the 80 categories without gaps, here classes have
COCO's own ids. Backbones come in its own names or in those of Caffe2, whose
norms are a scale and a bias.
"""

import re
from collections.abc import Collection, Mapping

import numpy as np

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import coco_classes, state_dicts
from maskrcnn_jax.weights.state_dicts import Format, Recipe

_BODY = 'backbone.bottom_up.'
_CLASSES = 'roi_heads.box_predictor.cls_score.bias'
# A logit that no other is below: the score of an id that COCO does not use.
_NEVER = -1e4
# Detectron's own models, which Detectron2 reads, differ in more than names.
_DETECTRON = ('fpn_inner_', 'conv_rpn_', 'bbox_pred_')
_CAFFE2_CONV = 'res2_0_branch2a_w'
_CAFFE2_LEAVES = {
  'kernel': 'w',
  'scale': 's',
  'bias': 'b',
  'mean': 'rm',
  'variance': 'riv',
}


def find_format(names: Collection[str]) -> Format | None:
  """How a state dict with these names names its tensors; None if unknown.

  Raises:
    ValueError: it is a whole model of Detectron 1.
  """
  if f'{_BODY}stem.conv1.weight' in names:
    return _model_format(names)
  if 'stem.conv1.weight' in names and 'res2.0.conv1.weight' in names:
    return _backbone_format(
      lambda path: _backbone_name(path, ''),
      ('stem.conv1.', 'res'),
      _norm_overrides(names, 'stem.conv1.norm'),
      # Detectron2 converted these from torchvision's.
      config='coco:torchvision',
    )
  if _CAFFE2_CONV not in names:
    return None
  if any(name.startswith(_DETECTRON) for name in names):
    raise UserError(
      'It is a whole model of Detectron (Caffe2), whose boxes and RoIAlign are '
      'coded in another way; Detectron2 has models of the same size.'
    )
  is_group = 'res2_0_branch2a_gn_s' in names
  norm = 'gn' if is_group else 'bn'
  overrides = _group_overrides() if is_group else ()
  return _backbone_format(
    lambda path: _caffe2_name(path, norm),
    ('conv1_w', 'res'),
    overrides,
    has_statistics='res2_0_branch2a_bn_rm' in names,
  )


def recipe(form: Format, arrays: Mapping[str, np.ndarray]) -> Recipe:
  """The model that a state dict is of."""
  overrides = [
    *form.overrides,
    *state_dicts.shape_overrides(form, arrays),
  ]
  if form.kind == 'backbone':
    return Recipe(form.config, overrides)
  num_classes = len(arrays.get(_CLASSES, ()))
  if num_classes == len(coco_classes.NAMES) + 1:
    num_classes = coco_classes.NUM_CLASSES
  if num_classes:
    overrides.append(f'model.num_classes={num_classes}')
  return Recipe(form.config, overrides, coco_classes.of(num_classes))


def order_classes(
  name: str, array: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
  """The rows of a predictor in our order of classes.

  Rows that Detectron2 does not have are zeros, so deltas of 0 and masks of one
  half; ids that COCO does not use never win.

  Args:
    name: our name of it; other layers pass as they are.
    array: rows of classes, or of four deltas for each class, first.
    shape: ours, with the classes last.
  """
  layer, _, leaf = name.rpartition('/')
  if layer == 'box_head/class_logits':
    # Background first.
    array = np.concatenate([array[-1:], array[:-1]])
    num_ours, fill = shape[-1], (_NEVER if leaf == 'bias' else 0.0)
    return _spread(array, num_ours, fill)
  if layer not in ('box_head/box_deltas', 'mask_head/mask_logits'):
    return array
  width = 4 if layer == 'box_head/box_deltas' else 1
  if array.shape[0] % width:
    return array
  rows = array.reshape(-1, width, *array.shape[1:])
  rows = np.concatenate([np.zeros_like(rows[:1]), rows])
  rows = _spread(rows, shape[-1] // width, 0.0)
  return rows.reshape(-1, *array.shape[1:])


def _spread(rows, num_ours, fill):
  """Rows of background and 80 classes at COCO's ids, if so many are wanted."""
  ids = [0, *sorted(coco_classes.NAMES)]
  if len(rows) != len(ids) or num_ours != coco_classes.NUM_CLASSES:
    return rows
  result = np.full((num_ours, *rows.shape[1:]), fill, rows.dtype)
  result[ids] = rows
  return result


def _model_format(names) -> Format:
  convs = [
    name
    for name in names
    if re.fullmatch(r'proposal_generator\.rpn_head\.conv\.conv\d\.weight', name)
  ]
  num_rpn = max(len(convs), 1)
  head_norm = state_dicts.norm_kind(names, 'backbone.fpn_lateral2.norm')
  overrides = [
    f'model.rpn_convs={num_rpn}',
    f'model.head_norm.kind={head_norm}',
    *_norm_overrides(names, f'{_BODY}stem.conv1.norm'),
  ]
  return Format(
    system='Detectron2',
    kind='model',
    config='coco:detectron2',
    name=lambda path: _model_name(path, num_rpn),
    is_layer=lambda name: True,
    arrange=order_classes,
    overrides=overrides,
  )


def _backbone_format(
  name, layers, overrides, has_statistics=True, config='coco:detectron2'
) -> Format:
  return Format(
    system='Detectron2',
    kind='backbone',
    config=config,
    name=name,
    is_layer=lambda theirs: theirs.startswith(layers),
    has_statistics=has_statistics,
    overrides=overrides,
  )


def _norm_overrides(names, scope) -> list[str]:
  kind = state_dicts.norm_kind(names, scope)
  if kind == 'group':
    return _group_overrides()
  # What learns its norm, was trained from random values.
  free = ['model.backbone.frozen_stages=0'] if kind == 'batch' else []
  return [f'model.backbone.norm={kind}', *free]


def _group_overrides() -> list[str]:
  """Group norm, which Detectron2's models have with the stride on the 3x3."""
  return [
    'model.backbone.norm=group',
    'model.backbone.norm_epsilon=1e-5',
    'model.backbone.frozen_stages=0',
    'model.backbone.stride_in_1x1=false',
  ]


def _place(path):
  place = state_dicts.backbone_path(path)
  if place is None:
    raise UserError(f'{path} has no name in Detectron2.')
  return place


def _backbone_name(path, prefix) -> str:
  place = _place(path)
  number = place['number'] or 1
  layer = {
    'conv': f'conv{number}',
    'norm': f'conv{number}.norm',
    'shortcut_conv': 'shortcut',
    'shortcut_norm': 'shortcut.norm',
  }[place['layer']]
  if place['stage']:
    block = f'res{place["stage"]}.{int(place["block"]) - 1}'
  else:
    block = 'stem'
  return f'{prefix}{block}.{layer}.{state_dicts.LEAVES[place["leaf"]]}'


def _caffe2_name(path, norm) -> str:
  place = _place(path)
  leaf = _CAFFE2_LEAVES[place['leaf']]
  if not place['stage']:
    if place['layer'] == 'conv':
      return f'conv1_{leaf}'
    return f'res_conv1_bn_{leaf}' if norm == 'bn' else f'conv1_gn_{leaf}'
  branch = '1'
  if not place['layer'].startswith('shortcut'):
    branch = f'2{"abc"[int(place["number"]) - 1]}'
  if place['layer'].endswith('norm'):
    branch += f'_{norm}'
  block = f'res{place["stage"]}_{int(place["block"]) - 1}'
  return f'{block}_branch{branch}_{leaf}'


def _model_name(path, num_rpn) -> str:
  """Their name of a variable, of a head with so many RPN convolutions."""
  if path.startswith('backbone/'):
    return _backbone_name(path, _BODY)
  return state_dicts.rename(path, _heads(num_rpn), 'Detectron2')


def _heads(num_rpn):
  rpn = 'proposal_generator.rpn_head'
  box, mask = 'roi_heads.box_head', 'roi_heads.mask_head'
  return (
    (r'fpn/(lateral|output)(\d)', r'backbone.fpn_\1\2'),
    (r'fpn/(lateral|output)(\d)_norm', r'backbone.fpn_\1\2.norm'),
    (r'rpn_head/conv', f'{rpn}.conv{".conv0" if num_rpn > 1 else ""}'),
    (r'rpn_head/conv(\d+)', lambda m: f'{rpn}.conv.conv{int(m[1]) - 1}'),
    (r'rpn_head/objectness', f'{rpn}.objectness_logits'),
    (r'rpn_head/box_deltas', f'{rpn}.anchor_deltas'),
    (r'box_head/conv(\d+)', rf'{box}.conv\1'),
    (r'box_head/norm(\d+)', rf'{box}.conv\1.norm'),
    (r'box_head/fc(\d+)', lambda m: f'{box}.fc{int(m[1]) - 5}'),
    (r'box_head/class_logits', 'roi_heads.box_predictor.cls_score'),
    (r'box_head/box_deltas', 'roi_heads.box_predictor.bbox_pred'),
    (r'mask_head/conv(\d+)', rf'{mask}.mask_fcn\1'),
    (r'mask_head/norm(\d+)', rf'{mask}.mask_fcn\1.norm'),
    (r'mask_head/deconv', f'{mask}.deconv'),
    (r'mask_head/mask_logits', f'{mask}.predictor'),
  )
