"""State dicts of Detectron2's Mask R-CNN and its ImageNet backbones.

Detectron2 numbers COCO's 80 categories without gaps and puts the background,
which has neither deltas nor masks, last. Here the background is class 0 and
categories have COCO's own ids. Backbones have Detectron2's names or those of
Caffe2, whose norms are only a scale and a bias.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import coco_classes, resnet, state_dicts
from maskrcnn_jax.weights.state_dicts import Format

_BODY = 'backbone.bottom_up.'
# Logit of the ids that COCO does not use: they never win.
_UNUSED_LOGIT = -1e4
# Names in models of Detectron 1, which differ in more than names.
_DETECTRON = ('fpn_inner_', 'conv_rpn_', 'bbox_pred_')
_STRIDE_IN_3X3 = 'model.backbone.stride_in_1x1=false'
# A config of Detectron2 chooses them freely; its models mostly keep these.
_CHANNELS = 'BGR with a deviation of 1 (model.bgr, model.pixel_std)'
_CAFFE2_CONV = 'res2_0_branch2a_w'
_CAFFE2_BRANCH = 'res{stage}_{block}_branch'
_CAFFE2_LEAVES = {
  'kernel': 'w',
  'scale': 's',
  'bias': 'b',
  'mean': 'rm',
  'variance': 'riv',
}


def find_format(names: Mapping[str, np.ndarray]) -> Format | None:
  """Format of a state dict, arrays by name; None if unknown.

  Raises:
    UserError: it is a whole model of Detectron 1.
  """
  if f'{_BODY}stem.conv1.weight' in names:
    return _model_format(names)
  if 'stem.conv1.weight' in names and 'res2.0.conv1.weight' in names:
    return Format(
      kind='backbone',
      # Detectron2 converted these from torchvision's.
      config='coco:torchvision',
      name=state_dicts.namer(_backbone(''), 'Detectron2'),
      is_layer=lambda name: name.startswith(('stem.conv1.', 'res')),
      overrides=_norm_overrides(
        state_dicts.norm_kind(names, 'stem.conv1.norm')
      ),
    )
  if _CAFFE2_CONV not in names:
    return None
  if any(name.startswith(_DETECTRON) for name in names):
    raise UserError(
      'This is a whole model of Detectron 1 (Caffe2), whose box coding and '
      'RoIAlign differ; Detectron2 has models of the same size.'
    )
  is_group = 'res2_0_branch2a_gn_s' in names
  norm = 'gn' if is_group else 'bn'
  patterns = resnet.patterns(
    'conv1',
    'conv1_gn' if is_group else 'res_conv1_bn',
    f'{_CAFFE2_BRANCH}2{{letter}}',
    f'{_CAFFE2_BRANCH}2{{letter}}_{norm}',
    f'{_CAFFE2_BRANCH}1',
    f'{_CAFFE2_BRANCH}1_{norm}',
  )
  return Format(
    kind='backbone',
    config='coco:detectron2',
    name=state_dicts.namer(patterns, 'Caffe2', _CAFFE2_LEAVES, '_'),
    is_layer=lambda name: name.startswith(('conv1_w', 'res')),
    has_statistics='res2_0_branch2a_bn_rm' in names,
    overrides=_group_overrides() if is_group else (),
    backbone_sizes=_sizes,
  )


def order_classes(
  name: str, array: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
  """Rows of a predictor in our order of classes.

  Rows that Detectron2 lacks are zeros, which means deltas of 0 and mask
  probabilities of one half; ids that COCO does not use never win.

  Args:
    name: our name; layers without classes are returned unchanged.
    array: its first axis is the classes, or four deltas for each class.
    shape: of our variable, with the classes last.
  """
  layer, _, leaf = name.rpartition('/')
  if layer == 'box_head/class_logits':
    # Background first.
    array = np.concatenate([array[-1:], array[:-1]])
    num_ours, fill = shape[-1], (_UNUSED_LOGIT if leaf == 'bias' else 0.0)
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


def count_classes(rows: int) -> int:
  """`model.num_classes` for so many logits; COCO's 80 have ids up to 90."""
  is_coco = rows == len(coco_classes.NAMES) + 1
  return coco_classes.NUM_CLASSES if is_coco else rows


