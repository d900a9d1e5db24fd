"""Anchors of a feature pyramid."""

import numpy as np
import pytest

from maskrcnn_jax.ops import anchors as anchor_ops

TORCHVISION = anchor_ops.AnchorOptions(
  aspect_ratios=((2**0.5, 0.5**0.5), (1, 1), (0.5**0.5, 2**0.5)),
  rounded=True,
  centered=False,
  fitted_strides=True,
)


def slow_anchors(canvas, level, options):
  """The definition, one anchor at a time."""
  stride = 2**level
  boxes = []
  for row in range(-(-canvas[0] // stride)):
    for column in range(-(-canvas[1] // stride)):
      y, x = (row + 0.5) * stride, (column + 0.5) * stride
      for octave in range(options.scales_per_octave):
        side = (
          options.scale * stride * 2 ** (octave / options.scales_per_octave)
        )
        for width, height in options.aspect_ratios:
          half = side * np.array([height, width]) / 2
          boxes.append([y - half[0], x - half[1], y + half[0], x + half[1]])
  return np.array(boxes, np.float32)


def test_first_cell_by_hand():
  anchors = anchor_ops.pyramid_anchors(
    (832, 1344), (2,), anchor_ops.AnchorOptions()
  )
  expected = [
    [-14, -14, 18, 18],
    [-9.2, -20.4, 13.2, 24.4],
    [-20.4, -9.2, 24.4, 13.2],
  ]
  np.testing.assert_allclose(anchors[2][:3], expected, rtol=1e-6)


def test_first_cells_of_torchvision_by_hand():
  anchors = anchor_ops.pyramid_anchors((800, 1344), (6,), TORCHVISION)
  expected = [[-181, -362, 181, 362], [-256, -256, 256, 256]]
  np.testing.assert_array_equal(anchors[6][:2], expected)
  # 800 // 13 rows of cells, not 64 pixels.
  np.testing.assert_array_equal(anchors[6][21 * 3], [-120, -362, 242, 362])


@pytest.mark.parametrize('scales_per_octave', [1, 2])
def test_anchors_match_the_definition(scales_per_octave):
  options = anchor_ops.AnchorOptions(scales_per_octave=scales_per_octave)
  anchors = anchor_ops.pyramid_anchors((96, 160), (3, 6), options)
  assert anchor_ops.anchors_per_cell(options) == 3 * scales_per_octave
  for level, boxes in anchors.items():
    expected = slow_anchors((96, 160), level, options)
    np.testing.assert_allclose(boxes, expected, rtol=1e-6)


def test_one_cell_further_is_one_stride_further():
  options = anchor_ops.AnchorOptions()
  anchors = anchor_ops.pyramid_anchors((64, 96), (4,), options)[4]
  grid = anchors.reshape(4, 6, 3, 4)
  down, right = np.diff(grid, axis=0), np.diff(grid, axis=1)
  np.testing.assert_allclose(down - [16, 0, 16, 0], 0.0, atol=1e-4)
  np.testing.assert_allclose(right - [0, 16, 0, 16], 0.0, atol=1e-4)


def test_counts_of_the_habana_canvas():
  anchors = anchor_ops.pyramid_anchors(
    (832, 1344), range(2, 7), anchor_ops.AnchorOptions()
  )
  counts = [len(boxes) for boxes in anchors.values()]
  assert counts == [209664, 52416, 13104, 3276, 819]
  assert all(boxes.dtype == np.float32 for boxes in anchors.values())


def test_empty_canvas_is_refused():
  with pytest.raises(ValueError, match=r'^canvas '):
    anchor_ops.pyramid_anchors((0, 32), (2,), anchor_ops.AnchorOptions())
