"""Device mesh: shardings of batches and train states.

The training step is written for the global batch; the compiler splits it by
these shardings. The mesh has two axes: `data` splits the rows of a batch,
`spatial` the height of an image.
"""

import functools
import logging
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maskrcnn_jax.errors import UserError, invalid

# Values of `runtime.shard_state`, see `state_shardings`.
SHARD_STATE = ('none', 'optimizer', 'all')
# Pixels per row of the coarsest map of the backbone.
_STRIDE = 32
# Maps with fewer rows than a 3x3 kernel are not split: XLA (jax 0.10.2) would
# split the kernel as well, and sum the gradient of the map over `data`.
SMALLEST_HEIGHT = 3
# Arrays with fewer entries are not split: with ResNet-50 they are a quarter of
# the arrays and a thousandth of the bytes, and each would be its own message.
SMALLEST_SPLIT = 2**14
# By default XLA splits the width of few images into more images before it
# convolves them, and joins it again. That costs a TPU (v5e, libtpu 0.0.42)
# more than the convolutions, which get no faster; see docs/plan.md.
_COMPILER_OPTIONS = {
  'tpu': {
    'xla_tpu_run_space_to_batch': 'false',
    'xla_tpu_run_space_to_batch_on_new_platforms': 'false',
  }
}


def make_mesh(
  num_devices: int | None = None, spatial: int = 1, devices=None
) -> Mesh:
  """A mesh over all devices or the first few.

  Args:
    num_devices: in total; None for all.
    spatial: devices that share an image, each with a part of its height.
    devices: to choose from, which may be of a topology that is only described;
      None for those of this run.

  Returns:
    A mesh with the axes `data` and `spatial`, of num_devices / spatial and
    spatial devices.

  Raises:
    UserError: there are fewer devices, or `spatial` does not divide their
      number, in total or in each process.
  """
  devices = jax.devices() if devices is None else devices
  num_devices = len(devices) if num_devices is None else num_devices
  if not 1 <= num_devices <= len(devices):
    wanted = f'1 to {len(devices)}, the devices there are'
    raise invalid('num_devices', num_devices, wanted)
  if spatial < 1 or num_devices % spatial:
    wanted = f'a divisor of the number of devices, {num_devices}'
    raise invalid('spatial', spatial, wanted)
  grid = np.array(devices[:num_devices]).reshape(-1, spatial)
  # The input pipeline reads whole images.
  if any(len({x.process_index for x in row}) > 1 for row in grid):
    wanted = 'a divisor of the number of devices of every process, since a '
    wanted += f'process holds whole images; here {jax.local_device_count()}'
    raise invalid('spatial', spatial, wanted)
  return Mesh(grid, ('data', 'spatial'))


def config_mesh(config) -> Mesh:
  """The mesh of `runtime.num_devices` and `runtime.spatial`.

  Raises:
    UserError: as `make_mesh`; or a canvas of the input cannot be split.
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
    wanted = f'one of {", ".join(SHARD_STATE)}'
    raise invalid('runtime.shard_state', kind, wanted)
  return kind


def check_canvas(canvas: tuple[int, int], mesh: Mesh) -> None:
  """Raises `UserError` if `spatial` cannot split a (height, width) evenly."""
  spatial, (height, width) = mesh.shape['spatial'], canvas
  multiple = _STRIDE * spatial
  rows = height // _STRIDE
  if spatial == 1 or (height % multiple == 0 and rows >= SMALLEST_HEIGHT):
    return
  least = -(-SMALLEST_HEIGHT // spatial)
  near = (height // multiple, -(-height // multiple))
  heights = sorted({max(n, least) * multiple for n in near})
  most = rows if rows >= SMALLEST_HEIGHT else 1
  divisors = [n for n in range(1, most + 1) if rows % n == 0]
  raise UserError(
    f'The canvas {height}x{width} cannot be split by runtime.spatial='
    f'{spatial}: its height must be a multiple of {multiple} pixels, '
    f'{_STRIDE} for each device, and at least {SMALLEST_HEIGHT * _STRIDE}. A '
    f'height of {" or ".join(map(str, heights))} would fit; for this '
    f'one, runtime.spatial may be {", ".join(map(str, divisors))}.',
    argument='runtime.spatial',
    item=f'{height}x{width}',
    given=spatial,
    wanted=divisors,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Sharding of parameters: every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Sharding of batches: every device holds its rows."""
  return NamedSharding(mesh, PartitionSpec('data'))


def image_sharding(mesh: Mesh) -> NamedSharding:
  """Sharding of images and maps: a device holds its rows of its images."""
  return NamedSharding(mesh, PartitionSpec('data', 'spatial'))


def input_shardings(mesh: Mesh) -> dict[str, NamedSharding]:
  """Shardings of the entries of a batch for the training step."""
  rows = batch_sharding(mesh)
  others = ('image_sizes', 'instances', 'valid')
  return {'images': image_sharding(mesh), **dict.fromkeys(others, rows)}


def state_shardings(
  state: Any, mesh: Mesh, kind: str, smallest: int = SMALLEST_SPLIT
) -> Any:
  """Shardings in the structure of a train state.

  Args:
    state: a `TrainState`, or its shapes.
    kind: `none`: every device holds the whole state; `optimizer`: each holds a
      part of the optimizer state (ZeRO, stage 1); `all`: also of the parameters
      and of their average.
    smallest: arrays with fewer entries are not split.
  """
  whole = jax.tree.map(lambda _: replicated(mesh), state)
  parts = jax.tree.map(lambda x: split_largest(x.shape, mesh, smallest), state)
  if kind != 'none':
    whole = whole.replace(opt_state=parts.opt_state)
  if kind == 'all':
    names = [x for x in ('params', 'ema') if hasattr(state, x)]
    whole = whole.replace(**{x: getattr(parts, x) for x in names})
  return whole


def split_largest(shape, mesh: Mesh, smallest: int) -> NamedSharding:
  """Splits the largest axis that `data` divides; of equal ones the last."""
  size = mesh.shape['data']
  axes = [i for i, length in enumerate(shape) if length % size == 0]
  if size == 1 or not axes or np.prod(shape) < smallest:
    return replicated(mesh)
  axis = max(axes, key=lambda i: (shape[i], i))
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, 'data'))


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
  """XLA's options for the training step on the platform of a mesh.

  Without those that its compiler does not know: another version of libtpu has
  other ones.

  Args:
    mesh: of `make_mesh`, possibly of devices that are only described.

  Returns:
    `compiler_options` of `jax.jit`; None where there are none.
  """
  options = _COMPILER_OPTIONS.get(mesh.devices.flat[0].platform, {})
  return {k: x for k, x in options.items() if _is_known(mesh, k, x)} or None


@functools.cache
def _is_known(mesh, name, value) -> bool:
  """Whether a small program compiles with an option."""
  increment = jax.jit(
    lambda x: x + 1,
    in_shardings=replicated(mesh),
    compiler_options={name: value},
  )
  try:
    increment.lower(jax.ShapeDtypeStruct((), np.float32)).compile()
  except jax.errors.JaxRuntimeError as error:
    if not str(error).startswith('INVALID_ARGUMENT'):
      raise
    logging.warning('compiling without %s=%s: %s', name, value, error)
    return False
  return True
