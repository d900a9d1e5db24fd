"""Devices: the mesh, how arrays lie on it, host batches as global arrays.

The only file that knows devices. The step is written for the global batch; the
compiler splits it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# What a batch holds for the host alone.
HOST_KEYS = ('image_ids', 'original_sizes', 'scales')


def make_mesh(num_devices: int | None = None, devices=None) -> Mesh:
  """A mesh with one axis, `data`, over all devices or the first few.

  Args:
    num_devices: how many; None: all.
    devices: to take them from, also such as are only described, to compile for
      them; None: those of this run.
  """
  devices = jax.devices() if devices is None else devices
  num_devices = len(devices) if num_devices is None else num_devices
  if not 1 <= num_devices <= len(devices):
    raise ValueError(
      f'num_devices must be 1 to {len(devices)}, the devices there are, got '
      f'{num_devices}.'
    )
  return Mesh(np.array(devices[:num_devices]), ('data',))


def config_mesh(config) -> Mesh:
  """The mesh of `runtime.num_devices`; of all devices where it is None."""
  return make_mesh(config.get('runtime', {}).get('num_devices'))


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array: parameters and their state."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Every device holds its rows of the first axis: batches."""
  return NamedSharding(mesh, PartitionSpec('data'))


def put_replicated(tree: Any, mesh: Mesh) -> Any:
  """A tree of arrays, whole on every device.

  Of several processes, the first tells its values to the others: their own may
  differ in the last digit, as random values do on another kind of CPU.

  Args:
    tree: `jax.Array`s of this process, or such as this function returned.
    mesh: of all devices of all hosts.
  """
  everywhere = replicated(mesh)
  own = all(x.is_fully_addressable for x in jax.tree.leaves(tree))
  if jax.process_count() == 1 or not own:
    return jax.device_put(tree, everywhere)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(everywhere, x),
    multihost_utils.broadcast_one_to_all(tree),
  )


def put_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
  """The part of a host's batch that devices need, as global arrays.

  Args:
    batch: this host's rows, NumPy.
    mesh: of all devices of all hosts.

  Returns:
    The same structure without `HOST_KEYS`.

  Raises:
    ValueError: if the rows cannot be split evenly over the devices.
  """
  local_devices = max(len(mesh.local_devices), 1)
  rows = len(batch['images'])
  if rows % local_devices:
    raise ValueError(
      f'batch_size must be a multiple of the number of devices: {rows} rows '
      f'on this host for {local_devices} devices.'
    )
  sharding = batch_sharding(mesh)
  arrays = {key: x for key, x in batch.items() if key not in HOST_KEYS}
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), arrays
  )
