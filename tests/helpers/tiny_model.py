"""Tiny Mask R-CNN that compiles in seconds, and batches for it."""

import functools

import jax
import numpy as np
import quick

from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.optimization.optimizer import make_optimizer
from maskrcnn_jax.training import train_state

CANVAS = 64
MASK_SIZE = 28
NUM_CLASSES = 4
# A constant rate, so that updates are proportional to the gradients.
OPTIMIZER = {
  'learning_rate': 0.02,
  'warmup_steps': 0,
  'decay_steps': (),
  'decay_factors': (),
}


def make_model(
  norm='group',
  frozen_stages=0,
  padding='symmetric',
  pool_padding='same',
  **options,
):
  """Mask R-CNN with a ResNet-18, 8 channels wide."""
  proposals = {'pre_nms_top_k': 64, 'post_nms_top_k': 32}
  config = {
    'num_classes': NUM_CLASSES,
    'backbone': {
      'depth': 18,
      'width': 8,
      'norm': norm,
      'norm_epsilon': 1e-5,
      'frozen_stages': frozen_stages,
      'padding': padding,
      'pool_padding': pool_padding,
    },
    'pyramid_channels': 16,
    'max_level': 5,
    'box_channels': 32,
    'mask_channels': 16,
    'mask_convs': 1,
    'train_proposals': proposals,
    'test_proposals': proposals,
    'rpn_targets': {'num_samples': 32},
    'sampling': {'num_rois': 16, 'foreground_fraction': 0.5},
    'roi_align': {'max_level': 5},
    'losses': {'rpn_samples': 32},
  }
  return MaskRCNN.from_config({**config, **options})


def make_state(model, batch, seed=0, **optimizer):
  """Initial state and its optimizer."""
  made = make_optimizer(model, {**OPTIMIZER, **optimizer})
  init = functools.partial(train_state.init_state, model, made, batch)
  return quick.jit(init)(jax.random.key(seed)), made


def make_batch(
  counts=(2, 3),
  seed=0,
  max_instances=4,
  dtype=np.float32,
  canvas=(CANVAS, CANVAS),
):
  """Images of noise with brighter ellipses.

  Args:
    counts: objects of each image.
    seed: image i has the seed (seed, i), so a longer batch begins with the same
      images as a shorter one.
    max_instances: rows of `instances`.
    dtype: of the images.
    canvas: (height, width), at least 48 pixels each.

  Returns:
    The batch of `train_step`, without the fields for the host.
  """
  rows = [
    _make_image(
      np.random.default_rng([seed, i]), count, max_instances, dtype, canvas
    )
    for i, count in enumerate(counts)
  ]
  return jax.tree.map(lambda *x: np.stack(x), *rows)


def _make_image(rng, count, max_instances, dtype, canvas):
  # The last rows and columns are padding.
  height, width = rng.integers(-12, 1, 2) + canvas
  image = np.zeros([*canvas, 3])
  image[:height, :width] = rng.integers(0, 128, [height, width, 3])
  boxes = np.zeros([max_instances, 4], np.float32)
  masks = np.zeros([max_instances, MASK_SIZE, MASK_SIZE], np.uint8)
  classes = np.zeros(max_instances, np.int32)
  rows, columns = np.mgrid[: canvas[0], : canvas[1]] + 0.5
  for index in range(count):
    sides = rng.integers(12, 36, 2)
    start = rng.integers(0, [height - sides[0] + 1, width - sides[1] + 1])
    boxes[index] = [*start, *(start + sides)]
    classes[index] = rng.integers(1, NUM_CLASSES)
    center = start + sides / 2
    inside = _in_ellipse(rows - center[0], columns - center[1], sides)
    image[inside] = 128 + 127 * np.eye(3)[classes[index] - 1]
    cells = (np.arange(MASK_SIZE) + 0.5) / MASK_SIZE - 0.5
    masks[index] = 255 * _in_ellipse(cells[:, None], cells, (1, 1))
  return {
    'images': image.astype(dtype),
    'image_sizes': np.float32([height, width]),
    'instances': {
      'boxes': boxes,
      'classes': classes,
      'masks': masks,
      'valid': np.arange(max_instances) < count,
    },
    'valid': np.bool_(True),
  }


def _in_ellipse(y, x, sides):
  return (y / sides[0]) ** 2 + (x / sides[1]) ** 2 <= 0.25
