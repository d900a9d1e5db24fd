"""RoIAlign of the trusted implementations.

torchvision's adaptive sampling (`sampling_ratio=0`, as many samples as a bin
has cells) is not offered: shapes would depend on values, and of all models here
only torchvision's soft mask targets use it.
"""

import dataclasses

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.ops import roi_align as op
from maskrcnn_jax.ops.roi_align import RoiAlignOptions

TOLERANCE = 1e-4
TORCHVISION = RoiAlignOptions(
  samples_per_bin=2,
  max_level=5,
  level_epsilon=1e-6,
  min_side=1.0,
  zero_outside=True,
)
ALIGN = jax.jit(op.pyramid_roi_align, static_argnums=(2, 3))


def groups(pattern):
  """(name, arrays) of every numbered group in torchvision's recordings."""
  found = []
  for path in golden_files.files(pattern, 'torchvision'):
    arrays = golden_files.load(path)
    for number in sorted({name.split('/')[0] for name in arrays}):
      group = {
        name.split('/', 1)[1]: value
        for name, value in arrays.items()
        if name.startswith(f'{number}/')
      }
      found.append(pytest.param(group, id=f'{path.stem}-{number}'))
  return found


def nvidia_files(array):
  """NVIDIA's recordings that hold an array of that name."""
  found = []
  for path in golden_files.files('06_roialign*.npz'):
    if array in golden_files.load(path):
      found.append(pytest.param(path, id=path.stem))
  return found


def nvidia_pyramid(golden):
  levels = golden_files.numbers(golden, r'features_level(\d+)')
  return {level: golden[f'features_level{level}'] for level in levels}


def options_of(golden):
  """RoIAlign on the recorded levels."""
  levels = golden_files.numbers(golden, r'features_level(\d+)')
  return RoiAlignOptions(min_level=levels[0], max_level=levels[-1])


@pytest.mark.parametrize('path', nvidia_files('out'))
def test_features_of_nvidia(path):
  golden = golden_files.load(path)
  size = golden['out'].shape[2]
  pyramid = nvidia_pyramid(golden)
  out = ALIGN(pyramid, golden['boxes'], size, options_of(golden))
  assert golden_files.relative_error(out, golden['out']) <= TOLERANCE


@pytest.mark.parametrize('path', nvidia_files('levels'))
def test_levels_of_nvidia(path):
  golden = golden_files.load(path)
  levels = op.assign_levels(golden['boxes'], options_of(golden))
  levels = np.asarray(levels)
  # On a boundary the recorded logarithm may round either way.
  decided = golden['level_margin'] >= 1e-5
  np.testing.assert_array_equal(levels[decided], golden['levels'][decided])


@pytest.mark.parametrize('path', nvidia_files('cotangent'))
def test_gradient_of_nvidia(path):
  golden = golden_files.load(path)
  size = golden['out'].shape[2]

  def loss(pyramid):
    out = op.pyramid_roi_align(
      pyramid, golden['boxes'], size, options_of(golden)
    )
    return jnp.sum(out * golden['cotangent'])

  for level, gradient in jax.jit(jax.grad(loss))(
    nvidia_pyramid(golden)
  ).items():
    recorded = golden[f'grad_features_level{level}']
    assert golden_files.relative_error(gradient, recorded) <= TOLERANCE


@pytest.mark.parametrize('samples', [1, 2, 3])
@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('golden', groups('ops_roi_align*.npz'))
def test_one_map_of_torchvision(golden, aligned, samples):
  options = RoiAlignOptions(
    samples_per_bin=samples,
    half_pixel=aligned,
    min_side=0.0 if aligned else 1.0,
    zero_outside=True,
  )
  images = golden['rois'][:, 0].astype(int)
  boxes = golden['rois'][:, [2, 1, 4, 3]] * golden['spatial_scale']
  boxes = boxes.astype(np.float32)
  size = tuple(int(x) for x in golden['output_size'])

  def align(features):  # [b, c, h, w]
    maps = features.transpose(0, 2, 3, 1)
    out = jax.vmap(lambda x: op.roi_align(x, boxes, size, options))(maps)
    return out[images, np.arange(len(boxes))].transpose(0, 3, 1, 2)

  name = f'a{int(aligned)}_s{samples}'
  out = jax.jit(align)(golden['features'])
  recorded = golden[f'out_{name}']
  assert golden_files.relative_error(out, recorded) <= TOLERANCE
  if f'grad_{name}' not in golden:
    return

  def loss(features):
    return jnp.sum(align(features) * golden['cotangent'])

  gradient = jax.jit(jax.grad(loss))(golden['features'])
  recorded = golden[f'grad_{name}']
  assert golden_files.relative_error(gradient, recorded) <= TOLERANCE


@pytest.mark.parametrize('golden', groups('ops_multiscale_roi_align*.npz'))
def test_pyramid_of_torchvision(golden):
  first, last = (int(level) for level in golden['k_min_max'])
  options = dataclasses.replace(TORCHVISION, min_level=first, max_level=last)
  pyramid = {
    level: golden[f'feat_{level - first}'].transpose(0, 2, 3, 1)
    for level in range(first, last + 1)
  }
  num_images = len(golden['image_shapes'])
  boxes = np.stack([golden[f'boxes_{i}'] for i in range(num_images)])
  boxes = boxes[..., [1, 0, 3, 2]]
  recorded = golden['out'].transpose(0, 2, 3, 1)
  # torchvision has no level for a box of negative area, and returns zeros.
  known = (golden['levels'] >= 0) & (golden['levels'] <= last - first)
  levels = np.ravel(op.assign_levels(boxes, options))
  np.testing.assert_array_equal(levels[known] - first, golden['levels'][known])
  out = ALIGN(pyramid, boxes, recorded.shape[1], options)
  out = np.reshape(out, recorded.shape)
  error = golden_files.relative_error(out[known], recorded[known])
  assert error <= TOLERANCE
