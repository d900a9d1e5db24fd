"""Optimizer: recorded schedules, SGD by hand, weight decay, frozen parts."""

import json

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.training import optimizer
from maskrcnn_jax.training.optimizer import OptimizerOptions

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
  transformation = optimizer.sgd(options, trainable)
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


def recorded_schedule(recording):
  """Options of a recorded schedule, from the values in the file."""
  values = recording['values']
  boundaries = [int(step) for step in recording['boundaries']]
  params = json.loads(str(recording['meta']))['params']
  if 'init_value' in params:
    # NVIDIA: warm-up is its first interval; rates are for one image.
    scale = params['local_batch_size']
    return OptimizerOptions(
      learning_rate=float(values[0]) * scale,
      warmup_steps=boundaries[0],
      warmup_learning_rate=params['init_value'] * scale,
      decay_steps=tuple(boundaries[1:]),
      decay_factors=tuple(float(x / values[0]) for x in values[1:]),
      inclusive_decay=False,
    )
  return OptimizerOptions(
    learning_rate=float(values[0]),
    warmup_steps=params['warmup_steps'],
    warmup_learning_rate=params['warmup_learning_rate'],
    decay_steps=tuple(boundaries),
    decay_factors=tuple(params['learning_rate_decay_levels']),
  )


@pytest.mark.parametrize(
  'path', golden_files.files('10_lr_*.npz'), ids=lambda path: path.stem
)
def test_schedules_match_the_recordings(path):
  recording = golden_files.load(path)
  options = recorded_schedule(recording)
  rates = jax.vmap(optimizer.learning_rate(options))(
    jnp.asarray(recording['steps'])
  )
  # Relative to every single value, not only to the largest.
  np.testing.assert_allclose(rates, recording['lr'], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('inclusive, at_boundary', [(True, 1.0), (False, 0.5)])
def test_rate_falls_after_or_at_the_boundary(inclusive, at_boundary):
  schedule = optimizer.learning_rate(
    OptimizerOptions(
      learning_rate=1.0,
      warmup_steps=0,
      decay_steps=(5, 8),
      decay_factors=(0.5, 0.25),
      inclusive_decay=inclusive,
    )
  )
  rates = [float(schedule(step)) for step in (0, 4, 5, 6, 9)]
  assert rates == [1.0, 1.0, at_boundary, 0.5, 0.25]


def test_warmup_by_hand():
  schedule = optimizer.learning_rate(
    OptimizerOptions(
      learning_rate=1.0, warmup_steps=4, warmup_learning_rate=0.2
    )
  )
  rates = [float(schedule(step)) for step in range(6)]
  np.testing.assert_allclose(rates, [0.2, 0.4, 0.6, 0.8, 1, 1], rtol=1e-6)


@pytest.mark.parametrize(
  'fields, argument',
  [
    ({'decay_steps': (1, 2), 'decay_factors': (0.1,)}, 'decay_steps'),
    *(({'ema_decay': decay}, 'ema_decay') for decay in (0.0, 1.0, -0.1)),
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
  trainable = optimizer.trainable_parameters(PARAMS, frozen_stages=1)
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
  trainable = optimizer.trainable_parameters(PARAMS, frozen_stages)
  for stage, flags in trainable['backbone'].items():
    assert jax.tree.leaves(flags) == [stage not in frozen]
  assert all(jax.tree.leaves(trainable['box_head']))


def test_frozen_parameters_have_no_update_and_no_momentum():
  trainable = optimizer.trainable_parameters(PARAMS, frozen_stages=2)
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
  trainable = optimizer.trainable_parameters(PARAMS, frozen_stages=1)
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
  transformation = optimizer.sgd(options, all_of(PARAMS, True))
  gradients = jax.tree.map(np.ones_like, PARAMS)
  state = transformation.init(PARAMS)
  for step in (3, 3, 7):  # Whatever the number of updates.
    updates, state = transformation.update(gradients, state, PARAMS, step=step)
    kernel = updates['box_head']['fc6']['kernel']
    np.testing.assert_allclose(kernel, -step / 10, rtol=1e-6)
