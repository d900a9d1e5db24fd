"""Anchors of the trusted implementations."""

import golden_files
import numpy as np
from golden_files import assert_near, swap_axes

from maskrcnn_jax.ops import anchors as anchor_ops

TORCHVISION = anchor_ops.AnchorOptions(
  aspect_ratios=((2**0.5, 0.5**0.5), (1, 1), (0.5**0.5, 2**0.5)),
  rounded=True,
  centered=False,
  fitted_strides=True,
)


@golden_files.each('01_anchors*.npz')
def test_anchors_of_nvidia(recorded):
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
      assert_near(actual, recorded[f'{name}_{key}'], 1e-5, key)
  if 'boxes' in recorded:
    joined = np.concatenate(list(anchors.values()))
    assert_near(joined, recorded['boxes'], 1e-5)


@golden_files.each('ops_anchors*.npz', 'torchvision', r'\d+')
def test_anchors_of_torchvision(recorded):
  size = tuple(int(side) for side in recorded['padded_hw'])
  # Strides of the grids tell the levels.
  first = int(np.log2(recorded['strides_hw'].min()))
  levels = range(first, first + len(recorded['grid_hw']))
  anchors = anchor_ops.pyramid_anchors(size, levels, TORCHVISION)
  counts = [len(boxes) for boxes in anchors.values()]
  np.testing.assert_array_equal(np.cumsum([0, *counts]), recorded['offsets'])
  joined = np.concatenate(list(anchors.values()))
  total = np.sum(joined, axis=0, dtype=np.float64)
  assert_near(total, swap_axes(recorded['sum']), 1e-5)
  if 'anchors' in recorded:
    expected = recorded['anchors']
  else:
    expected = recorded['anchors_at_index']
    joined = joined[recorded['index']]
  np.testing.assert_array_equal(joined, swap_axes(expected))


@golden_files.each('ops_anchors*.npz', 'torchvision')
def test_cells_of_torchvision(recorded):
  for expected in recorded['cell_anchors_default']:
    # The square cell of level 2 is 32 pixels wide.
    level = int(np.log2(expected[1, 2] - expected[1, 0])) - 3
    cells = anchor_ops.cell_anchors(level, TORCHVISION)
    np.testing.assert_array_equal(cells, swap_axes(expected))


@golden_files.each('ops_anchors*.npz', 'torchvision')
def test_any_sizes_and_ratios_of_torchvision(recorded):
  """Cells of several sizes lie in any order on any grid."""
  placed = []
  for level, (rows, columns) in enumerate(((7, 9), (3, 4))):
    cells = []
    for ratio in recorded['odd/aspect_ratios'][level]:
      for side in recorded['odd/sizes'][level]:
        options = anchor_ops.AnchorOptions(
          scale=float(side),
          aspect_ratios=((ratio**-0.5, ratio**0.5),),
          rounded=True,
        )
        cells.append(anchor_ops.cell_anchors(0, options))
    cells = np.concatenate(cells)
    expected = swap_axes(recorded[f'odd/cell_{level}'])
    np.testing.assert_array_equal(cells, expected)
    y = np.arange(rows) * (57 // rows)
    x = np.arange(columns) * (71 // columns)
    placed.append(anchor_ops.place(cells, y, x))
  expected = swap_axes(recorded['odd/anchors_img_57x71_grids_7x9_3x4'])
  np.testing.assert_array_equal(np.concatenate(placed), expected)


@golden_files.each('ops_anchors*.npz', 'detectron2', '.+')
def test_anchors_of_detectron2(recorded):
  """Anchors of any sizes and ratios, from the corner or centre of a cell."""
  ratios = recorded['aspect_ratios']
  for index, stride in enumerate(recorded['strides']):
    cells = []
    for side in recorded[f'sizes_{index}']:
      options = anchor_ops.AnchorOptions(
        scale=float(side),
        aspect_ratios=tuple((ratio**-0.5, ratio**0.5) for ratio in ratios),
      )
      cells.append(anchor_ops.cell_anchors(0, options))
    y, x = (
      (np.arange(-(-side // stride)) + recorded['offset']) * stride
      for side in recorded['padded_hw']
    )
    boxes = anchor_ops.place(np.concatenate(cells), y, x)
    assert_near(boxes, swap_axes(recorded[f'level_{index}']), 1e-5)


@golden_files.each('ops_anchors*.npz', 'detectron2', 'fpn')
def test_pyramid_anchors_of_detectron2(recorded):
  root = 2.0**0.5
  options = anchor_ops.AnchorOptions(
    aspect_ratios=((root, 1 / root), (1.0, 1.0), (1 / root, root)),
    centered=False,
  )
  levels = np.log2(recorded['strides']).astype(int).tolist()
  canvas = recorded['padded_hw'].tolist()
  anchors = anchor_ops.pyramid_anchors(canvas, levels, options)
  for index, boxes in enumerate(anchors.values()):
    assert_near(boxes, swap_axes(recorded[f'level_{index}']), 1e-5)
