"""A chain of stages by hand: values, and gradients where paths meet."""

import jax.numpy as jnp
import numpy as np

from maskrcnn_jax.benchmarks import chain
from maskrcnn_jax.benchmarks.chain import Stage

STAGES = [
  Stage('scale', lambda params, x: params['a'] * x, 'y', ('a',), fixed=('x',)),
  Stage('sign', lambda params, y: y > 0, 'sign', fixed=('y',)),
  Stage('add', lambda params, y: params['b'] + y, 'z', ('b',), ('y',)),
  # Both y and z reach the last one.
  Stage(
    'pick',
    lambda params, y, z, sign: jnp.where(sign, y * z, 0.0),
    'last',
    inputs=('y', 'z'),
    fixed=('sign',),
  ),
]
PARAMS = {'a': jnp.float32(2.0), 'b': jnp.float32(3.0)}
VALUES = {'x': jnp.array([1.0, -1.0, 4.0])}


def test_values_are_handed_on():
  values = chain.run_forward(STAGES, PARAMS, VALUES)
  np.testing.assert_array_equal(values['z'], [5.0, 1.0, 11.0])
  np.testing.assert_array_equal(values['last'], [10.0, 0.0, 88.0])


def test_gradients_add_up_where_paths_meet():
  values, cotangents, gradients = chain.run_backward(
    STAGES, PARAMS, VALUES, 'last'
  )
  np.testing.assert_array_equal(values['last'], [10.0, 0.0, 88.0])
  np.testing.assert_array_equal(cotangents['z'], [2.0, 0.0, 8.0])
  # Of y directly z, and through z again y: 5 + 2, 0, 11 + 8.
  np.testing.assert_array_equal(cotangents['y'], [7.0, 0.0, 19.0])
  assert gradients == {'a': 7.0 + 4 * 19.0, 'b': 10.0}


def test_a_stage_forward_and_backward():
  output, (of_params, of_inputs) = STAGES[2].both(
    {'b': PARAMS['b']}, {'y': jnp.array([1.0, 2.0])}, {}, jnp.array([1.0, 5.0])
  )
  np.testing.assert_array_equal(output, [4.0, 5.0])
  assert of_params == {'b': 6.0}
  np.testing.assert_array_equal(of_inputs['y'], [1.0, 5.0])
