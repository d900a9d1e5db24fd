"""RoIAlign of the trusted implementations."""

import dataclasses

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import assert_near, swap_axes

from maskrcnn_jax.ops import roi_align as op
from maskrcnn_jax.ops.roi_align import RoiAlignOptions

TORCHVISION = RoiAlignOptions(
  samples_per_bin=2,
  max_level=5,
  level_epsilon=1e-6,
  min_side=1.0,
  zero_outside=True,
)
DETECTRON2 = RoiAlignOptions(
  samples_per_bin=2, half_pixel=True, max_level=5, zero_outside=True
)
ALIGN = jax.jit(op.pyramid_roi_align, static_argnums=(2, 3))


def nvidia_pyramid(recorded):
  """Recorded maps by level, and RoIAlign on these levels."""
  levels = golden_files.numbers(recorded, r'features_level(\d+)')
  pyramid = {level: recorded[f'features_level{level}'] for level in levels}
  return pyramid, RoiAlignOptions(min_level=levels[0], max_level=levels[-1])


@golden_files.each('06_roialign*.npz', having='out')
def test_features_of_nvidia(recorded):
  pyramid, options = nvidia_pyramid(recorded)
  size = recorded['out'].shape[2]
  out = ALIGN(pyramid, recorded['boxes'], size, options)
  assert_near(out, recorded['out'], 1e-4)


@golden_files.each('06_roialign*.npz', having='levels')
def test_levels_of_nvidia(recorded):
  _, options = nvidia_pyramid(recorded)
  levels = np.asarray(op.assign_levels(recorded['boxes'], options))
  # On a boundary the recorded logarithm may round either way.
  decided = recorded['level_margin'] >= 1e-5
  np.testing.assert_array_equal(levels[decided], recorded['levels'][decided])


@golden_files.each('06_roialign*.npz', having='cotangent')
def test_gradient_of_nvidia(recorded):
  pyramid, options = nvidia_pyramid(recorded)
  size = recorded['out'].shape[2]

  def loss(pyramid):
    out = op.pyramid_roi_align(pyramid, recorded['boxes'], size, options)
    return jnp.sum(out * recorded['cotangent'])

  for level, gradient in jax.jit(jax.grad(loss))(pyramid).items():
    assert_near(gradient, recorded[f'grad_features_level{level}'], 1e-4)


@pytest.mark.parametrize('samples', [1, 2, 3])
@pytest.mark.parametrize('aligned', [False, True])
@golden_files.each('ops_roi_align*.npz', 'torchvision', '.*')
def test_one_map_of_torchvision(recorded, aligned, samples):
  options = RoiAlignOptions(
    samples_per_bin=samples,
    half_pixel=aligned,
    min_side=0.0 if aligned else 1.0,
    zero_outside=True,
  )
  images = recorded['rois'][:, 0].astype(int)
  boxes = swap_axes(recorded['rois'][:, 1:]) * recorded['spatial_scale']
  boxes = boxes.astype(np.float32)
  size = tuple(int(x) for x in recorded['output_size'])

  def align(features):  # [b, c, h, w]
    maps = features.transpose(0, 2, 3, 1)
    out = jax.vmap(lambda x: op.roi_align(x, boxes, size, options))(maps)
    return out[images, np.arange(len(boxes))].transpose(0, 3, 1, 2)

  name = f'a{int(aligned)}_s{samples}'
  out, pull_back = jax.vjp(jax.jit(align), recorded['features'])
  assert_near(out, recorded[f'out_{name}'], 1e-4)
  if f'grad_{name}' in recorded:
    (gradient,) = pull_back(recorded['cotangent'])
    assert_near(gradient, recorded[f'grad_{name}'], 1e-4)


@golden_files.each('ops_multiscale_roi_align*.npz', 'torchvision', '.*')
def test_pyramid_of_torchvision(recorded):
  first, last = (int(level) for level in recorded['k_min_max'])
  options = dataclasses.replace(TORCHVISION, min_level=first, max_level=last)
  pyramid = {
    level: recorded[f'feat_{level - first}'].transpose(0, 2, 3, 1)
    for level in range(first, last + 1)
  }
  num_images = len(recorded['image_shapes'])
  boxes = np.stack([recorded[f'boxes_{i}'] for i in range(num_images)])
  boxes = swap_axes(boxes)
  expected = recorded['out'].transpose(0, 2, 3, 1)
  # torchvision has no level for a box of negative area, and returns zeros.
  known = (recorded['levels'] >= 0) & (recorded['levels'] <= last - first)
  levels = np.ravel(op.assign_levels(boxes, options)) - first
  np.testing.assert_array_equal(levels[known], recorded['levels'][known])
  out = ALIGN(pyramid, boxes, expected.shape[1], options)
  assert_near(np.reshape(out, expected.shape)[known], expected[known], 1e-4)


