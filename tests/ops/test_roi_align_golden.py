"""RoIAlign against recordings of the seed's parent and of torchvision.

torchvision's adaptive sampling (`sampling_ratio=0`, as many samples as a bin
has cells) is not offered: shapes would depend on values, and of all models here
only torchvision's soft mask targets use it.
"""

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


def seed_files(array):
  """The seed's recordings that hold an array of that name."""
  found = []
  for path in golden_files.files('06_roialign*.npz'):
    if array in golden_files.load(path):
      found.append(pytest.param(path, id=path.stem))
  return found


def seed_pyramid(golden):
  return {level: golden[f'features_level{level}'] for level in range(2, 7)}


@pytest.mark.parametrize('path', seed_files('out'))
def test_seed_forward(path):
  golden = golden_files.load(path)
  size = golden['out'].shape[2]
  out = ALIGN(seed_pyramid(golden), golden['boxes'], size, RoiAlignOptions())
  assert golden_files.relative_error(out, golden['out']) <= TOLERANCE


@pytest.mark.parametrize('path', seed_files('levels'))
def test_seed_levels(path):
  golden = golden_files.load(path)
  levels = np.asarray(op.assign_levels(golden['boxes']))
  # On a boundary the recorded logarithm may round either way.
  decided = golden['level_margin'] >= 1e-5
  np.testing.assert_array_equal(levels[decided], golden['levels'][decided])


@pytest.mark.parametrize('path', seed_files('cotangent'))
def test_seed_gradient(path):
  golden = golden_files.load(path)
  size = golden['out'].shape[2]

  def loss(pyramid):
    out = op.pyramid_roi_align(pyramid, golden['boxes'], size)
    return jnp.sum(out * golden['cotangent'])

  for level, gradient in jax.jit(jax.grad(loss))(seed_pyramid(golden)).items():
    recorded = golden[f'grad_features_level{level}']
    assert golden_files.relative_error(gradient, recorded) <= TOLERANCE


@pytest.mark.parametrize('samples', [1, 2, 3])
@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('golden', groups('ops_roi_align.npz'))
def test_torchvision_one_map(golden, aligned, samples):
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


@pytest.mark.parametrize('golden', groups('ops_multiscale_roi_align.npz'))
def test_torchvision_pyramid(golden):
  pyramid = {
    level: golden[f'feat_{level - 2}'].transpose(0, 2, 3, 1)
    for level in range(2, 6)
  }
  num_images = len(pyramid[2])
  boxes = np.stack([golden[f'boxes_{i}'] for i in range(num_images)])
  boxes = boxes[..., [1, 0, 3, 2]]
  recorded = golden['out'].transpose(0, 2, 3, 1)
  # torchvision has no level for a box of negative area, and returns zeros.
  known = (golden['levels'] >= 0) & (golden['levels'] <= 3)
  levels = np.ravel(op.assign_levels(boxes, TORCHVISION))
  np.testing.assert_array_equal(levels[known] - 2, golden['levels'][known])
  out = ALIGN(pyramid, boxes, recorded.shape[1], TORCHVISION)
  out = np.reshape(out, recorded.shape)
  error = golden_files.relative_error(out[known], recorded[known])
  assert error <= TOLERANCE
