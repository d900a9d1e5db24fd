"""Arrays on the devices of a mesh: states and batches put there.

A process puts its rows of a batch there; together they are the global batch.
"""

import functools
import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from maskrcnn_jax.distributed import collectives
from maskrcnn_jax.distributed import mesh as mesh_lib
from maskrcnn_jax.errors import UserError, invalid

# Entries of a batch that stay on the host.
HOST_KEYS = ('image_ids', 'original_sizes', 'scales')


def put_replicated(tree: Any, mesh: Mesh) -> Any:
  """A tree of arrays, replicated on every device; see `put`."""
  return put(tree, jax.tree.map(lambda _: mesh_lib.replicated(mesh), tree))


def put(tree: Any, shardings: Any) -> Any:
  """A tree of arrays with given shardings.

  Process 0 broadcasts its values: those of another process may differ in the
  last digit, as random values do on another kind of CPU.

  Args:
    tree: `jax.Array`s of this process, or a result of this function.
    shardings: one for each array, over the devices of all processes.
  """
  own = all(x.is_fully_addressable for x in jax.tree.leaves(tree))
  if jax.process_count() == 1 or not own:
    return jax.device_put(tree, shardings)
  return jax.tree.map(
    lambda x, sharding: jax.make_array_from_callback(
      x.shape, sharding, lambda index: x[index]
    ),
    collectives.broadcast(tree),
    shardings,
  )


def put_rows(rows: np.ndarray, mesh: Mesh) -> jax.Array:
  """Global array of this process' rows of a batch."""
  return jax.make_array_from_process_local_data(
    mesh_lib.batch_sharding(mesh), rows
  )


def local_rows(tree, num_rows: int):
  """This process' rows of arrays that are replicated on all devices.

  Args:
    tree: arrays `[rows of all processes, ...]`.
  """
  if jax.process_count() == 1:
    return tree
  start = jax.process_index() * num_rows
  return jax.tree.map(lambda x: np.asarray(x)[start : start + num_rows], tree)


def put_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
  """Global arrays of a batch, without its `HOST_KEYS`.

  Args:
    batch: this process' rows, NumPy, with whole images.

  Raises:
    UserError: the rows, or the height of the images, cannot be split evenly
      over the devices.
  """
  spatial = mesh.shape['spatial']
  parts = max(len(mesh.local_devices) // spatial, 1)
  rows = len(batch['images'])
  if rows % parts:
    shared = f', {spatial} to an image' if spatial > 1 else ''
    raise UserError(
      f'batch_size must be a multiple of the number of devices: {rows} rows '
      f'in this process for {parts * spatial} devices{shared}.',
      argument='batch_size',
      given=rows,
      wanted=parts,
    )
  mesh_lib.check_canvas(batch['images'].shape[1:3], mesh)
  shardings = mesh_lib.input_shardings(mesh)
  return {
    key: jax.tree.map(
      functools.partial(jax.make_array_from_process_local_data, shardings[key]),
      value,
    )
    for key, value in batch.items()
    if key not in HOST_KEYS
  }


def check_batch_size(
  batch_size: int, mesh: Mesh, accumulate_steps: int = 1
) -> None:
  """Raises if a training batch, or a part of it, cannot be split evenly."""
  parts = mesh.shape['data']
  if batch_size < 1 or batch_size % (parts * accumulate_steps):
    what = f'the {parts} devices'
    if parts < mesh.size:
      what = f'{parts}, the {mesh.size} devices by runtime.spatial'
    if accumulate_steps > 1:
      what += f', times optimizer.accumulate_steps={accumulate_steps}'
    raise invalid(
      'input.batch_size', batch_size, f'a positive multiple of {what}'
    )


def padded_batch_size(batch_size: int, mesh: Mesh) -> int:
  """Rows of a batch to evaluate: the next multiple of the devices."""
  if batch_size < 1:
    raise invalid('evaluation.batch_size', batch_size, 'at least 1')
  parts = mesh.shape['data']
  padded = -(-batch_size // parts) * parts
  if padded != batch_size:
    logging.info(
      'evaluation.batch_size %d becomes %d: %d devices share a batch evenly',
      *(batch_size, padded, mesh.size),
    )
  return padded
