"""Functions of rows that skip groups of rows which are all padding."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def map_groups(
  function: Callable[..., jax.Array],
  rows: Sequence[jax.Array],
  valid: jax.Array,
  group: int,
) -> jax.Array:
  """Results of a function of rows, group by group; zeros without a valid row.

  A group without a valid row costs nothing, forward and backward. Devices that
  share the rows would ask each other before every group.

  Args:
    function: of `[group, ...]` for every entry of `rows`, gives
      `[group, ...]`; looks at each row alone.
    rows: arrays `[n, ...]`.
    valid: `[n]` bool.
    group: number of rows in a group, a divisor of n.

  Returns:
    `[n, ...]`.
  """

  def split(x):
    return x.reshape(-1, group, *x.shape[1:])

  def skip(*rows: jax.Array) -> Any:
    like = jax.eval_shape(function, *rows)
    return jnp.zeros(like.shape, like.dtype)

  def one_group(_, inputs):
    is_used, rows = inputs
    return None, lax.cond(is_used, function, skip, *rows)

  inputs = jnp.any(split(valid), axis=1), tuple(split(x) for x in rows)
  _, results = lax.scan(one_group, None, inputs)
  return results.reshape(-1, *results.shape[2:])
