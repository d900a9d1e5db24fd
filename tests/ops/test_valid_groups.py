"""Functions of rows that skip groups of padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from maskrcnn_jax.ops import valid_groups

VALID = np.array([1, 1, 0, 0, 0, 0, 0, 1], bool)


def test_results_and_gradients_are_those_of_valid_rows():
  random = np.random.default_rng(0)
  rows = random.normal(size=(8, 3)).astype(np.float32)
  factors = random.normal(size=(8,)).astype(np.float32)
  matrix = random.normal(size=(3, 5)).astype(np.float32)
  computed = []

  def function(matrix, x, factor):
    jax.debug.callback(lambda x: computed.append(len(x)), x)
    return jnp.tanh(x @ matrix) * factor[:, None]

  def total(apply, matrix, rows, factors):
    y = apply(functools.partial(function, matrix), rows, factors)
    return jnp.sum(jnp.where(VALID[:, None], jnp.square(y), 0.0)), y

  def by_groups(function, *rows):
    return valid_groups.map_groups(function, rows, VALID, 2)

  @functools.partial(jax.jit, static_argnums=0)
  def run(apply, *arrays):
    differentiate = jax.value_and_grad(total, (1, 2, 3), has_aux=True)
    return differentiate(apply, *arrays)

  (expected, plain), gradients = run(lambda f, *x: f(*x), matrix, rows, factors)
  # Whatever padding holds is not looked at where a whole group is padding.
  rows = np.where(np.arange(8)[:, None] // 2 == 1, np.nan, rows)
  computed.clear()
  (actual, y), found = run(by_groups, matrix, rows, factors)
  jax.effects_barrier()
  assert computed == [2, 2]
  np.testing.assert_allclose(actual, expected, rtol=1e-6)
  np.testing.assert_allclose(y[VALID], plain[VALID], rtol=1e-6)
  assert not y[2:6].any()
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-6), found, gradients
  )
