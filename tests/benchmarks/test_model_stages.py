"""The chain of stages computes what the model and its step compute."""

import jax
import numpy as np
import pytest
import quick
import tiny_model

from maskrcnn_jax.benchmarks import chain, model_stages, stages
from maskrcnn_jax.structures import Instances
from maskrcnn_jax.training import train_step

pytestmark = pytest.mark.slow
TOLERANCE = {'rtol': 2e-4, 'atol': 1e-6}


@pytest.fixture(name='made', scope='module')
def fixture_made():
  """A model, its state and optimizer, a batch and what the stages take.

  With all that crosses stages: norms everywhere, a cap on mask RoIs, an image
  that does not count.
  """
  sampling = {
    'num_rois': 16,
    'foreground_fraction': 0.5,
    'num_mask_rois': 3,
  }
  model = tiny_model.make_model(
    norm='batch', head_norm={'kind': 'batch'}, sampling=sampling
  )
  batch = tiny_model.make_batch((2, 3, 1, 4))
  batch['valid'] = np.array([True, True, True, False])
  state, optimizer = tiny_model.make_state(model, batch)
  instances = Instances(**batch['instances'])
  values = {
    **batch,
    'instances': instances.replace(
      valid=instances.valid & batch['valid'][:, None]
    ),
    'batch_stats': state.batch_stats,
  }
  keys = jax.random.split(jax.random.key(7))
  values['rpn_key'], values['sampling_key'] = keys
  return model, state, optimizer, batch, values


@pytest.fixture(name='chained', scope='module')
def fixture_chained(made):
  model, state, _, _, values = made
  parts = model_stages.training_stages(model)
  return quick.jit(
    lambda params, values: chain.run_backward(parts, params, values, 'losses')
  )(state.params, values)


@pytest.fixture(name='update', scope='module')
def fixture_update(made):
  optimizer = made[2]
  return quick.jit(
    lambda state, gradients: stages.update(optimizer, state, gradients)
  )


def test_losses_and_gradients_are_those_of_the_step(made, chained):
  model, state, _, batch, _ = made
  values, _, gradients = chained

  def total(params):
    losses, _ = train_step.loss_fn(
      model, params, state.batch_stats, batch, jax.random.key(7)
    )
    return sum(losses.values()), losses

  expected, losses = quick.jit(jax.grad(total, has_aux=True))(state.params)
  assert values['losses'].keys() == losses.keys()
  for name, loss in losses.items():
    np.testing.assert_allclose(values['losses'][name], loss, **TOLERANCE)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-5),
    gradients,
    expected,
  )


def test_a_stage_alone_has_the_gradients_of_the_chain(made, chained):
  model, state, _, _, _ = made
  values, cotangents, gradients = chained
  parts = model_stages.training_stages(model)
  for stage in parts:
    if stage.name not in ('RPN', 'box head'):
      continue
    own, inputs, fixed = stage.arguments(state.params, values)
    output, (of_params, _) = quick.jit(stage.both)(
      own, inputs, fixed, cotangents[stage.output]
    )
    for found, expected in (
      (output, values[stage.output]),
      (of_params, {name: gradients[name] for name in stage.params}),
    ):
      jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, **TOLERANCE),
        found,
        expected,
      )


def test_the_update_is_a_step_of_sgd_with_decay(made, chained, update):
  _, state, optimizer, _, _ = made
  gradients = chained[2]
  updated = update(state, gradients)
  options = optimizer.options

  def check(path, new, old, gradient):
    # The momentum is empty. Gradients of biases are doubled, kernels decay.
    if path[-1].key == 'bias':
      gradient = options.bias_gradient_factor * gradient
    elif path[-1].key == 'kernel':
      gradient = gradient + options.weight_decay * old
    expected = old - options.learning_rate * gradient
    np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-7)

  jax.tree_util.tree_map_with_path(
    check, updated.params, state.params, gradients
  )


def test_an_update_that_is_not_finite_changes_nothing(made, chained, update):
  state = made[1]
  gradients = jax.tree.map(lambda x: np.full_like(x, np.nan), chained[2])
  kept = update(state, gradients)
  jax.tree.map(np.testing.assert_array_equal, kept.params, state.params)


def test_detections_are_those_of_the_model(made):
  model, state, _, batch, values = made
  parts = model_stages.detection_stages(model)
  found = quick.jit(
    lambda params, values: chain.run_forward(parts, params, values)
  )(state.params, values)
  expected = quick.jit(
    lambda variables, images, sizes: model.apply(
      variables, images, sizes, method='detect'
    )
  )(state.variables(), batch['images'], batch['image_sizes'])
  assert np.any(expected.valid)
  np.testing.assert_array_equal(found['detections'].valid, expected.valid)
  np.testing.assert_allclose(
    found['detections'].boxes, expected.boxes, **TOLERANCE
  )
  np.testing.assert_allclose(found['masks'], expected.masks, **TOLERANCE)
