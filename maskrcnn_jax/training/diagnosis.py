"""Finds the first tensor of a step that is not finite.

Compiled and run only after a step went wrong: the step itself says no more than
that, so that it stays fast.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.structures import Instances


def first_nonfinite(
  model: MaskRCNN,
  variables: Mapping[str, Any],
  batch: Mapping[str, Any],
  key: jax.Array,
) -> str | None:
  """The first tensor that is not finite, in the order of computation.

  Args:
    model: that was trained.
    variables: its parameters and statistics.
    batch: of the step, as the step takes it.
    key: draws the RoIs.

  Returns:
    Its name: a parameter, an input with the row of the batch, or the output of
    a part of the model; None if all of these are finite.
  """
  names = []

  def is_finite(variables, batch, key):
    flags = []
    for name, value in _tensors(model, variables, batch, key):
      names.append(name)
      flags.append(jnp.all(jnp.isfinite(value)))
    return jnp.stack(flags)

  flags = jax.jit(is_finite)(variables, batch, key)
  wrong = [name for name, good in zip(names, flags.tolist()) if not good]
  return wrong[0] if wrong else None


def _tensors(model, variables, batch, key) -> Iterator[tuple[str, jax.Array]]:
  """Name and value of every float tensor of a step, in order."""
  yield from _named(variables)
  for name in ('images', 'image_sizes'):
    for row in range(len(batch[name])):
      yield f'{name}[{row}]', batch[name][row]
  for row in range(len(batch['images'])):
    yield f'instances.boxes[{row}]', batch['instances']['boxes'][row]
  _, captured = model.apply(
    dict(variables),
    batch['images'],
    batch['image_sizes'],
    Instances(**batch['instances']),
    batch['valid'],
    rngs={'sampling': key},
    mutable=['batch_stats', 'intermediates'],
    capture_intermediates=True,
  )
  for path, value in _named(captured['intermediates']):
    yield f'output of {path.replace("/__call__", "")}', value


def _named(tree, path='') -> Iterator[tuple[str, jax.Array]]:
  """Leaves of float type by path, in the order they were put into the dicts."""
  if isinstance(tree, Mapping):
    for name, value in tree.items():
      yield from _named(value, f'{path}/{name}' if path else name)
    return
  for leaf in jax.tree.leaves(tree):
    if jnp.issubdtype(leaf.dtype, jnp.floating):
      yield path, leaf
