"""The mask head of one CPU device, which skips RoIs that are padding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from maskrcnn_jax.distributed import mesh as mesh_lib
from maskrcnn_jax.distributed import model_sharding
from maskrcnn_jax.models import heads
from maskrcnn_jax.models.layout import Layout
from maskrcnn_jax.models.norms import NormOptions

# Foreground RoIs of two images with 32 rows each.
COUNTS = 17, 0


@pytest.mark.parametrize('norm', ['none', 'group', 'batch'])
def test_padding_is_skipped(norm):
  model = tiny_model.make_model(
    sampling={'num_rois': 64, 'foreground_fraction': 0.5},
    head_norm={'kind': norm},
  )
  assert model.head_norm == NormOptions(norm)
  laid_out = model.clone(layout=Layout(mask_head=heads.skip_padding))
  key = jax.random.key(0)
  features = jax.random.normal(key, (2, 32, 14, 14, 16))
  classes = jax.random.randint(key, (2, 32), 0, 4)
  valid = np.arange(32) < np.array(COUNTS)[:, None]

  def head(model, features):
    arguments = features, classes, valid, True
    return model.layout.mask_head(model.mask_head, *arguments)

  variables = jax.jit(nn.init(head, model))(key, features)

  def loss(model, params, features):
    logits, _ = nn.apply(head, model, mutable=['batch_stats'])(
      {**variables, 'params': params}, features
    )
    squares = jnp.sum(jnp.square(logits), where=valid[..., None, None])
    return squares, logits

  results, operations = [], []
  for one in (model, laid_out):
    run = jax.jit(
      jax.value_and_grad(lambda *x, m=one: loss(m, *x), (0, 1), has_aux=True)
    )
    results.append(run(variables['params'], features))
    traced = run.trace(variables['params'], features)
    lowered = traced.lower(lowering_platforms=('tpu',))
    operations.append(lowered.cost_analysis()['flops'])
  # All are counted, as `plan` and `bench` state them.
  assert operations[1] == pytest.approx(operations[0], rel=1e-3)
  ((expected, plain), gradients), ((actual, logits), found) = results
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
  np.testing.assert_allclose(logits[valid], plain[valid], atol=1e-5)

  def compare(actual, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, atol=1e-5 * scale)

  jax.tree.map(compare, found, gradients)
  # Batch norm looks at all rows; other heads compute 32 of the 64.
  assert np.any(logits[1]) == (norm == 'batch')
  assert np.all(np.any(plain[1], axis=(1, 2)))


@pytest.mark.parametrize(
  'sizes, skips',
  [
    # coco; the small model of the demo; where products are in bfloat16.
    ({'mask_size': 14, 'mask_channels': 256, 'dtype': 'float32'}, True),
    ({'mask_size': 10, 'mask_channels': 64, 'dtype': 'float32'}, False),
    ({'mask_size': 14, 'mask_channels': 256, 'dtype': 'bfloat16'}, False),
  ],
)
def test_padding_is_skipped_where_that_is_faster(sizes, skips):
  channels = sizes['mask_channels']
  model = tiny_model.make_model(**sizes, pyramid_channels=channels)
  layout = model_sharding.shard_model(model, mesh_lib.make_mesh(1)).layout
  assert (layout.mask_head is heads.skip_padding) == skips
