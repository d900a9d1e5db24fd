"""State dicts of torchvision's Mask R-CNNs, and of its and timm's ResNets.

Names of `maskrcnn_resnet50_fpn` (today's, and those of its public weights, made
in 2019), `maskrcnn_resnet50_fpn_v2`, and of a ResNet alone, which timm shares.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from maskrcnn_jax.weights import load_report, resnet, state_dicts
from maskrcnn_jax.weights.state_dicts import Format

_BODY = 'backbone.body.'
_CONVOLUTIONS = re.compile(r'roi_heads\.box_head\.\d\.0\.weight')
# Only the names of 2019 have this one.
_OLD = 'rpn.head.conv.weight'
_OLD_NAMES = (
  (r'(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.0\.', r'\1.'),
  (r'rpn\.head\.conv\.0\.0\.', 'rpn.head.conv.'),
  (
    r'roi_heads\.mask_head\.(\d)\.0\.',
    lambda m: f'roi_heads.mask_head.mask_fcn{int(m[1]) + 1}.',
  ),
)


def find_format(names: Collection[str]) -> Format | None:
  """Format of a state dict with these names; None if unknown."""
  if f'{_BODY}conv1.weight' in names:
    return _model_format(names)
  if 'conv1.weight' in names and 'layer1.0.conv1.weight' in names:
    return Format(
      kind='backbone',
      config='coco:torchvision',
      name=state_dicts.namer(_backbone(''), 'torchvision'),
      is_layer=lambda name: name.startswith(('conv1.', 'bn1.', 'layer')),
    )
  return None


def state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """A state dict of torchvision's Mask R-CNN, under today's names.

  Args:
    variables: `params` and `batch_stats` of `MaskRCNN`.

  Returns:
    Contiguous float32 arrays, and int64 zeros for the batch counters of
    trainable batch norm.

  Raises:
    UserError: a variable has no name in torchvision.
  """
  ours = load_report.flatten(variables)
  convs = [x for x in ours if re.fullmatch(r'box_head/conv\d+/kernel', x)]
  name_of = _model_namer(len(convs))
  channels = state_dicts.roi_channels(ours)
  trainable = load_report.flatten({'params': variables['params']})
  tensors = {}
  for path, array in ours.items():
    name = name_of(path)
    array = np.asarray(array, np.float32)
    tensors[name] = state_dicts.to_torch(path, array, channels)
    # Scale and bias of trainable batch norm are parameters.
    scope = path.removesuffix('/mean')
    if scope != path and f'{scope}/scale' in trainable:
      counter = name.replace('.running_mean', '.num_batches_tracked')
      tensors[counter] = np.zeros((), np.int64)
  return dict(sorted(tensors.items()))


def _model_format(names) -> Format:
  num_convs = len([x for x in names if _CONVOLUTIONS.fullmatch(x)])
  is_old = _OLD in names
  name_of = _model_namer(num_convs)

  def name(path):
    theirs = name_of(path)
    for pattern, old in _OLD_NAMES if is_old else ():
      theirs = re.sub(f'^{pattern}', old, theirs)
    return theirs

  overrides = []
  if is_old:
    # The public weights were trained with an epsilon of 0.
    overrides.append('model.backbone.norm_epsilon=0.0')
  num_rpn = len(
    [x for x in names if re.fullmatch(r'rpn\.head\.conv\.\d\.0\.weight', x)]
  )
  overrides.append(f'model.rpn_convs={max(num_rpn, 1)}')
  norm = state_dicts.norm_kind(names, f'{_BODY}bn1')
  head_norm = state_dicts.norm_kind(names, 'backbone.fpn.inner_blocks.0.1')
  overrides += [
    f'model.backbone.norm={norm}',
    f'model.head_norm.kind={head_norm}',
  ]
  if norm == 'group':
    overrides += [
      'model.backbone.group_channels=1',
      'model.backbone.frozen_stages=0',
    ]
  return Format(
    kind='model',
    config='coco:torchvision_v2' if num_convs else 'coco:torchvision',
    name=name,
    overrides=overrides,
  )


def _backbone(prefix):
  return resnet.patterns(
    f'{prefix}conv1',
    f'{prefix}bn1',
    prefix + 'layer{layer}.{block}.conv{conv}',
    prefix + 'layer{layer}.{block}.bn{conv}',
    prefix + 'layer{layer}.{block}.downsample.0',
    prefix + 'layer{layer}.{block}.downsample.1',
  )


def _model_namer(num_convs):
  """Namer of whole models; `num_convs` convolutions are in the box head."""
  patterns = (*_backbone(_BODY), *_heads(num_convs))
  return state_dicts.namer(patterns, 'torchvision')


def _heads(num_convs):
  def numbered(scope, part, shift=1):
    return lambda m: f'{scope}.{int(m[1]) - shift}.{part}'

  def dense(match):
    index = int(match[1]) - 6
    if not num_convs:
      return f'roi_heads.box_head.fc{6 + index}'
    # After the convolutions and a flattening, each followed by a ReLU.
    return f'roi_heads.box_head.{num_convs + 1 + 2 * index}'

  inner, layer = 'backbone.fpn.inner_blocks', 'backbone.fpn.layer_blocks'
  return (
    (r'fpn/lateral(\d)', numbered(inner, 0, shift=2)),
    (r'fpn/lateral(\d)_norm', numbered(inner, 1, shift=2)),
    (r'fpn/output(\d)', numbered(layer, 0, shift=2)),
    (r'fpn/output(\d)_norm', numbered(layer, 1, shift=2)),
    (r'rpn_head/conv', 'rpn.head.conv.0.0'),
    (r'rpn_head/conv(\d+)', numbered('rpn.head.conv', 0)),
    (r'rpn_head/objectness', 'rpn.head.cls_logits'),
    (r'rpn_head/box_deltas', 'rpn.head.bbox_pred'),
    (r'box_head/conv(\d+)', numbered('roi_heads.box_head', 0)),
    (r'box_head/norm(\d+)', numbered('roi_heads.box_head', 1)),
    (r'box_head/fc(\d+)', dense),
    (r'box_head/class_logits', 'roi_heads.box_predictor.cls_score'),
    (r'box_head/box_deltas', 'roi_heads.box_predictor.bbox_pred'),
    (r'mask_head/conv(\d+)', numbered('roi_heads.mask_head', 0)),
    (r'mask_head/norm(\d+)', numbered('roi_heads.mask_head', 1)),
    (r'mask_head/deconv', 'roi_heads.mask_predictor.conv5_mask'),
    (r'mask_head/mask_logits', 'roi_heads.mask_predictor.mask_fcn_logits'),
  )