def _spread(rows, num_ours, fill):
  """Rows at COCO's ids if they are COCO's 80 classes and 91 are wanted."""
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
  norm = state_dicts.norm_kind(names, f'{_BODY}stem.conv1.norm')
  head_norm = state_dicts.norm_kind(names, 'backbone.fpn_lateral2.norm')
  overrides = [
    f'model.rpn_convs={num_rpn}',
    f'model.head_norm.kind={head_norm}',
    *_norm_overrides(norm),
  ]
  pixels = _pixel_statistics(names)
  overrides += pixels
  assumed = [] if pixels else [_CHANNELS]
  if norm == 'batch' and num_rpn == 1:
    # Misc/*_syncbn; LSJ models have two convolutions and the other stride.
    overrides.append(_STRIDE_IN_3X3)
  elif norm != 'group':
    assumed.append('model.backbone.stride_in_1x1=true')
  return Format(
    kind='model',
    config='coco:detectron2',
    name=state_dicts.namer((*_backbone(_BODY), *heads(num_rpn)), 'Detectron2'),
    arrange=order_classes,
    num_classes=count_classes,
    overrides=overrides,
    assumed=assumed,
    backbone_sizes=_sizes,
  )


def _pixel_statistics(arrays: Mapping[str, np.ndarray]) -> list[str]:
  """Overrides for the channels, from the buffers that some files have."""
  mean, std = (
    np.ravel(arrays.get(name, ())).astype(float) / 255
    for name in ('pixel_mean', 'pixel_std')
  )
  if not (mean.size == std.size == 3 and np.all(std > 0)):
    return []
  # The mean of blue is the smallest in photographs.
  step = -1 if mean[0] < mean[2] else 1
  return [
    f'model.bgr={str(step < 0).lower()}',
    *(
      f'model.{name}=({",".join(f"{x:.6g}" for x in values[::step])})'
      for name, values in (('pixel_mean', mean), ('pixel_std', std))
    ),
  ]


def _sizes(shapes: state_dicts.FileShapes) -> Mapping[str, Any]:
  """As of a ResNet; a ResNeXt has its stride on the 3x3 and ImageNet's std."""
  sizes = resnet.sizes(shapes)
  if sizes.get('backbone.groups', 1) == 1:
    return sizes
  std = (0.229, 0.224, 0.225)
  return {**sizes, 'backbone.stride_in_1x1': False, 'pixel_std': std}


def _norm_overrides(kind) -> list[str]:
  if kind == 'group':
    return _group_overrides()
  # A model with trainable norm was trained from random values.
  free = ['model.backbone.frozen_stages=0'] if kind == 'batch' else []
  return [f'model.backbone.norm={kind}', *free]


def _group_overrides() -> list[str]:
  """Overrides for group norm; these models have their stride on the 3x3."""
  return [
    'model.backbone.norm=group',
    'model.backbone.norm_epsilon=1e-5',
    'model.backbone.frozen_stages=0',
    _STRIDE_IN_3X3,
  ]


def _backbone(prefix):
  return resnet.patterns(
    f'{prefix}stem.conv1',
    f'{prefix}stem.conv1.norm',
    prefix + 'res{stage}.{block}.conv{conv}',
    prefix + 'res{stage}.{block}.conv{conv}.norm',
    prefix + 'res{stage}.{block}.shortcut',
    prefix + 'res{stage}.{block}.shortcut.norm',
  )


def heads(num_rpn: int):
  """Patterns of names outside the backbone, with so many RPN convolutions."""
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
