"""Our variables under torchvision's names and in its layout.

So that both sides of a comparison compute the same: the same proposals survive,
the same objects are found.
"""

import re
from typing import Any

import jax
import numpy as np

# Patterns of our names, and theirs; `n` is one less than the number here.
_NAMES = (
  (r'backbone/stem/conv', 'backbone.body.conv1'),
  (r'backbone/stem/norm', 'backbone.body.bn1'),
  (
    r'backbone/stage(\d)/block(\d+)/shortcut_conv',
    'backbone.body.layer{n0}.{n1}.downsample.0',
  ),
  (
    r'backbone/stage(\d)/block(\d+)/shortcut_norm',
    'backbone.body.layer{n0}.{n1}.downsample.1',
  ),
  (
    r'backbone/stage(\d)/block(\d+)/conv(\d)',
    'backbone.body.layer{n0}.{n1}.conv{2}',
  ),
  (
    r'backbone/stage(\d)/block(\d+)/norm(\d)',
    'backbone.body.layer{n0}.{n1}.bn{2}',
  ),
  (r'fpn/lateral(\d)', 'backbone.fpn.inner_blocks.{m0}.0'),
  (r'fpn/output(\d)', 'backbone.fpn.layer_blocks.{m0}.0'),
  (r'rpn_head/conv', 'rpn.head.conv.0.0'),
  (r'rpn_head/objectness', 'rpn.head.cls_logits'),
  (r'rpn_head/box_deltas', 'rpn.head.bbox_pred'),
  (r'box_head/(fc\d)', 'roi_heads.box_head.{0}'),
  (r'box_head/class_logits', 'roi_heads.box_predictor.cls_score'),
  (r'box_head/box_deltas', 'roi_heads.box_predictor.bbox_pred'),
  (r'mask_head/conv(\d)', 'roi_heads.mask_head.{n0}.0'),
  (r'mask_head/deconv', 'roi_heads.mask_predictor.conv5_mask'),
  (r'mask_head/mask_logits', 'roi_heads.mask_predictor.mask_fcn_logits'),
)
_LEAVES = {
  'kernel': 'weight',
  'bias': 'bias',
  'scale': 'weight',
  'mean': 'running_mean',
  'variance': 'running_var',
}
# (dy, dx, dh, dw) as (dx, dy, dw, dh).
_XY = (1, 0, 3, 2)


def torchvision_state(variables: Any, box_size: int) -> dict[str, np.ndarray]:
  """The `state_dict` of torchvision's model, as NumPy arrays.

  Args:
    variables: `params` and `batch_stats` of a model.
    box_size: side of its RoI features for boxes.

  Raises:
    ValueError: torchvision's model has no such variable.
  """
  state = {}
  for collection in variables.values():
    leaves = jax.tree_util.tree_flatten_with_path(collection)[0]
    for path, array in leaves:
      *layer, leaf = (key.key for key in path)
      layer = '/'.join(layer)
      name = f'{_layer_name(layer)}.{_LEAVES[leaf]}'
      state[name] = _layout(layer, leaf, np.asarray(array), box_size)
  return state


def _layer_name(layer: str) -> str:
  for pattern, name in _NAMES:
    match = re.fullmatch(pattern, layer)
    if match:
      found = match.groups()
      numbers = [int(x) for x in found if x.isdigit()]
      less = {f'n{i}': x - 1 for i, x in enumerate(numbers)}
      # The finest level of the pyramid, 2, is their 0.
      less |= {f'm{i}': x - 2 for i, x in enumerate(numbers)}
      return name.format(*found, **less)
  raise ValueError(f"torchvision's Mask R-CNN has no layer like {layer}.")


def _layout(layer, leaf, array, box_size) -> np.ndarray:
  if layer.endswith('box_deltas'):  # Four to an anchor or a class.
    array = array.reshape(*array.shape[:-1], -1, 4)[..., _XY]
    array = array.reshape(*array.shape[:-2], -1)
  if leaf != 'kernel':
    return array
  if layer.endswith('fc6'):  # From rows, columns, channels.
    array = array.reshape(box_size, box_size, -1, array.shape[-1])
    array = array.transpose(2, 0, 1, 3).reshape(-1, array.shape[-1])
  if layer.endswith('deconv'):
    return array.transpose(2, 3, 0, 1)
  return array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1)
