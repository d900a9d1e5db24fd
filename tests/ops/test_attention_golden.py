"""Windows and positions of attention against recordings of Detectron2."""

import golden_files
import jax.numpy as jnp
import numpy as np
import recorded_backbones
from golden_files import assert_near

from maskrcnn_jax.ops import attention


@golden_files.each('abs_pos_*.npz', 'vitdet')
def test_absolute_positions(recorded):
  spec = recorded_backbones.description('weights_spec_backbone', 'vitdet')
  tensors = [x for x in spec['tensors'] if x['name'].endswith('pos_embed')]
  (embedding,) = recorded_backbones.vit_formula(
    {**spec, 'tensors': tensors}
  ).values()
  side = int(np.sqrt(embedding.shape[1]))
  grid = embedding[0, 1:].reshape(side, side, -1)
  actual = attention.resize_positions(grid, tuple(recorded['size_hw']))
  channels = recorded['out'].shape[-1]
  assert_near(actual[..., :channels], recorded['out'], 1e-5)
  x = np.asarray(actual, np.float64)
  stats = [x.mean(), x.std(), x.min(), x.max(), np.abs(x).mean()]
  np.testing.assert_allclose(stats, recorded['out_stats'], atol=1e-5)


@golden_files.each('rel_pos_*.npz', 'vitdet')
def test_relative_positions(recorded):
  actual = attention.relative_positions(
    jnp.asarray(recorded['table']),
    int(recorded['q_size']),
    int(recorded['k_size']),
  )
  assert_near(actual, recorded['out'], 1e-5)


@golden_files.each('decomposed_rel_pos_*.npz', 'vitdet')
def test_decomposed_relative_positions(recorded):
  height, width = recorded['size_hw']
  batch, tokens, channels = recorded['q'].shape
  relative = attention.relative_logits(
    jnp.asarray(recorded['q']).reshape(batch, height, width, channels),
    jnp.asarray(recorded['rel_pos_h']),
    jnp.asarray(recorded['rel_pos_w']),
  )
  actual = recorded['attention'] + relative.reshape(batch, tokens, tokens)
  assert_near(actual, recorded['out'], 1e-5)


@golden_files.each('windows_*.npz', 'vitdet')
def test_windows(recorded):
  height, width = (int(n) for n in recorded['size_hw'])
  channels = recorded['windows'].shape[-1]
  x = np.arange(2 * height * width * channels) + 1
  x = x.reshape(2, height, width, channels)
  windows = attention.split_windows(x, recorded['windows'].shape[1])
  np.testing.assert_array_equal(windows, recorded['windows'])
  joined = attention.join_windows(windows, (height, width))
  np.testing.assert_array_equal(joined, x)
