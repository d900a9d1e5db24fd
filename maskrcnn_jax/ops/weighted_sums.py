"""Weighted sums of rows of a table, with one buffer for their gradients."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Indices and weights of every tap.
Taps = tuple[Sequence[jax.Array], Sequence[jax.Array]]


def weighted_sums(
  table: jax.Array, taps: Sequence[Taps], scopes: Sequence[str]
) -> list[jax.Array]:
  """Sets of sums of rows of a table, a row of each tap.

  The gradient of a sum of gathers would be a sum of as many tables, each full
  of zeros; here every tap of every set adds to the same one. No gradient flows
  to the weights.

  Args:
    table: `[rows, channels]`.
    taps: for every set the indices, `[...]` int32 inside the table for every
      tap, and the weights, `[...]` float32 for every tap.
    scopes: names of the sets, in a profile.

  Returns:
    For every set `[..., channels]` in the dtype of the table, summed in
    float32.
  """
  like = jax.ShapeDtypeStruct(table.shape, table.dtype)
  return _weighted_sums(table, taps, like, tuple(scopes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _weighted_sums(table, taps, like, scopes):
  sums = []
  for (indices, weights), scope in zip(taps, scopes):
    with jax.named_scope(scope):
      total = _sum_rows(table, indices, weights).astype(like.dtype)
      # Sums are rows until they are complete, and gradients before they are
      # floats: on a TPU, which fills the last two axes in tiles of 8 x 128,
      # every tap would be laid out anew for an axis of 7 bins. Without the
      # barriers XLA chooses that order.
      total = jax.lax.optimization_barrier(total)
      sums.append(total.reshape(*indices[0].shape, total.shape[-1]))
  return sums


def _sum_rows(table, indices, weights):
  total = 0.0
  for index, weight in zip(indices, weights):
    rows = table.at[index.reshape(-1)].get(mode='promise_in_bounds')
    total += weight.reshape(-1, 1) * rows
  return total


def _forward(table, taps, like, scopes):
  return _weighted_sums(table, taps, like, scopes), taps


def _backward(like, scopes, taps, gradients):
  total = jnp.zeros(like.shape, like.dtype)
  for set_taps, gradient, scope in zip(taps, gradients, scopes):
    with jax.named_scope(scope):
      # Stacked, the taps are a single scatter: one pass over the table.
      indices, weights = (
        jnp.stack([x.reshape(-1) for x in y]) for y in set_taps
      )
      gradient = gradient.reshape(-1, like.shape[-1])
      gradient = jax.lax.optimization_barrier(gradient).astype(jnp.float32)
      added = (weights[..., None] * gradient).astype(like.dtype)
      total = total.at[indices].add(added, mode='promise_in_bounds')
  return total, None


_weighted_sums.defvjp(_forward, _backward)
