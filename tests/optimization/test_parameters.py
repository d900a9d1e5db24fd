"""Groups of parameters: decayed ones, and rates by layer."""

import jax
import pytest

from maskrcnn_jax.optimization import parameters

PARAMS = {
  'backbone': {
    'pos_embed': 0,
    'block1': {
      'norm1': {'scale': 0, 'bias': 0},
      'attention': {'kernel': 0, 'bias': 0, 'rel_pos_h': 0},
    },
  },
  'mask_head': {
    'conv1': {'kernel': 0},
    'norm1': {'scale': 0, 'bias': 0},
    'predictor': {'kernel': 0, 'bias': 0},
  },
}
KERNELS = {
  'backbone/block1/attention/kernel',
  'mask_head/conv1/kernel',
  'mask_head/predictor/kernel',
}
# Without norms and positions.
OTHERS = {
  'backbone/block1/attention/bias',
  'backbone/block1/attention/rel_pos_h',
  'mask_head/predictor/bias',
}
HEAD_NORM = {'mask_head/norm1/scale', 'mask_head/norm1/bias'}


def by_name(tree):
  leaves = jax.tree.leaves_with_path(tree)
  return {'/'.join(key.key for key in path): x for path, x in leaves}


@pytest.mark.parametrize(
  'kind, expected',
  [
    ('kernels', KERNELS),
    ('all_but_norms', KERNELS | OTHERS),
    ('all_but_backbone_norms', KERNELS | OTHERS | HEAD_NORM),
    ('all', set(by_name(PARAMS))),
  ],
)
def test_decayed_parameters(kind, expected):
  found = by_name(parameters.decayed_parameters(PARAMS, kind))
  assert {name for name, decayed in found.items() if decayed} == expected
  assert set(found) == set(by_name(PARAMS))


def test_rates_fall_towards_the_input():
  layers = {('pos_embed',): 0, ('block1', 'norm1', 'scale'): 2}
  found = parameters.rate_factors(PARAMS, 0.5, 3, layers.get)
  found = by_name(found)
  assert found['backbone/pos_embed'] == 0.125
  assert found['backbone/block1/norm1/scale'] == 0.5
  assert sorted(found.values())[2:] == [1.0] * (len(found) - 2)
