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
  params = golden_files.params(recorded)
  options = anchor_ops.AnchorOptions(
    scale=params['anchor_scale'],
    scales_per_octave=params['num_scales'],
    aspect_ratios=tuple(map(tuple, params['aspect_ratios'])),
  )
  anchors = anchor_ops.pyramid_anchors(
    params['image_size'], golden_files.levels(recorded), options
  )
  levels = golden_files.numbers(recorded, r'level(\d+)_count')
  assert [*anchors] == levels
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


TORCHVISION_FILES = [
  pytest.param(golden_files.load(path), id=path.stem)
  for path in golden_files.files('ops_anchors*.npz', 'torchvision')
]


@pytest.fixture(name='torchvision', params=TORCHVISION_FILES)
def fixture_torchvision(request):
  return request.param


@pytest.mark.parametrize(
  'torchvision, canvas',
  [
    pytest.param(*file.values, number, id=f'{file.id}-{number}')
    for file in TORCHVISION_FILES
    for number in golden_files.numbers(*file.values, r'(\d+)/padded_hw')
  ],
)
def test_anchors_of_torchvision(torchvision, canvas):
  recorded = {
    key.split('/')[1]: value
    for key, value in torchvision.items()
    if key.startswith(f'{canvas}/')
  }
  size = tuple(int(side) for side in recorded['padded_hw'])
  # Strides of the grids tell the levels.
  first = int(np.log2(recorded['strides_hw'].min()))
  levels = range(first, first + len(recorded['grid_hw']))
  anchors = anchor_ops.pyramid_anchors(size, levels, TORCHVISION)
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
  for expected in torchvision['cell_anchors_default']:
    # The square cell of level 2 is 32 pixels wide.
    level = int(np.log2(expected[1, 2] - expected[1, 0])) - 3
    cells = anchor_ops.cell_anchors(level, TORCHVISION)
    np.testing.assert_array_equal(cells, swap_axes(expected))


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
