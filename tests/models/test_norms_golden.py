"""Norms of the trusted implementations."""

import golden_files
import jax
import numpy as np
import pytest
from golden_files import assert_near

from maskrcnn_jax.models import norms

# Our norm, the collection of its arrays, and their names there.
NAMES = {'scale': 'weight', 'bias': 'bias'}
STATISTICS = {'mean': 'running_mean', 'variance': 'running_var'}
NORMS = {
  'LN': (norms.Norm('layer', 1e-6), 'params', NAMES),
  'GN': (norms.Norm('group', 1e-5, group_channels=1), 'params', NAMES),
  'FrozenBN': (
    norms.Norm('frozen', 1e-5),
    'batch_stats',
    NAMES | STATISTICS,
  ),
}


@pytest.mark.parametrize('kind', NORMS)
@golden_files.each('ops_norms*.npz', 'detectron2')
def test_norms_of_detectron2(recorded, kind):
  """Layer norm, group norm of 32 groups, frozen batch norm, with gradients."""
  norm, collection, names = NORMS[kind]
  arrays = {ours: recorded[f'{kind}/{name}'] for ours, name in names.items()}

  def channels_last(name):
    return np.moveaxis(recorded[name], 1, -1)

  out, pull_back = jax.vjp(
    lambda x: norm.apply({collection: arrays}, x), channels_last('x')
  )
  assert_near(out, channels_last(f'{kind}/out'), 1e-5)
  (gradient,) = pull_back(channels_last('cotangent'))
  assert_near(gradient, channels_last(f'{kind}/grad'), 1e-5)
