"""Optimizer: SGD by hand, weight decay, frozen parts, rates by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.backbones import BackboneOptions
from maskrcnn_jax.optimization import optimizer, parameters
from maskrcnn_jax.optimization.optimizer import Optimizer, OptimizerOptions

# Parameters with names of the model.
PARAMS = {
  'backbone': {
    'stem': {'conv': {'kernel': np.float32([[1.0, -2.0]])}},
    'stage2': {'block1': {'norm1': {'scale': np.float32([3.0])}}},
  },
  'box_head': {
    'fc6': {
      'kernel': np.float32([[0.5, -1.5], [2.0, 0.25]]),
      'bias': np.float32([0.1, -0.3]),
    }
  },
}
# No warm-up, no decay of the rate, no factor for biases.
PLAIN = {
  'learning_rate': 0.1,
  'warmup_steps': 0,
  'decay_steps': (),
  'decay_factors': (),
  'bias_gradient_factor': 1.0,
}


def assert_near(actual, expected, rtol=1e-6, atol=0.0):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
    actual,
    expected,
  )


def all_of(params, value):
  return jax.tree.map(lambda _: value, params)


def run(options, gradients, trainable=None):
  """Parameters and optimizer state after each of the gradients."""
  trainable = all_of(PARAMS, True) if trainable is None else trainable
  transformation = optimizer.transformation(options, PARAMS, trainable)
  params, state = PARAMS, transformation.init(PARAMS)
  results = []
  for step, gradient in enumerate(gradients):
    updates, state = transformation.update(gradient, state, params, step=step)
    params = optax.apply_updates(params, updates)
    results.append((params, state))
  return results


def draw_gradients(count, seed=0):
  rng = np.random.default_rng(seed)
  return [
    jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), PARAMS)
    for _ in range(count)
  ]


@pytest.mark.parametrize(
  'fields, argument',
  [
    ({'decay_steps': (1, 2), 'decay_factors': (0.1,)}, 'decay_steps'),
    *(({'ema_decay': decay}, 'ema_decay') for decay in (0.0, 1.0, -0.1)),
    ({'layer_decay': 1.0}, 'layer_decay'),
    ({'accumulate_steps': 0}, 'accumulate_steps'),
    *(({name: 'none'}, name) for name in ('kind', 'schedule', 'decayed')),
  ],
)
def test_invalid_options_are_refused(fields, argument):
  with pytest.raises(UserError) as error:
    OptimizerOptions(**fields)
  assert error.value.argument == f'optimizer.{argument}'
  assert error.value.given == fields[argument]


@pytest.mark.parametrize('rate_in_momentum', [False, True])
def test_steps_match_sgd_with_momentum(rate_in_momentum):
  rates = (0.1, 0.01, 0.001)  # The flag matters only where the rate changes.
  options = OptimizerOptions(
    **{
      **PLAIN,
      'decay_steps': (1, 2),
      'decay_factors': (0.1, 0.01),
      'inclusive_decay': False,
      'rate_in_momentum': rate_in_momentum,
    }
  )
  gradients = draw_gradients(3)
  results = run(options, gradients)

  expected = jax.tree.map(np.float64, PARAMS)
  momentum = all_of(PARAMS, 0.0)
  for rate, gradient, (params, _) in zip(rates, gradients, results):
    inner, outer = (rate, 1.0) if rate_in_momentum else (1.0, rate)
    momentum = jax.tree.map(
      lambda m, g, rate=inner: 0.9 * m + rate * g, momentum, gradient
    )
    expected = jax.tree.map(
      lambda w, m, rate=outer: w - rate * m, expected, momentum
    )
    assert_near(params, expected, atol=1e-7)


def test_rate_in_momentum_matters_only_where_the_rate_changes():
  gradients = draw_gradients(3)
  results = [
    run(OptimizerOptions(**PLAIN, rate_in_momentum=flag), gradients)[-1][0]
    for flag in (False, True)
  ]
  assert_near(*results)


def test_only_trainable_kernels_decay():
  trainable = parameters.trainable_parameters(PARAMS, frozen_stages=1)
  loss, gradients = jax.value_and_grad(
    lambda params: optimizer.weight_decay_loss(params, trainable, 0.01)
  )(jax.tree.map(jnp.asarray, PARAMS))
  kernel = PARAMS['box_head']['fc6']['kernel']
  np.testing.assert_allclose(loss, 0.5 * 0.01 * np.sum(kernel**2), rtol=1e-6)
  expected = jax.tree.map(np.zeros_like, PARAMS)
  expected['box_head']['fc6']['kernel'] = 0.01 * kernel
  assert_near(gradients, expected)


def test_only_gradients_of_biases_are_multiplied():
  options = OptimizerOptions(**{**PLAIN, 'bias_gradient_factor': 2.0})
  gradients = jax.tree.map(np.ones_like, PARAMS)
  ((params, _),) = run(options, [gradients])
  moved = jax.tree.map(lambda new, old: np.mean(new - old), params, PARAMS)
  expected = all_of(PARAMS, -0.1)
  expected['box_head']['fc6']['bias'] = -0.2
  assert_near(moved, expected, rtol=1e-5)


@pytest.mark.parametrize(
  'frozen_stages, frozen',
  [(0, set()), (1, {'stem'}), (2, {'stem', 'stage2'})],
)
def test_frozen_stages_are_counted_from_the_stem(frozen_stages, frozen):
  trainable = parameters.trainable_parameters(PARAMS, frozen_stages)
  for stage, flags in trainable['backbone'].items():
    assert jax.tree.leaves(flags) == [stage not in frozen]
  assert all(jax.tree.leaves(trainable['box_head']))


def test_frozen_parameters_have_no_update_and_no_momentum():
  trainable = parameters.trainable_parameters(PARAMS, frozen_stages=2)
  results = run(OptimizerOptions(**PLAIN), draw_gradients(2), trainable)
  params, state = results[-1]
  for old, new in zip(
    jax.tree.leaves(PARAMS['backbone']), jax.tree.leaves(params['backbone'])
  ):
    np.testing.assert_array_equal(old, new)
  assert np.any(
    PARAMS['box_head']['fc6']['kernel'] != params['box_head']['fc6']['kernel']
  )
  # The whole state is the momentum of the head.
  stored = [x.shape for x in jax.tree.leaves(state)]
  head = [x.shape for x in jax.tree.leaves(PARAMS['box_head'])]
  assert sorted(stored) == sorted(head)


@pytest.mark.parametrize('limit, factor', [(1.0, 0.2), (100.0, 1.0)])
def test_clipping_scales_all_gradients(limit, factor):
  gradients = jax.tree.map(np.zeros_like, PARAMS)
  gradients['backbone']['stem']['conv']['kernel'] = np.float32([[3.0, 0.0]])
  gradients['box_head']['fc6']['bias'] = np.float32([0.0, 4.0])  # Norm 5.
  options = OptimizerOptions(**PLAIN, clip_global_norm=limit)
  ((params, _),) = run(options, [gradients])
  expected = jax.tree.map(lambda x, g: x - 0.1 * factor * g, PARAMS, gradients)
  assert_near(params, expected)


def test_clipping_ignores_frozen_gradients():
  trainable = parameters.trainable_parameters(PARAMS, frozen_stages=1)
  gradients = jax.tree.map(np.zeros_like, PARAMS)
  gradients['backbone']['stem']['conv']['kernel'] = np.float32([[3.0, 0.0]])
  gradients['box_head']['fc6']['bias'] = np.float32([0.0, 1.0])
  options = OptimizerOptions(**PLAIN, clip_global_norm=1.0)
  ((params, _),) = run(options, [gradients], trainable)
  np.testing.assert_allclose(
    params['box_head']['fc6']['bias'], [0.1, -0.4], rtol=1e-6
  )


def test_the_rate_follows_the_given_step():
  options = OptimizerOptions(learning_rate=1.0, warmup_steps=10, momentum=0.0)
  transformation = optimizer.transformation(
    options, PARAMS, all_of(PARAMS, True)
  )
  gradients = jax.tree.map(np.ones_like, PARAMS)
  state = transformation.init(PARAMS)
  for step in (3, 3, 7):  # Whatever the number of updates.
    updates, state = transformation.update(gradients, state, PARAMS, step=step)
    kernel = updates['box_head']['fc6']['kernel']
    np.testing.assert_allclose(kernel, -step / 10, rtol=1e-6)


def test_decay_of_sgd_is_in_the_loss_and_that_of_adamw_is_not():
  losses = []
  for kind in optimizer.KINDS:
    options = OptimizerOptions(kind=kind, weight_decay=0.5, decayed='all')
    losses.append(float(Optimizer(options, 1).decay_loss(PARAMS)))
  head = jax.tree.leaves((PARAMS['backbone']['stage2'], PARAMS['box_head']))
  expected = 0.25 * sum(np.sum(np.square(x)) for x in head)
  np.testing.assert_allclose(losses, [expected, 0.0], rtol=1e-6)


def test_rates_by_layer():
  gradients = draw_gradients(1)[0]
  plain = run(OptimizerOptions(**PLAIN), [gradients])[0][0]
  factors = all_of(PARAMS, 1.0)
  factors['backbone'] = all_of(PARAMS['backbone'], 0.25)
  sgd = optimizer.transformation(
    OptimizerOptions(**PLAIN), PARAMS, all_of(PARAMS, True), factors
  )
  updates, _ = sgd.update(gradients, sgd.init(PARAMS), PARAMS, step=0)
  expected = jax.tree.map(
    lambda new, old, factor: factor * (new - old), plain, PARAMS, factors
  )
  assert_near(updates, expected, rtol=1e-5, atol=1e-7)


def test_a_backbone_without_layers_refuses_layer_decay():
  sgd = Optimizer(OptimizerOptions(layer_decay=0.5), 0, BackboneOptions())
  with pytest.raises(UserError) as error:
    sgd.transformation(PARAMS)
  assert error.value.argument == 'optimizer.layer_decay'
