"""Stages: recorded from the model, equal to it, compiled and timed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
import tiny_run

from maskrcnn_jax.benchmarks import examples, stages
from maskrcnn_jax.benchmarks.subject import make_subject
from maskrcnn_jax.training import train_step

TRAINING = [
  'backbone',
  'FPN',
  'RPN',
  'proposals and RoI sampling',
  'RoIAlign of boxes',
  'box head',
  'RoIAlign of masks',
  'mask head',
  'RPN targets',
  'RoI targets and losses',
  'optimizer',
]
DETECTION = [
  'backbone',
  'FPN',
  'RPN',
  'proposals',
  'RoIAlign of boxes',
  'box head',
  'RoIAlign of masks',
  'mask head',
  'NMS and selection',
]


@pytest.fixture(name='subject', scope='module')
def fixture_subject():
  """A tiny model with trainable norms everywhere, and two images."""
  config = tiny_run.make_config('no data is read', 'none')
  config.model.backbone.norm = 'batch'
  config.model.head_norm = {'kind': 'batch'}
  config.input.batch_size = 2
  return make_subject(config, is_real=False, num_batches=1)


@pytest.fixture(name='training', scope='module')
def fixture_training(subject):
  with quick.compilation():
    return stages.training_stages(subject)


def _run(stage):
  function, arguments = stage
  return quick.jit(function)(*arguments)


@pytest.mark.slow
def test_training_stages_in_order_and_their_losses(subject, training):
  assert list(training) == TRAINING
  batch, state = subject.batches()[0], subject.state()
  losses, _ = _run(training['RoI targets and losses'])
  expected, _ = quick.jit(
    lambda state: train_step.loss_fn(
      subject.model, state.params, state.batch_stats, batch, jax.random.key(0)
    )
  )(state)
  assert losses.keys() == expected.keys()
  for name, loss in losses.items():
    np.testing.assert_allclose(loss, expected[name], rtol=2e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['RPN', 'box head'])
def test_a_stage_has_the_gradients_of_its_outputs_sum(training, name):
  function, (variables, arrays) = training[name]
  _, (of_params, of_inputs) = quick.jit(function)(variables, arrays)
  _, call = function.args

  def total(params, inputs):
    outputs = call({**variables, 'params': params}, {**arrays, 0: inputs})
    return sum(jnp.sum(x) for x in jax.tree.leaves(outputs))

  expected = quick.jit(jax.grad(total, (0, 1)))(variables['params'], arrays[0])
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4),
    (of_params, of_inputs[0]),
    expected,
  )


@pytest.mark.slow
def test_only_what_has_a_gradient_gets_one(training):
  _, (of_params, of_inputs) = _run(training['backbone'])
  assert of_params.keys() >= {'stem', 'stage2'} and of_inputs == {}
  _, (of_params, of_inputs) = _run(training['RoIAlign of masks'])
  assert of_params == {} and sorted(of_inputs[0]) == [2, 3, 4, 5, 6]
  assert _run(training['proposals and RoI sampling']).boxes.shape == (2, 8, 4)


@pytest.mark.slow
def test_detections_of_the_stages_are_those_of_the_model(subject):
  with quick.compilation():
    parts = stages.detection_stages(subject)
  assert list(parts) == DETECTION
  batch = subject.batches()[0]
  variables = subject.state(examples.DETECTION_BACKGROUND).variables()
  expected = quick.jit(
    lambda variables: subject.model.apply(
      variables, batch['images'], batch['image_sizes'], method='detect'
    )
  )(variables)
  assert np.any(expected.valid)
  found = _run(parts['NMS and selection'])
  np.testing.assert_array_equal(found.valid, expected.valid)
  np.testing.assert_allclose(found.boxes, expected.boxes, rtol=2e-4, atol=1e-6)
  masks = jax.nn.sigmoid(_run(parts['mask head']))
  np.testing.assert_allclose(masks, expected.masks, rtol=2e-4, atol=1e-6)


def test_only_one_stage_is_recorded(subject):
  with quick.compilation():
    calls, output = stages.record_training(
      subject, subject.state(), only='backbone'
    )
  assert list(calls) == ['backbone'] and output is None
  _, (variables, arrays) = calls['backbone']
  assert variables.keys() == {'params', 'batch_stats'}
  assert arrays[0].shape == (2, 64, 64, 3)


def test_a_stage_is_compiled_and_timed():
  a = jnp.ones((8, 128), jnp.float32), jnp.ones((128, 128), jnp.float32)
  side = stages.side(lambda x, y: x @ y, a)
  assert side.program['flops'] == pytest.approx(2 * 8 * 128**2, rel=0.02)
  assert side.program['memory']['least_moved'] > 0
  assert side.seconds(0) > 0
