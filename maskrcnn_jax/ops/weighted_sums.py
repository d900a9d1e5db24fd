"""Weighted sums of rows of a table, with one buffer for their gradient."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def weighted_sum(
  table: jax.Array,
  indices: Sequence[jax.Array],
  weights: Sequence[jax.Array],
) -> jax.Array:
  """Sums of rows of a table, a row of each tap.

  The gradient of a sum of gathers would be a sum of as many tables, each full
  of zeros; here every tap adds to the same one. No gradient flows to the
  weights.

  Args:
    table: `[rows, channels]`.
    indices: `[...]` int32 for every tap, inside the table.
    weights: `[...]` float32 for every tap.

  Returns:
    `[..., channels]` in the dtype of the table, summed in float32.
  """
  like = jax.ShapeDtypeStruct(table.shape, table.dtype)
  return _weighted_sum(table, indices, weights, like)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _weighted_sum(table, indices, weights, like):
  total = 0.0
  for index, weight in zip(indices, weights):
    rows = table.at[index].get(mode='promise_in_bounds')
    total += weight[..., None] * rows
  return total.astype(like.dtype)


def _forward(table, indices, weights, like):
  return _weighted_sum(table, indices, weights, like), (indices, weights)


def _backward(like, residuals, gradient):
  # Stacked, the taps are a single scatter: one pass over the table.
  indices, weights = (jnp.stack(x) for x in residuals)
  added = (weights[..., None] * gradient.astype(jnp.float32)).astype(like.dtype)
  total = jnp.zeros(like.shape, like.dtype)
  return total.at[indices].add(added, mode='promise_in_bounds'), None, None


_weighted_sum.defvjp(_forward, _backward)
