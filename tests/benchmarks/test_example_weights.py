"""Weights from formulas: reproducible, centred, and lively."""

import jax
import numpy as np
import pytest
import tiny_model

from maskrcnn_jax.benchmarks import example_weights
from maskrcnn_jax.training import train_step


@pytest.fixture(name='variables', scope='module')
def fixture_variables():
  model = tiny_model.make_model(norm='frozen')
  shapes = jax.eval_shape(
    lambda key: train_step.init_variables(model, key), jax.random.key(0)
  )
  return example_weights.example_variables(shapes, background=5.0)


def test_they_are_the_same_every_time(variables):
  again = example_weights.example_variables(variables, background=5.0)
  jax.tree.map(np.testing.assert_array_equal, again, variables)
  jax.tree.map(lambda x: np.testing.assert_equal(x.dtype, np.float32), again)


def test_background_is_in_one_number_alone(variables):
  other = example_weights.example_variables(variables, background=7.0)
  bias = variables['params']['box_head']['class_logits']['bias']
  moved = other['params']['box_head']['class_logits']['bias'] - bias
  np.testing.assert_allclose(moved, [2.0, 0, 0, 0], atol=1e-6)
  other['params']['box_head']['class_logits']['bias'] = bias
  jax.tree.map(np.testing.assert_array_equal, other, variables)


def test_outputs_do_not_lean_to_one_side(variables):
  heads = variables['params']
  for layer in (heads['box_head']['fc6'], heads['rpn_head']['objectness']):
    kernel = layer['kernel']
    sums = kernel.sum(axis=tuple(range(kernel.ndim - 1)))
    np.testing.assert_allclose(sums, 0.0, atol=1e-4)


def test_deviations_are_those_of_the_formula(variables):
  kernel = variables['params']['backbone']['stage5']['block2']['conv2'][
    'kernel'
  ]
  fan_in = np.prod(kernel.shape[:-1])
  # 36,864 values: their deviation is known to half a per cent.
  assert kernel.std() == pytest.approx(np.sqrt(2 / fan_in), rel=0.02)
  deconv = variables['params']['mask_head']['deconv']['kernel']
  assert deconv.std() == pytest.approx(np.sqrt(2 / 16), rel=0.1)
  assert (
    variables['batch_stats']['backbone']['stem']['norm']['variance'].min()
    >= 1.0
  )
