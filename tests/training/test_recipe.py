"""Three steps of Habana's recipe from imported weights, repeated in NumPy.

Gradients of the five losses are taken from JAX. The update is computed twice:
weight decay, doubled gradients of biases, momentum, the learning rate.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow_checkpoint
import tiny_model

from maskrcnn_jax.config import load_config
from maskrcnn_jax.training import train_state, train_step
from maskrcnn_jax.weights import external, load_report

WIDTH = 8
FROZEN = ('backbone/stem/', 'backbone/stage2/')
# Habana's numbers.
DECAY = 1e-4
MOMENTUM = 0.9


def learning_rate(step):
  """A line from 0 to 0.005 over 1000 steps; falls after 240000 and 320000."""
  if step < 1000:
    return 0.005 * step / 1000
  if step <= 240000:
    return 0.005
  return 0.0005 if step <= 320000 else 0.00005


@pytest.fixture(name='recipe', scope='module')
def fixture_recipe(tmp_path_factory):
  """A state with an imported backbone, a step, and gradients of the losses."""
  model = tiny_model.make_model(
    backbone={'depth': 50, 'width': WIDTH, 'norm': 'frozen', 'frozen_stages': 2}
  )
  batch = tiny_model.make_batch()
  config = load_config('coco:habana_1x').optimizer
  state, optimizer = train_state.create_train_state(
    model, config, batch, jax.random.key(0)
  )
  prefix = tmp_path_factory.mktemp('weights') / 'model.ckpt-112603'
  tensorflow_checkpoint.write_named(
    prefix, tensorflow_checkpoint.google_backbone(50, WIDTH)
  )
  loaded, _ = external.load(prefix, state.variables())
  state = state.replace(**loaded)
  key = jax.random.key(1)

  @jax.jit
  def step(state, batch):
    def loss(params):
      losses, _ = train_step.loss_fn(
        model,
        params,
        state.batch_stats,
        batch,
        jax.random.fold_in(key, state.step),
      )
      return sum(losses.values())

    gradients = jax.grad(loss)(state.params)
    return gradients, train_step.train_step(model, optimizer, state, batch, key)

  return state, batch, step


def in_numpy(params, momentum, gradients, step):
  """Parameters and momentum after a step; the decay term before it."""
  decay = 0.0
  new_params, new_momentum = dict(params), {}
  for name, weights in params.items():
    if name.startswith(FROZEN):
      continue
    gradient = np.float64(gradients[name])
    if name.endswith('kernel'):
      decay += DECAY * np.sum(np.square(weights)) / 2
      gradient = gradient + DECAY * weights
    elif name.endswith('bias'):
      gradient = 2 * gradient
    new_momentum[name] = MOMENTUM * momentum.get(name, 0.0) + gradient
    new_params[name] = weights - learning_rate(step) * new_momentum[name]
  return new_params, new_momentum, decay


def by_name(params):
  return load_report.flatten({'params': params})


# From the start, where the first rate is 0, and where the rate falls.
@pytest.mark.slow
@pytest.mark.parametrize('start', [0, 239_999])
def test_three_steps(recipe, start):
  state, batch, run = recipe
  state = state.replace(step=jnp.int32(start))
  initial = by_name(state.params)
  params = {name: np.float64(x) for name, x in initial.items()}
  momentum = {}
  for step in range(start, start + 3):
    gradients, (state, metrics) = run(state, batch)
    params, momentum, decay = in_numpy(
      params, momentum, by_name(gradients), step
    )
    assert metrics['finite']
    np.testing.assert_allclose(
      metrics['learning_rate'], learning_rate(step), rtol=1e-6
    )
    np.testing.assert_allclose(metrics['l2_loss'], decay, rtol=1e-6)
    traces = by_name(optax.tree.get(state.opt_state, 'trace'))
    for name, array in by_name(state.params).items():
      if name.startswith(FROZEN):
        np.testing.assert_array_equal(array, initial[name], err_msg=name)
        continue
      assert_near(traces[name], momentum[name], name)
      # As a change, which is far smaller than what is changed.
      change = np.float64(array) - initial[name]
      expected = params[name] - initial[name]
      rounding = 2e-7 * np.max(np.abs(array))
      assert_near(change, expected, name, rounding)
      if step == 0:  # The first rate is 0.
        assert not np.any(change), name


def assert_near(actual, expected, name, rounding=0.0):
  atol = 1e-5 * np.max(np.abs(expected)) + rounding
  np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=name)
