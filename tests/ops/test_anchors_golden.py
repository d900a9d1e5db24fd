"""Anchors of the trusted implementations."""

import golden_files
import numpy as np
import pytest

from maskrcnn_jax.ops import anchors as anchor_ops

TORCHVISION = anchor_ops.AnchorOptions(
  aspect_ratios=((2**0.5, 0.5**0.5), (1, 1), (0.5**0.5, 2**0.5)),
  rounded=True,
  centered=False,
  fitted_strides=True,
)


def swap_axes(boxes):
  """(x1, y1, x2, y2) to (y1, x1, y2, x2)."""
  return boxes[..., [1, 0, 3, 2]]


@pytest.mark.parametrize(
  'path', golden_files.files('01_anchors*.npz'), ids=lambda path: path.stem
)
def test_anchors_of_nvidia(path):
  recorded = golden_files.load(path)
  rows, columns, channels = recorded['level2_grid_shape']
  options = anchor_ops.AnchorOptions(scales_per_octave=int(channels) // (4 * 3))
  anchors = anchor_ops.pyramid_anchors(
    (4 * int(rows), 4 * int(columns)), range(2, 7), options
  )
  for level, boxes in anchors.items():
    name = f'level{level}'
    num = len(boxes)
    assert num == recorded[f'{name}_count']
    assert num * 4 == np.prod(recorded[f'{name}_grid_shape'])
    double = boxes.astype(np.float64)
    places = np.arange(1, num + 1)[:, None] / num
    for key, actual in {
      'first64': boxes[:64],
      'last64': boxes[-64:],
      'sum_f64': np.sum(double, axis=0),
      'wsum_f64': np.sum(double * places, axis=0),
      'sumsq_f64': np.sum(double**2, axis=0),
    }.items():
      expected = recorded[f'{name}_{key}']
      assert golden_files.relative_error(actual, expected) <= 1e-5, key
  if 'boxes' in recorded:
    joined = np.concatenate(list(anchors.values()))
    assert golden_files.relative_error(joined, recorded['boxes']) <= 1e-5


@pytest.fixture(name='torchvision', scope='module')
def fixture_torchvision():
  (path,) = golden_files.files('ops_anchors.npz', 'torchvision')
  return golden_files.load(path)


@pytest.mark.parametrize('canvas', range(5))
def test_anchors_of_torchvision(torchvision, canvas):
  recorded = {
    key.split('/')[1]: value
    for key, value in torchvision.items()
    if key.startswith(f'{canvas}/')
  }
  size = tuple(int(side) for side in recorded['padded_hw'])
  anchors = anchor_ops.pyramid_anchors(size, range(2, 7), TORCHVISION)
  counts = [len(boxes) for boxes in anchors.values()]
  np.testing.assert_array_equal(np.cumsum([0, *counts]), recorded['offsets'])
  joined = np.concatenate(list(anchors.values()))
  total = np.sum(joined, axis=0, dtype=np.float64)
  assert golden_files.relative_error(total, swap_axes(recorded['sum'])) <= 1e-5
  if 'anchors' in recorded:
    expected = recorded['anchors']
  else:
    expected = recorded['anchors_at_index']
    joined = joined[recorded['index']]
  np.testing.assert_array_equal(joined, swap_axes(expected))


def test_cells_of_torchvision(torchvision):
  for row, level in enumerate(range(2, 7)):
    cells = anchor_ops.cell_anchors(level, TORCHVISION)
    expected = swap_axes(torchvision['cell_anchors_default'][row])
    np.testing.assert_array_equal(cells, expected)


def test_any_sizes_and_ratios_of_torchvision(torchvision):
  """Cells of several sizes lie in any order on any grid."""
  placed = []
  grids = ((7, 9), (3, 4))
  for level, (rows, columns) in enumerate(grids):
    cells = []
    for ratio in torchvision['odd/aspect_ratios'][level]:
      for side in torchvision['odd/sizes'][level]:
        options = anchor_ops.AnchorOptions(
          scale=float(side),
          aspect_ratios=((ratio**-0.5, ratio**0.5),),
          rounded=True,
        )
        cells.append(anchor_ops.cell_anchors(0, options))
    cells = np.concatenate(cells)
    expected = swap_axes(torchvision[f'odd/cell_{level}'])
    np.testing.assert_array_equal(cells, expected)
    y = np.arange(rows) * (57 // rows)
    x = np.arange(columns) * (71 // columns)
    placed.append(anchor_ops.place(cells, y, x))
  expected = swap_axes(torchvision['odd/anchors_img_57x71_grids_7x9_3x4'])
  np.testing.assert_array_equal(np.concatenate(placed), expected)
