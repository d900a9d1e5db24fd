"""Devices: the mesh, how arrays lie on it, host batches as global arrays.

The only file that knows devices. The step is written for the global batch; the
compiler splits it. The mesh has two axes: `data` splits the rows of a batch,
`spatial` the height of an image.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.layout import Layout
from maskrcnn_jax.models.mask_rcnn import MaskRCNN

# What a batch holds for the host alone.
HOST_KEYS = ('image_ids', 'original_sizes', 'scales')
# What of the train state is split over `data`.
SHARD_STATE = ('none', 'optimizer', 'all')
# Pixels to a row of the coarsest map that the backbone makes.
_STRIDE = 32
# Maps with fewer rows than a 3x3 kernel are not split: XLA (jax 0.10.2) then
# splits the kernel as well, and adds up the gradient of the map over `data`.
_SMALLEST_HEIGHT = 3
# Arrays with fewer entries stay whole: with ResNet-50 a quarter of the arrays,
# a thousandth of the bytes, and each would be a message of its own.
_SMALLEST_SPLIT = 2**14


def make_mesh(
  num_devices: int | None = None, spatial: int = 1, devices=None
) -> Mesh:
  """A mesh over all devices or the first few.

  Args:
    num_devices: in all; None: as many as there are.
    spatial: how many share an image, each with a part of its height.
    devices: to take them from, also such as are only described, to compile for
      them; None: those of this run.

  Returns:
    A mesh with the axes `data` and `spatial`, of num_devices / spatial and
    spatial devices.

  Raises:
    ValueError: there are not so many devices, or `spatial` does not divide
      them, in all or in each process.
  """
  devices = jax.devices() if devices is None else devices
  num_devices = len(devices) if num_devices is None else num_devices
  if not 1 <= num_devices <= len(devices):
    raise UserError(
      f'num_devices must be 1 to {len(devices)}, the devices there are, got '
      f'{num_devices}.'
    )
  if spatial < 1 or num_devices % spatial:
    raise UserError(
      f'spatial must divide the number of devices, {num_devices}, got '
      f'{spatial}.'
    )
  grid = np.array(devices[:num_devices]).reshape(-1, spatial)
  for row in grid:
    # The input pipeline reads whole images.
    if len({device.process_index for device in row}) > 1:
      raise UserError(
        'spatial must divide the number of devices of every process, for a '
        'process holds whole images: this one has '
        f'{jax.local_device_count()}, got {spatial}.'
      )
  return Mesh(grid, ('data', 'spatial'))


def config_mesh(config) -> Mesh:
  """The mesh of `runtime.num_devices` and `runtime.spatial`.

  Raises:
    ValueError: as `make_mesh`; or a canvas of the input cannot be split so.
  """
  runtime = config.get('runtime', {})
  mesh = make_mesh(runtime.get('num_devices'), runtime.get('spatial', 1))
  for canvas in config.get('input', {}).get('canvases', ()):
    check_canvas(canvas, mesh)
  return mesh


def config_shard_state(config) -> str:
  """`runtime.shard_state`, one of `SHARD_STATE`."""
  kind = config.get('runtime', {}).get('shard_state', 'none')
  if kind not in SHARD_STATE:
    raise UserError(
      f'runtime.shard_state must be one of {", ".join(SHARD_STATE)}, got '
      f'{kind!r}.'
    )
  return kind


def check_canvas(canvas: tuple[int, int], mesh: Mesh) -> None:
  """Raises if the devices of an image cannot have equal parts of its height.

  Args:
    canvas: (height, width).
    mesh: whose axis `spatial` splits the height.
  """
  spatial, (height, width) = mesh.shape['spatial'], canvas
  multiple = _STRIDE * spatial
  rows = height // _STRIDE
  if spatial == 1 or (height % multiple == 0 and rows >= _SMALLEST_HEIGHT):
    return
  least = -(-_SMALLEST_HEIGHT // spatial) * multiple
  below = max(height // multiple * multiple, least)
  above = max(-(-height // multiple) * multiple, least)
  heights = ' or '.join(str(x) for x in sorted({below, above}))
  divisors = [1]
  if rows >= _SMALLEST_HEIGHT:
    divisors = [n for n in range(1, rows + 1) if rows % n == 0]
  raise UserError(
    f'The canvas {height}x{width} cannot be split by runtime.spatial='
    f'{spatial}: its height must be a multiple of {multiple} pixels, '
    f'{_STRIDE} for each device, and at least {_SMALLEST_HEIGHT * _STRIDE}. '
    f'A height of {heights} would fit; for this one, runtime.spatial may be '
    f'{", ".join(map(str, divisors))}.'
  )


def num_parts(mesh: Mesh) -> int:
  """Into how many parts the rows of a batch are split."""
  return mesh.shape['data']


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array: parameters and their state."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Every device holds its rows of the first axis: batches."""
  return NamedSharding(mesh, PartitionSpec('data'))


def image_sharding(mesh: Mesh) -> NamedSharding:
  """Every device holds its part of the height of its rows: images, maps."""
  return NamedSharding(mesh, PartitionSpec('data', 'spatial'))


def input_shardings(mesh: Mesh) -> dict[str, NamedSharding]:
  """Of each entry of a batch for the training step."""
  rows = batch_sharding(mesh)
  others = ('image_sizes', 'instances', 'valid')
  return {'images': image_sharding(mesh), **dict.fromkeys(others, rows)}


