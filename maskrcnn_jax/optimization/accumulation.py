"""Gradient accumulation: the parts of a batch one after another.

A step is one update by a whole batch, however many parts it has: steps, rates,
schedules and checkpoints stay the same, and a run may go on with other parts.
The parts sample the anchors and RoIs that the whole batch would. Not the same
as in one piece are batch norm, whose statistics are those of each part, and
terms that are normalised by a count (of matched anchors or foreground RoIs),
since the parts have different counts: as with one part per worker elsewhere.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from maskrcnn_jax.errors import invalid


def value_and_grad(function: Callable, num_parts: int) -> Callable:
  """Mean values and gradients over the parts of a batch.

  Args:
    function: of parameters, statistics, batch and part, which returns a scalar
      and a pair of other scalars and the statistics after the batch. A part is
      its index and `num_parts`, or None for a whole batch.
    num_parts: 1 for no accumulation.

  Returns:
    A function of parameters, statistics and batch that returns what
    `jax.value_and_grad` of `function` does.
  """
  differentiate = jax.value_and_grad(function, has_aux=True)
  if num_parts == 1:
    return lambda *arguments: differentiate(*arguments, None)

  def accumulated(params, batch_stats, batch):
    def add(carry, inputs):
      batch_stats, sums = carry
      index, part = inputs
      (value, (others, batch_stats)), gradients = differentiate(
        params, batch_stats, part, (index, num_parts)
      )
      sums = jax.tree.map(jnp.add, sums, gradients)
      return (batch_stats, sums), (value, others)

    zeros = jax.tree.map(jnp.zeros_like, params)
    (batch_stats, sums), values = jax.lax.scan(
      add,
      (batch_stats, zeros),
      (jnp.arange(num_parts), split(batch, num_parts)),
    )
    value, others = jax.tree.map(lambda x: jnp.mean(x, axis=0), values)
    gradients = jax.tree.map(lambda x: x / num_parts, sums)
    return (value, (others, batch_stats)), gradients

  return accumulated


def split(batch: Mapping[str, Any], num_parts: int) -> Mapping[str, Any]:
  """A batch `[rows, ...]` as `[num_parts, rows / num_parts, ...]`.

  Part i holds the rows i, i + num_parts and so on, so that a device has rows of
  every part and no row moves to another device.

  Raises:
    UserError: the batch cannot be split evenly.
  """

  def split_rows(x):
    if len(x) % num_parts:
      wanted = f'a divisor of the batch, {len(x)} images'
      raise invalid('optimizer.accumulate_steps', num_parts, wanted)
    return jnp.swapaxes(x.reshape(-1, num_parts, *x.shape[1:]), 0, 1)

  return jax.tree.map(split_rows, batch)


def row_keys(
  key: jax.Array, num_rows: int, part: tuple[jax.Array, int] | None
) -> jax.Array:
  """The `[num_rows]` keys of the rows of a batch, or of a part of it.

  Args:
    key: of the whole batch.
    num_rows: of the batch or the part.
    part: index and number of parts; None: the batch is whole.
  """
  index, num_parts = part or (None, 1)
  keys = jax.random.split(key, num_rows * num_parts)
  return keys if part is None else keys.reshape(num_rows, num_parts)[:, index]
