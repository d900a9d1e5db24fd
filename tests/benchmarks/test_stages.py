"""Stages compiled and timed one by one, on a chain that is known by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.benchmarks import stages
from maskrcnn_jax.benchmarks.chain import Stage

SIDE = 128
CHAIN = [
  Stage(
    'product', lambda params, x: x @ params['w'], 'y', ('w',), fixed=('x',)
  ),
  Stage('where', lambda params, y: y > 0, 'mask', fixed=('y',)),
  Stage(
    'relu',
    lambda params, y, mask: jnp.where(mask, y, 0.0),
    'z',
    inputs=('y',),
    fixed=('mask',),
  ),
]


@pytest.fixture(name='arrays')
def fixture_arrays():
  random = np.random.default_rng(0)
  params = {'w': random.normal(size=(SIDE, SIDE)).astype(np.float32)}
  return params, {'x': random.normal(size=(8, SIDE)).astype(np.float32)}


def test_forward_programs_run_on_the_values_of_the_chain(arrays):
  params, values = arrays
  programs = stages.compile_forward(CHAIN, params, values)
  assert list(programs) == ['product', 'where', 'relu']
  program, arguments = programs['relu']
  product = values['x'] @ params['w']
  np.testing.assert_allclose(
    program.run(*arguments), np.maximum(product, 0), rtol=1e-4, atol=1e-4
  )
  work = 2 * 8 * SIDE * SIDE
  assert programs['product'][0].flops == pytest.approx(work, rel=0.02)


def test_backward_programs_run_on_the_gradients_of_the_chain(arrays):
  params, values = arrays
  programs, gradients = stages.compile_backward(CHAIN, params, values, 'z')
  positive = (values['x'] @ params['w'] > 0).astype(np.float32)
  expected = values['x'].T @ positive
  np.testing.assert_allclose(gradients['w'], expected, rtol=1e-4, atol=1e-4)
  program, arguments = programs['product']
  output, (of_params, _) = program.run(*arguments)
  np.testing.assert_allclose(of_params['w'], expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    output, values['x'] @ params['w'], rtol=1e-4, atol=1e-4
  )
  # The product, and the gradient of its weights; x wants none.
  work = 2 * 2 * 8 * SIDE * SIDE
  assert program.flops == pytest.approx(work, rel=0.02)


def test_rows_are_in_the_order_of_the_chain(arrays):
  programs = stages.compile_forward(CHAIN, *arrays)
  rows = stages.timed(programs, rounds=3, warmup=1)
  assert [row['name'] for row in rows] == ['product', 'where', 'relu']
  for row in rows:
    assert len(row['seconds']['all']) == 3
    assert 0 < row['seconds']['lowest'] <= row['seconds']['median']
    assert row['program']['memory']['least_moved'] > 0
