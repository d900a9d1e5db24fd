"""Adaptive sampling of RoIAlign against its definition in loops."""

import dataclasses
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.ops import roi_align as op
from maskrcnn_jax.ops.roi_align import RoiAlignOptions

DATA = pathlib.Path(os.environ.get('MASKRCNN_TEST_DATA', 'missing'))
OPTIONS = RoiAlignOptions(
  adaptive_side=35, half_pixel=True, max_level=5, zero_outside=True
)
# In cells of a map of 40 x 44.
BOXES = np.array(
  [
    [1.0, 1.0, 8.0, 8.0],  # One sample per bin.
    [0.3, 2.2, 16.9, 24.1],
    [0.0, 0.0, 40.0, 21.5],  # The whole height.
    [2.0, 0.5, 5.0, 43.5],  # Long and narrow.
    [0.0, 0.0, 0.0, 0.0],  # Padding.
    [3.0, 3.0, 3.0, 9.0],  # Without height.
    [3.0, 3.0, 3.4, 3.2],  # Less than a cell.
    [15.0, 16.0, 2.0, 1.0],  # Inverted.
    [-14.1, -3.2, 12.3, 13.1],  # Outside at the start ...
    [25.1, 27.2, 52.1, 54.3],  # ... and at the end.
    [60.0, 60.0, 70.0, 70.0],  # Wholly outside.
    [39.0, 43.0, 40.0, 44.0],  # The last cell.
  ],
  np.float32,
)


def by_definition(features, boxes, size, half_pixel=True, min_side=0.0):
  """ceil(side / bins) samples along an axis, in loops and float64."""
  shift = 0.5 * half_pixel
  height, width, channels = features.shape
  out = np.zeros((len(boxes), size, size, channels))
  for n, (y1, x1, y2, x2) in enumerate(boxes.astype(np.float64)):
    sides = [max(y2 - y1, min_side), max(x2 - x1, min_side)]
    counts = [max(int(np.ceil(side / size)), 0) for side in sides]
    for row, column in np.ndindex(size, size):
      for i, j in np.ndindex(*counts):
        y = y1 - shift + (row + (i + 0.5) / counts[0]) * sides[0] / size
        x = x1 - shift + (column + (j + 0.5) / counts[1]) * sides[1] / size
        if not (-1 <= y <= height and -1 <= x <= width):
          continue
        y, x = (
          np.clip(place, 0, length - 1)
          for place, length in ((y, height), (x, width))
        )
        top, left = int(y), int(x)
        below, right = min(top + 1, height - 1), min(left + 1, width - 1)
        upper, lower = (
          features[k, left] * (1 - x + left) + features[k, right] * (x - left)
          for k in (top, below)
        )
        out[n, row, column] += upper * (1 - y + top) + lower * (y - top)
    out[n] /= max(np.prod(counts), 1)
  return out


def random_map(height=40, width=44, channels=2, seed=0):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((height, width, channels)).astype(np.float32)


@pytest.mark.parametrize('size', [7, 14])
@pytest.mark.parametrize(
  'options',
  [OPTIONS, dataclasses.replace(OPTIONS, half_pixel=False, min_side=1.0)],
  ids=['aligned', 'not_aligned'],
)
def test_values_match_the_definition(size, options):
  features = random_map()
  out = jax.jit(op.roi_align, static_argnums=(2, 3))(
    features, BOXES, size, options
  )
  expected = by_definition(
    features, BOXES, size, options.half_pixel, options.min_side
  )
  np.testing.assert_allclose(out, expected, atol=5e-5)


def test_gradient_matches_the_definition():
  features = random_map(12, 14, 1)
  boxes = BOXES * np.float32(0.3)
  options = dataclasses.replace(OPTIONS, adaptive_side=16)
  cotangent = random_map(len(boxes), 9, 1, seed=1).reshape(-1, 3, 3, 1)
  _, pull_back = jax.vjp(lambda x: op.roi_align(x, boxes, 3, options), features)
  # RoIAlign is linear: on an identity it shows every cell's weight.
  identity = np.eye(features.size).reshape(12, 14, -1)
  weights = by_definition(identity, boxes, 3)
  expected = np.einsum('nijp,nijc->pc', weights, cotangent)
  (gradient,) = pull_back(cotangent)
  np.testing.assert_allclose(
    gradient, expected.reshape(features.shape), atol=2e-5
  )


def test_long_boxes_are_exact_up_to_the_area_of_the_option():
  """Along one axis they may take far more samples than a square box."""
  features = random_map(100, 100)
  boxes = np.array(
    [
      [3.0, 2.0, 83.0, 11.0],  # 12 x 2 samples.
      [2.0, 3.0, 10.5, 73.0],  # 2 x 10 samples.
      [1.0, 1.0, 57.5, 14.5],
      [5.0, 5.0, 40.0, 40.0],
    ],
    np.float32,
  )
  options = dataclasses.replace(OPTIONS, adaptive_side=40)
  out = op.roi_align(features, boxes, 7, options)
  np.testing.assert_allclose(out, by_definition(features, boxes, 7), atol=5e-5)


