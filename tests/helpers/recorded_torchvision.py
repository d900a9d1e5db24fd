"""Weights and inputs of the recordings of torchvision's models.

The weights are not stored: each tensor follows from its name and shape. The
photographs are COCO's; `MASKRCNN_TEST_DATA` has them.
"""

import zlib

import golden_files
import jax
import narrow_models
import numpy as np
from PIL import Image

from maskrcnn_jax.config import load_config
from maskrcnn_jax.input_pipeline import resizing
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.weights import torchvision

# Kernels whose rows have mean 0, in both versions.
_CENTERED = (
  'fc6.weight',
  'fc7.weight',
  'box_head.5.weight',
  'cls_score.weight',
  'bbox_pred.weight',
  'cls_logits.weight',
  'mask_fcn_logits.weight',
)
# Gains by part of the name, the first match; 1 elsewhere.
_GAINS = (
  ('.conv3.weight', 0.35),
  ('.downsample.0.weight', 0.7),
  ('fpn.inner_blocks.', 0.5),
  ('fpn.layer_blocks.', 0.7),
  ('rpn.head.bbox_pred.weight', 0.3),
  ('box_predictor.cls_score.weight', 1.6),
  ('box_predictor.bbox_pred.weight', 0.6),
  ('mask_fcn_logits.weight', 0.8),
)
# Added to the logit of the background.
BACKGROUND = {'coco:torchvision': 11.9, 'coco:torchvision_v2': 9.5}
# (shorter, longer) sides of the resized images.
SIDES = {'coco:torchvision': (320, 512), 'coco:torchvision_v2': (128, 224)}


def state_dict(config_name):
  """The recorded weights of a shipped config, under torchvision's names."""
  model = MaskRCNN.from_config(load_config(config_name).model)
  zeros = jax.tree.map(
    lambda x: np.zeros(x.shape, np.float32), narrow_models.shapes(model)
  )
  empty = torchvision.state_dict(zeros)
  return {
    name: array
    if array.dtype == np.int64
    else formula(name, array.shape, empty, BACKGROUND[config_name])
    for name, array in empty.items()
  }


def formula(name, shape, names, background):
  """The recorded values of a tensor.

  Args:
    name: of torchvision.
    shape: in torchvision.
    names: of all tensors.
    background: added to the logit of the background.
  """
  seed = zlib.crc32(name.encode())
  values = np.random.RandomState(seed).standard_normal(shape)
  scope, _, leaf = name.rpartition('.')
  if len(shape) >= 2:
    if name.endswith(_CENTERED):
      axes = tuple(range(1, len(shape)))
      values -= values.mean(axis=axes, keepdims=True)
    is_deconv = name.endswith('conv5_mask.weight')
    fan_in = shape[0] if is_deconv else np.prod(shape[1:])
    gain = next((gain for part, gain in _GAINS if part in name), 1.0)
    values *= gain * np.sqrt(2 / fan_in)
  elif f'{scope}.running_mean' in names:
    values = {
      'weight': 1 + 0.05 * values,
      'bias': 0.05 * values,
      'running_mean': 0.05 * values,
      'running_var': 1 + 0.1 * np.abs(values),
    }[leaf]
  else:
    values *= 0.01
    if name.endswith('cls_score.bias'):
      values[0] += background
  return values.astype(np.float32)


def image(stem):
  """RGB `[height, width, 3]` of a recorded image; skips if it is missing."""
  path = golden_files.folder() / 'torchvision' / 'images' / f'{stem}.png'
  if not path.is_file() and stem.startswith('coco_'):
    number = int(stem.removeprefix('coco_'))
    return np.asarray(golden_files.photograph(number))
  return np.asarray(Image.open(path).convert('RGB'))


def make_input(pixels, sides, canvas=None):
  """An image resized as in torchvision, on its canvas.

  Args:
    pixels: RGB `[height, width, 3]`.
    sides: (shorter, longer) to be fitted into.
    canvas: (height, width); None: the next multiples of 32.

  Returns:
    `[height, width, 3]` float32 in 0..255, `[2]` size and `[2]` scales.
  """
  import tensorflow as tf

  from maskrcnn_jax.input_pipeline import transforms

  options = resizing.ResizeOptions(sides, True, False)
  tall = pixels.shape[0] > pixels.shape[1]
  fit = sides[::-1] if tall else sides
  made = transforms.resize(
    {'image': tf.constant(pixels)}, None, fit, tf.constant(False), options
  )
  size = made['image_sizes'].numpy()
  if canvas is None:
    canvas = -(-size.astype(int) // 32) * 32
  resized = transforms.pad_image(made['image'], tf.constant(canvas, tf.int32))
  return resized.numpy(), size, made['scales'].numpy()