def state_shardings(
  state: Any, mesh: Mesh, kind: str, smallest: int = _SMALLEST_SPLIT
) -> Any:
  """Shardings in the structure of a train state.

  Args:
    state: a `TrainState`, or its shapes.
    mesh: whose axis `data` splits arrays.
    kind: `none`, every device holds all of the state; `optimizer`, each a part
      of the optimizer's arrays (ZeRO, stage 1); `all`, also of the parameters
      and of their average.
    smallest: arrays with fewer entries are not split.
  """
  whole = jax.tree.map(lambda _: replicated(mesh), state)
  parts = jax.tree.map(lambda x: _part(x.shape, mesh, smallest), state)
  if kind != 'none':
    whole = whole.replace(opt_state=parts.opt_state)
  if kind == 'all':
    names = [x for x in ('params', 'ema') if hasattr(state, x)]
    whole = whole.replace(**{x: getattr(parts, x) for x in names})
  return whole


def _part(shape, mesh: Mesh, smallest: int) -> NamedSharding:
  """Splits the largest axis that `data` divides, of equal ones the last."""
  size = mesh.shape['data']
  axes = [i for i, length in enumerate(shape) if length % size == 0]
  if size == 1 or not axes or np.prod(shape) < smallest:
    return replicated(mesh)
  axis = max(axes, key=lambda i: (shape[i], i))
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, 'data'))


def lay_out(
  model: MaskRCNN,
  mesh: Mesh,
  shard_state: str = 'none',
  smallest: int = _SMALLEST_SPLIT,
) -> MaskRCNN:
  """The model with its arrays placed on a mesh; its values do not change.

  Args:
    model: any.
    mesh: for batches that it divides.
    shard_state: see `state_shardings`.
    smallest: see `state_shardings`.
  """
  layout = Layout()
  if mesh.shape['spatial'] > 1:
    layout = dataclasses.replace(
      layout,
      split=_Split(mesh),
      whole=_Whole(mesh),
    )
  if shard_state != 'none':
    layout = dataclasses.replace(layout, parameters=_Gather(mesh, smallest))
  return model.clone(layout=layout)


@dataclasses.dataclass(frozen=True)
class _Split:
  """Places maps in parts of their height where that can be done evenly.

  Like `_Whole` it can be hashed, as models must be.
  """

  mesh: Mesh

  def __call__(self, tree):
    return jax.tree.map(self._place, tree)

  def _place(self, x):
    even = x.shape[1] % self.mesh.shape['spatial'] == 0
    even = even and x.shape[1] >= _SMALLEST_HEIGHT
    place = image_sharding if even else batch_sharding
    return jax.lax.with_sharding_constraint(x, place(self.mesh))


@dataclasses.dataclass(frozen=True)
class _Whole:
  """Places arrays so that every device has all of its images."""

  mesh: Mesh

  def __call__(self, tree):
    return jax.lax.with_sharding_constraint(tree, batch_sharding(self.mesh))


@dataclasses.dataclass(frozen=True)
class _Gather:
  """Parameters whole on every device, their gradients in parts.

  Left alone, the compiler would sum up whole gradients on every device before
  it takes a part of them.
  """

  mesh: Mesh
  smallest: int

  def __call__(self, params):
    return jax.tree.map(
      lambda x: _gathered(
        x, replicated(self.mesh), _part(x.shape, self.mesh, self.smallest)
      ),
      params,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(x, whole, part):
  del part
  return jax.lax.with_sharding_constraint(x, whole)


def _gathered_forward(x, whole, part):
  return _gathered(x, whole, part), None


def _gathered_backward(unused_whole, part, unused_residuals, gradient):
  return (jax.lax.with_sharding_constraint(gradient, part),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def put_replicated(tree: Any, mesh: Mesh) -> Any:
  """A tree of arrays, whole on every device; see `put`."""
  return put(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def put(tree: Any, shardings: Any) -> Any:
  """A tree of arrays, placed.

  Of several processes, the first tells its values to the others: their own may
  differ in the last digit, as random values do on another kind of CPU.

  Args:
    tree: `jax.Array`s of this process, or such as this function returned.
    shardings: for each of them, of all devices of all hosts.
  """
  own = all(x.is_fully_addressable for x in jax.tree.leaves(tree))
  if jax.process_count() == 1 or not own:
    return jax.device_put(tree, shardings)
  return jax.tree.map(
    lambda x, sharding: jax.make_array_from_callback(
      x.shape, sharding, lambda index: x[index]
    ),
    multihost_utils.broadcast_one_to_all(tree),
    shardings,
  )


def put_rows(rows: np.ndarray, mesh: Mesh) -> jax.Array:
  """This host's part of an array with a row for each image of the batch."""
  return jax.make_array_from_process_local_data(batch_sharding(mesh), rows)


def put_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
  """The part of a host's batch that devices need, as global arrays.

  Args:
    batch: this host's rows, NumPy, with the whole of their images.
    mesh: of all devices of all hosts.

  Returns:
    The same structure without `HOST_KEYS`.

  Raises:
    ValueError: if the rows, or the height of the images, cannot be split evenly
      over the devices.
  """
  spatial = mesh.shape['spatial']
  parts = max(len(mesh.local_devices) // spatial, 1)
  rows = len(batch['images'])
  if rows % parts:
    shared = f', {spatial} to an image' if spatial > 1 else ''
    raise UserError(
      f'batch_size must be a multiple of the number of devices: {rows} rows '
      f'on this host for {parts * spatial} devices{shared}.'
    )
  check_canvas(batch['images'].shape[1:3], mesh)
  shardings = input_shardings(mesh)
  return {
    key: jax.tree.map(
      functools.partial(jax.make_array_from_process_local_data, shardings[key]),
      value,
    )
    for key, value in batch.items()
    if key not in HOST_KEYS
  }