def test_larger_boxes_take_fewer_samples():
  """They stay means over their bins: constants and ramps are kept."""
  y, x = np.mgrid[:200, :200].astype(np.float32)
  features = np.stack([np.ones_like(y), y, x], axis=-1)
  boxes = np.array(
    [[0, 0, 200, 200], [10, 20, 150, 190], [5, 5, 195, 30]], np.float32
  )
  out = op.roi_align(features, boxes, 7, OPTIONS)
  expected = by_definition(features, boxes, 7)
  np.testing.assert_allclose(out[..., 0], 1.0, atol=1e-5)
  # A sample is taken at the nearest cell.
  np.testing.assert_allclose(out, expected, atol=0.5)


@pytest.mark.skipif(not DATA.is_dir(), reason='MASKRCNN_TEST_DATA is not set.')
def test_boxes_of_coco_that_take_fewer_samples():
  """No object at 800 x 1333, and few of 20 boxes around each.

  Every side of these is moved at random by up to a fifth of the box.
  """
  sides = []
  for path in DATA.glob('coco-mini/annotations/instances_*.json'):
    content = json.loads(path.read_text())
    sizes = {x['id']: (x['height'], x['width']) for x in content['images']}
    for x in content['annotations']:
      size = sizes[x['image_id']]
      scale = min(800 / min(size), 1333 / max(size))
      if not x['iscrowd']:
        sides.append(np.array(x['bbox'][2:]) * scale)
  sides = np.array(sides)
  assert len(sides) == 1405
  rng = np.random.default_rng(0)
  first, last = rng.uniform(-0.2, 0.2, (2, 20, *sides.shape))
  around = sides * (1 + last - first)
  assert share_of_large(sides, 7) == share_of_large(sides, 14) == 0
  assert share_of_large(around, 7) == pytest.approx(0.0021, abs=5e-5)
  assert share_of_large(around, 14) == pytest.approx(0.0002, abs=5e-5)


def share_of_large(sides, bins):
  """Share of boxes whose bins cover more cells than `OPTIONS` allow."""
  level = 4 + np.log2(np.sqrt(np.prod(sides, axis=-1)) / 224)
  strides = 2.0 ** np.clip(np.floor(level), 2, 5)
  cells = np.ceil(sides / strides[..., None] / bins) + 1
  most = (np.ceil(OPTIONS.adaptive_side / bins) + 1) ** 2
  return np.mean(np.prod(cells, axis=-1) > most)


def test_pyramid_takes_every_box_from_its_level():
  rng = np.random.default_rng(0)
  pyramid = {
    level: rng.standard_normal((2, 512 >> level, 640 >> level, 2), np.float32)
    for level in range(2, 6)
  }
  corners = np.sort(rng.uniform(0, 512, (2, 12, 2, 2)), axis=-2)
  boxes = corners.reshape(2, 12, 4).astype(np.float32)
  boxes[:, :5] *= np.float32(0.2)
  boxes[:, -1] = 0.0
  out = jax.jit(op.pyramid_roi_align, static_argnums=(2, 3))(
    pyramid, boxes, 7, OPTIONS
  )
  levels = np.asarray(op.assign_levels(boxes, OPTIONS))
  assert len({*levels.flat}) > 2
  for image, n in np.ndindex(*levels.shape):
    level = int(levels[image, n])
    box = boxes[image, n][None] / np.float32(2**level)
    expected = by_definition(pyramid[level][image], box, 7)
    np.testing.assert_allclose(out[image, n], expected[0], atol=1e-4)


def test_padding_is_zero_with_a_finite_gradient():
  features = random_map()
  boxes = np.zeros((3, 4), np.float32)

  def total(features, boxes):
    return jnp.sum(op.roi_align(features, boxes, 7, OPTIONS))

  assert not np.any(op.roi_align(features, boxes, 7, OPTIONS))
  for gradient in jax.grad(total, (0, 1))(features, boxes):
    np.testing.assert_array_equal(gradient, 0.0)


def test_far_outside_is_finite():
  boxes = np.array(
    [[-1e9, -1e9, -1e8, -1e8], [1e9, 1e9, 1e10, 1e10], [0, 0, 1e12, 1e12]],
    np.float32,
  )
  out = op.roi_align(random_map(), boxes, 7, OPTIONS)
  assert np.all(np.isfinite(out))


def test_wrong_options_are_refused():
  for fields, name in (
    ({'adaptive_side': 0}, 'adaptive_side'),
    ({'zero_outside': False}, 'zero_outside'),
  ):
    with pytest.raises(UserError) as error:
      dataclasses.replace(OPTIONS, **fields)
    assert error.value.argument == f'model.roi_align.{name}'