@pytest.mark.parametrize('samples', [1, 2, 3])
@golden_files.each('ops_roi_align*.npz', 'detectron2')
def test_one_map_of_detectron2(recorded, samples):
  check_one_map(
    recorded,
    RoiAlignOptions(
      samples_per_bin=samples, half_pixel=True, zero_outside=True
    ),
    f's{samples}',
  )


@golden_files.each('ops_roi_align*.npz', 'detectron2')
def test_adaptive_sampling_of_detectron2(recorded):
  """Also of boxes that are outside, empty or inverted; values and gradients."""
  bins = recorded['output_size']
  side = int(np.max(recorded['adaptive_grid_hw'] * bins))
  options = dataclasses.replace(DETECTRON2, adaptive_side=side)
  check_one_map(recorded, options, 's0')


def check_one_map(recorded, options, name):
  """Compares values and, if they are recorded, gradients of one map."""
  images = recorded['rois'][:, 0].astype(int)
  boxes = swap_axes(recorded['rois'][:, 1:]) * recorded['spatial_scale']
  boxes = boxes.astype(np.float32)
  size = tuple(recorded['output_size'].tolist())

  def align(features):  # [b, c, h, w]
    maps = features.transpose(0, 2, 3, 1)
    out = jax.vmap(lambda x: op.roi_align(x, boxes, size, options))(maps)
    return out[images, np.arange(len(boxes))].transpose(0, 3, 1, 2)

  out, pull_back = jax.vjp(jax.jit(align), recorded['features'])
  decided = are_decided(boxes, size, recorded['features'].shape[2:], options)
  assert np.mean(decided) > 0.9
  decided = decided[:, None]
  expected = np.where(decided, recorded[f'out_{name}'], 0.0)
  assert_near(np.where(decided, out, 0.0), expected, 1e-5)
  if f'grad_{name}' in recorded:
    (gradient,) = pull_back(recorded['cotangent'])
    assert_near(gradient, recorded[f'grad_{name}'], 1e-5)


def are_decided(boxes, size, map_size, options):
  """Bins `[n, rows, columns]` without a sample exactly a cell outside the map.

  There a sample jumps to zero, and rounding decides.
  """
  decided = []
  for axis, number in enumerate(size):
    samples = number * options.samples_per_bin
    places = (np.arange(samples) + 0.5) / samples
    starts, ends = boxes[:, axis, None], boxes[:, axis + 2, None]
    positions = starts + places * (ends - starts) - 0.5 * options.half_pixel
    distances = np.abs(positions[..., None] - [-1.0, map_size[axis]])
    is_far = np.all(distances > 1e-5, axis=-1)
    decided.append(is_far.reshape(len(boxes), number, -1).all(axis=-1))
  return decided[0][:, :, None] & decided[1][:, None, :]


@golden_files.each('ops_roi_pooler*.npz', 'detectron2')
def test_pyramid_of_detectron2(recorded):
  check_pyramid(recorded, DETECTRON2, 's2')
  options = dataclasses.replace(DETECTRON2, adaptive_side=35)
  check_pyramid(recorded, options, 's0')


def check_pyramid(recorded, options, name):
  """Compares levels and features of boxes on a pyramid."""
  pyramid = {
    level: recorded[f'feat_p{level}'].transpose(0, 2, 3, 1)
    for level in range(2, 6)
  }
  images = golden_files.numbers(recorded, r'boxes_(\d+)')
  boxes = swap_axes(np.stack([recorded[f'boxes_{image}'] for image in images]))
  levels = np.ravel(op.assign_levels(boxes, options))
  np.testing.assert_array_equal(levels - 2, recorded['levels'])
  expected = recorded[f'out_{name}'].transpose(0, 2, 3, 1)
  out = ALIGN(pyramid, boxes, expected.shape[1], options)
  assert_near(np.reshape(out, expected.shape), expected, 1e-5)


@golden_files.each('ops_assign_levels*.npz', 'detectron2')
def test_levels_of_detectron2(recorded):
  levels = op.assign_levels(swap_axes(recorded['boxes']), DETECTRON2)
  # Within 1e-6 of a border the recorded logarithm may round either way.
  decided = ~recorded['near_threshold']
  assert np.mean(decided) > 0.5
  np.testing.assert_array_equal(
    np.asarray(levels)[decided] - 2, recorded['levels_2_5'][decided]
  )
