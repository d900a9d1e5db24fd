"""Convolution and normalisation layers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models import layers, norms

EPSILON = 1e-4


def activations(batch=3, channels=8, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(batch, 4, 5, channels)) * 2 + 1
  return x.astype(np.float32)


def random_variables(channels, seed=1):
  """Scale, bias, mean and variance that are not the initial ones."""
  rng = np.random.default_rng(seed)
  names = ('scale', 'bias', 'mean', 'variance')
  return {
    name: rng.uniform(0.5, 2.0, channels).astype(np.float32) for name in names
  }


def split(arrays):
  """The variables of a trainable batch norm."""
  params = {name: arrays[name] for name in ('scale', 'bias')}
  stats = {name: arrays[name] for name in ('mean', 'variance')}
  return {'params': params, 'batch_stats': stats}


def affine(x, arrays, mean, variance, epsilon=EPSILON):
  normalized = (x - mean) / np.sqrt(variance + epsilon)
  return normalized * arrays['scale'] + arrays['bias']


def test_frozen_norm_uses_its_four_arrays_and_does_not_learn():
  x, arrays = activations(), random_variables(8)
  norm = norms.Norm('frozen')
  initial = norm.init(jax.random.key(0), x)
  assert set(initial) == {'batch_stats'}
  assert set(initial['batch_stats']) == set(arrays)
  expected = affine(x, arrays, arrays['mean'], arrays['variance'])
  for train in (False, True):
    actual = norm.apply({'batch_stats': arrays}, x, None, train)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
  gradients = jax.grad(lambda y: jnp.sum(norm.apply({'batch_stats': y}, x)))
  for gradient in gradients(arrays).values():
    np.testing.assert_array_equal(gradient, 0.0)


def test_batch_norm_uses_the_moments_of_valid_images():
  x, arrays = activations(), random_variables(8)
  valid = np.array([True, False, True])
  norm = norms.Norm('batch', momentum=0.75)
  actual, updates = norm.apply(
    split(arrays), x, valid, True, mutable=['batch_stats']
  )
  mean, variance = (f(x[valid], axis=(0, 1, 2)) for f in (np.mean, np.var))
  expected = affine(x, arrays, mean, variance)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
  stored = updates['batch_stats']
  for name, moment in {'mean': mean, 'variance': variance}.items():
    np.testing.assert_allclose(
      stored[name], 0.75 * arrays[name] + 0.25 * moment, rtol=1e-5
    )
  actual, _ = norm.apply(split(arrays), x, None, True, mutable=['batch_stats'])
  mean, variance = (f(x, axis=(0, 1, 2)) for f in (np.mean, np.var))
  expected = affine(x, arrays, mean, variance)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_batch_norm_uses_what_it_stored_when_not_training():
  x, arrays = activations(), random_variables(8)
  actual = norms.Norm('batch').apply(split(arrays), x)
  expected = affine(x, arrays, arrays['mean'], arrays['variance'])
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_padding_changes_no_statistics():
  x, arrays = activations(), random_variables(8)
  run = functools.partial(norms.Norm('batch').apply, mutable=['batch_stats'])
  expected = run(split(arrays), x, np.ones(3, bool), True)
  padded = np.concatenate([x, np.full_like(x[:2], 1e3)])
  actual, updates = run(split(arrays), padded, np.arange(5) < 3, True)
  np.testing.assert_allclose(actual[:3], expected[0], rtol=1e-5, atol=1e-5)
  for name, value in expected[1]['batch_stats'].items():
    np.testing.assert_allclose(
      updates['batch_stats'][name], value, rtol=1e-5, atol=1e-6
    )


def test_nothing_but_padding_leaves_statistics_alone():
  x, arrays = activations(), random_variables(8)

  def total(params, x):
    variables = {**split(arrays), 'params': params}
    outputs, updates = norms.Norm('batch').apply(
      variables, x, np.zeros(3, bool), True, mutable=['batch_stats']
    )
    return jnp.sum(jnp.sin(outputs)), updates['batch_stats']

  gradients, stored = jax.grad(total, (0, 1), has_aux=True)(
    split(arrays)['params'], jnp.zeros_like(x)
  )
  for gradient in jax.tree.leaves(gradients):
    assert np.all(np.isfinite(gradient))
  for name in ('mean', 'variance'):
    np.testing.assert_allclose(stored[name], arrays[name], rtol=1e-6)


@pytest.mark.parametrize(
  'channels, group_channels, groups',
  # Detectron2 makes 32 groups of 64 channels.
  [(8, 4, 2), (64, 4, 16), (256, 4, 32), (64, 1, 32)],
)
def test_group_norm_matches_the_definition(channels, group_channels, groups):
  x, arrays = activations(channels=channels), random_variables(channels)
  params = split(arrays)['params']
  norm = norms.Norm('group', group_channels=group_channels)
  actual = norm.apply({'params': params}, x, None, True)
  grouped = x.reshape(3, 4, 5, groups, channels // groups).astype(np.float64)
  mean = grouped.mean(axis=(1, 2, 4), keepdims=True)
  variance = grouped.var(axis=(1, 2, 4), keepdims=True)
  normalized = (grouped - mean) / np.sqrt(variance + EPSILON)
  expected = normalized.reshape(x.shape) * arrays['scale'] + arrays['bias']
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_group_norm_treats_images_alone_and_is_finite_on_zeros():
  x = activations(channels=32)
  params = split(random_variables(32))['params']
  norm = norms.Norm('group')
  together = norm.apply({'params': params}, x)
  alone = norm.apply({'params': params}, x[1:2])
  np.testing.assert_allclose(together[1:2], alone, rtol=1e-5, atol=1e-5)

  def total(x):
    return jnp.sum(jnp.sin(norm.apply({'params': params}, x)))

  assert np.all(np.isfinite(jax.grad(total)(jnp.zeros_like(x))))


def test_layer_norm_matches_the_definition():
  x, arrays = activations(channels=8), random_variables(8)
  params = split(arrays)['params']
  actual = norms.Norm('layer').apply({'params': params}, x, None, True)
  cells = x.astype(np.float64)
  mean = cells.mean(axis=-1, keepdims=True)
  expected = affine(cells, arrays, mean, cells.var(axis=-1, keepdims=True))
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)

  def total(x):
    return jnp.sum(jnp.sin(norms.Norm('layer').apply({'params': params}, x)))

  assert np.all(np.isfinite(jax.grad(total)(jnp.zeros_like(x))))


def test_drop_path_keeps_the_first_block_and_the_mean():
  factors = layers.drop_path_factors(jax.random.key(0), 0.6, 4, 5000)
  assert factors.shape == (4, 2, 5000)
  np.testing.assert_array_equal(factors[0], 1.0)
  for block, rate in enumerate((0.0, 0.2, 0.4, 0.6)):
    kept = factors[block][factors[block] > 0]
    np.testing.assert_allclose(kept, 1 / (1 - rate), rtol=1e-6)
  # Four deviations of the mean of 5000.
  np.testing.assert_allclose(factors.mean(axis=-1), 1.0, atol=0.07)
  assert np.any(factors[3, 0] != factors[3, 1])


@pytest.mark.parametrize('kind', ['frozen', 'batch', 'group', 'layer'])
def test_norms_compute_in_float32_and_give_the_compute_type(kind):
  x = jnp.asarray(activations(channels=32), jnp.bfloat16)
  norm = norms.Norm(kind, dtype='bfloat16')
  variables = norm.init(jax.random.key(0), x)
  for array in jax.tree.leaves(variables):
    assert array.dtype == jnp.float32
  outputs, updates = norm.apply(variables, x, None, True, mutable=True)
  assert outputs.dtype == jnp.bfloat16
  for array in jax.tree.leaves(updates):
    assert array.dtype == jnp.float32


def test_scale_may_start_at_zero():
  norm = norms.Norm('batch', scale_init=jax.nn.initializers.zeros)
  x = activations()
  outputs, _ = norm.init_with_output(jax.random.key(0), x)
  np.testing.assert_array_equal(outputs, 0.0)


def test_frozen_convolution_passes_gradients_but_does_not_learn():
  x = jnp.asarray(activations())

  def total(params, x, frozen):
    conv = layers.Conv(4, size=3, use_bias=False, frozen=frozen)
    return jnp.sum(jnp.square(conv.apply({'params': params}, x)))

  conv = layers.Conv(4, size=3, use_bias=False)
  params = conv.init(jax.random.key(0), x)['params']
  assert params['kernel'].shape == (3, 3, 8, 4)
  learning = jax.grad(total, (0, 1))(params, x, False)
  frozen = jax.grad(total, (0, 1))(params, x, True)
  assert np.any(learning[0]['kernel'])
  np.testing.assert_array_equal(frozen[0]['kernel'], 0.0)
  np.testing.assert_array_equal(frozen[1], learning[1])


def test_convolutions_compute_in_their_type_with_float32_parameters():
  x = activations()
  for layer in (
    layers.Conv(4, size=3, dtype='bfloat16'),
    layers.UpsampleConv(4, dtype='bfloat16'),
  ):
    outputs, variables = layer.init_with_output(jax.random.key(0), x)
    assert outputs.dtype == jnp.bfloat16
    assert set(variables['params']) == {'kernel', 'bias'}
    for array in jax.tree.leaves(variables):
      assert array.dtype == jnp.float32


def test_products_in_bfloat16_between_float32_activations():
  layer = {'kernel': np.ones((1, 1)), 'bias': np.full(1, 2.0**-12)}
  layer = {name: x.astype(np.float32) for name, x in layer.items()}
  conv = {**layer, 'kernel': layer['kernel'][None, None]}
  x = np.full(
    (1, 1, 1, 1), 1.0 + 2.0**-10, np.float32
  )  # Rounds to 1 in bfloat16.
  for dtype, expected in (
    ('float32', 1.0 + 2.0**-10 + 2.0**-12),
    ('bfloat16', 1.0),
    ('bfloat16_products', 1.0 + 2.0**-12),  # Only the factor was rounded.
  ):
    wanted = 'bfloat16' if dtype == 'bfloat16' else 'float32'
    for module, params in (
      (layers.Conv(1, dtype=dtype), conv),
      (layers.Dense(1, dtype=dtype), layer),
    ):
      outputs = module.apply({'params': params}, x)
      assert outputs.dtype == wanted
      assert float(outputs[0, 0, 0, 0]) == expected
    norm = norms.Norm('group', dtype=dtype)
    assert norm.init_with_output(jax.random.key(0), x)[0].dtype == wanted
  with pytest.raises(UserError) as error:
    layers.Conv(1, dtype='half').apply({'params': conv}, x)
  assert error.value.argument == 'model.dtype'
  assert error.value.given == 'half'


def test_errors_name_the_option():
  with pytest.raises(UserError) as error:
    norms.NormOptions('instance')
  assert error.value.argument == 'model.head_norm.kind'
  for kind in ('none', 'frozen', 'batch', 'group', 'layer'):
    assert kind in error.value.wanted
  x = activations(channels=6)
  with pytest.raises(UserError) as error:
    norms.Norm('instance').init(jax.random.key(0), x)
  assert error.value.argument == 'model.backbone.norm'
  assert error.value.given == 'instance'
  x = activations(channels=130)
  with pytest.raises(UserError) as error:
    norms.Norm('group').init(jax.random.key(0), x)
  assert (error.value.given, error.value.wanted) == (130, 32)


@pytest.mark.parametrize(
  'dtype, tolerance', [('float32', 2e-6), ('bfloat16', 2e-2)]
)
def test_gelu_and_its_gradient_by_the_definition(dtype, tolerance):
  x = np.linspace(-9, 9, 181).astype(np.float32)
  shares = np.array([0.5 + 0.5 * math.erf(v / math.sqrt(2)) for v in x])
  density = np.exp(-(x.astype(np.float64) ** 2) / 2) / math.sqrt(2 * math.pi)
  given = jnp.asarray(x, dtype)
  values, vjp = jax.vjp(layers.gelu, given)
  assert values.dtype == dtype
  np.testing.assert_allclose(
    np.float32(values), x * shares, rtol=tolerance, atol=tolerance
  )
  (gradient,) = vjp(jnp.ones_like(given))
  np.testing.assert_allclose(
    np.float32(gradient), shares + x * density, rtol=tolerance, atol=tolerance
  )
