"""Weights with which the model behaves as a trained one, from formulas.

Values that layers draw at the start leave every class at the same score, so
that detection finds nothing to do. These keep activations of order one, spread
scores and boxes, and are the same on every machine.
"""

import re
import zlib
from typing import Any

import jax
import numpy as np

# Kernels by the end of their path, and the gain of their deviation over
# sqrt(2 / fan in); others have 1.
_GAINS = (
  (r'block\d+/conv3/kernel', 0.35),
  (r'shortcut_conv/kernel', 0.7),
  (r'fpn/lateral\d/kernel', 0.5),
  (r'fpn/output\d/kernel', 0.7),
  (r'rpn_head/box_deltas/kernel', 0.3),
  (r'class_logits/kernel', 1.6),
  (r'box_head/box_deltas/kernel', 0.6),
  (r'mask_logits/kernel', 0.8),
)
# After ReLU all inputs are positive: an output would be that of its mean
# weight if this were not 0.
_CENTRED = r'(fc6|fc7|class_logits|box_deltas|objectness|mask_logits)/kernel$'
# Of the logit of background. Of 1000 RoIs, 100 are then objects at least.
DETECTION_BACKGROUND = 8.0
TRAINING_BACKGROUND = 11.9


def example_variables(variables: Any, background: float) -> Any:
  """Variables of the same structure and shapes.

  Args:
    variables: `params` and `batch_stats` of a model, or their shapes.
    background: added to the logit of class 0; the larger, the fewer objects.
  """

  def make(path, array):
    name = '/'.join(key.key for key in path)
    return _values(name, array.shape, background)

  return jax.tree_util.tree_map_with_path(make, variables)


def _values(name, shape, background) -> np.ndarray:
  random = np.random.default_rng(zlib.crc32(name.encode()))
  values = random.standard_normal(shape, np.float32)
  leaf = name.rpartition('/')[2]
  if leaf == 'kernel':
    if re.search(_CENTRED, name):
      values -= values.mean(axis=tuple(range(len(shape) - 1)), keepdims=True)
    # A transposed convolution adds nothing up over its window.
    window = 1 if name.endswith('deconv/kernel') else np.prod(shape[:-2])
    fan_in = window * shape[-2]
    values *= _gain(name) * np.sqrt(2.0 / fan_in)
  elif leaf == 'scale':
    values = 1 + 0.05 * values
  elif leaf == 'variance':
    values = 1 + 0.1 * np.abs(values)
  else:
    values *= 0.05 if leaf == 'mean' or 'norm' in name else 0.01
    if name.endswith('class_logits/bias'):
      values[0] += background
  return values.astype(np.float32)


def _gain(name) -> float:
  gains = (gain for end, gain in _GAINS if re.search(f'{end}$', name))
  return next(gains, 1.0)
