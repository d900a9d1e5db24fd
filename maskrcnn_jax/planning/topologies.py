"""Topologies to compile for: devices of this machine, or described slices.

Compilers of accelerators run on any machine: given the description of a slice,
they compile the program of its devices and report what it needs.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from maskrcnn_jax.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published figures of a chip.

  Attributes:
    name: of its descriptions in the compiler.
    kind: `device_kind` of its devices in JAX.
    axes: of the torus or mesh that chips form.
    max_chips: of the largest slice.
    devices: of JAX per chip; each has its share of what follows.
    flops: per second, in bfloat16.
    memory: bytes of HBM.
    memory_bandwidth: bytes per second.
    link_bandwidth: bytes per second that leave a chip over all its links.
    options: of the description.
  """

  name: str
  kind: str
  axes: int
  max_chips: int
  devices: int
  flops: float
  memory: float
  memory_bandwidth: float
  link_bandwidth: float
  options: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices that share a step.

  Attributes:
    name: as given.
    devices: of JAX, real or described.
    num_hosts: that deliver their input.
    chip: None if it is not in `CHIPS`.
  """

  name: str
  devices: Sequence
  num_hosts: int
  chip: Chip | None


# Google's pages on TPU v4, v5e, v5p, v6e and TPU7x (docs.cloud.google.com/tpu).
# Their figures of links count both directions, or are in bits. Two devices of
# TPU v4 and v5p act as one, those of TPU7x do not.
CHIPS = {
  'v4': Chip(
    *('v4', 'TPU v4', 3, 4096, 1, 275e12, 32 * 2**30, 1.2e12, 300e9),
    options=(('chip_config_name', 'megacore'),),
  ),
  'v5e': Chip(
    *('v5e', 'TPU v5 lite', 2, 256, 1, 197e12, 16 * 2**30, 819e9, 200e9)
  ),
  'v5p': Chip(
    *('v5p', 'TPU v5', 3, 6144, 1, 459e12, 95 * 2**30, 2.765e12, 600e9)
  ),
  'v6e': Chip(
    *('v6e', 'TPU v6 lite', 2, 256, 1, 918e12, 32 * 2**30, 1.638e12, 400e9)
  ),
  'v7x': Chip(
    *('tpu7x', 'TPU7x', 3, 9216, 2, 2307e12, 192 * 2**30, 7.38e12, 600e9)
  ),
}
# Without them, libtpu queries the metadata server for the TPU of this machine,
# and allows only one process.
_QUIET = {
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TF_CPP_MIN_LOG_LEVEL': '3',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
  'TPU_MIN_LOG_LEVEL': '3',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
}
_HERE = 'here'
_CPU = 'cpu'
KNOWN = (
  'here (the devices of this machine), cpu:N (the CPU as N devices), '
  + ', '.join(f'{k}:{"AxBxC"[: 2 * c.axes - 1]}' for k, c in CHIPS.items())
  + ' (chips of a TPU slice along its axes, such as v5e:4x4)'
)


def check_names(names: Sequence[str]) -> None:
  """Checks that names are among `KNOWN`, before anything is compiled.

  Raises:
    UserError: a name is unknown, or the slice does not exist.
  """
  for name in names or ['']:
    if name == _HERE:
      continue
    kind, _, text = name.partition(':')
    hint = '.' if kind in (*CHIPS, _CPU) else did_you_mean(kind, CHIPS)
    sides, axes = _sides(text), CHIPS[kind].axes if kind in CHIPS else 1
    if kind not in (*CHIPS, _CPU) or len(sides) > axes or min(sides) < 1:
      raise _error(name, f'{name!r} is no topology{hint} Known are {KNOWN}.')
    if kind in CHIPS and math.prod(sides) > CHIPS[kind].max_chips:
      raise _error(
        name,
        f'{name} has {math.prod(sides)} chips; the largest slice of {kind} has '
        f'{CHIPS[kind].max_chips}.',
        CHIPS[kind].max_chips,
      )


def _error(name, message, wanted=KNOWN) -> UserError:
  return UserError(message, argument='topology', given=name, wanted=wanted)


def prepare(names: Sequence[str]) -> None:
  """Sets up JAX for names that passed `check_names`; before it is used."""
  for variable, value in _QUIET.items():
    os.environ.setdefault(variable, value)
  if _HERE in names:
    return
  # Leaves an accelerator free for training.
  jax.config.update('jax_platforms', _CPU)
  counts = [_sides(x.partition(':')[2])[0] for x in names if x[:4] == 'cpu:']
  if counts:
    jax.config.update('jax_num_cpu_devices', max(counts))


def find(name: str, num_devices: int | None = None) -> Topology:
  """The devices of a topology.

  Args:
    name: that passed `check_names`.
    num_devices: number of devices of this machine to use; None: all.

  Raises:
    UserError: the compiler for it is not installed, or does not know such a
      slice.
  """
  kind, _, text = name.partition(':')
  if name == _HERE:
    return _topology(name, jax.devices()[:num_devices])
  if kind == _CPU:
    devices = jax.devices(_CPU)
    count = _sides(text)[0]
    if count > len(devices):
      raise _error(
        name,
        f'{name} needs {count} CPU devices, JAX was started with '
        f'{len(devices)}. Plan it without `here`, or set '
        f'XLA_FLAGS=--xla_force_host_platform_device_count={count}.',
        len(devices),
      )
    return _topology(name, devices[:count])
  if importlib.util.find_spec('libtpu') is None:
    raise _error(
      name,
      f'{name} needs the compiler for TPUs, which runs on any machine: pip '
      'install "maskrcnn-jax[tpu]".',
      'libtpu',
    )
  sides = _sides(text) + [1] * 3
  # Four chips of a host form a square; a smaller slice has a smaller one.
  host = (min(sides[0], 2), min(sides[1], 2), 1)
  try:
    slice_ = topologies.get_topology_desc(
      platform='tpu',
      topology_name=f'{CHIPS[kind].name}:{"x".join(map(str, sides[:3]))}',
      chips_per_host_bounds=host,
      **dict(CHIPS[kind].options),
    )
  except RuntimeError as error:
    raise _error(name, f'{name}: {error} Known are {KNOWN}.') from error
  return _topology(name, slice_.devices)


def _topology(name, devices) -> Topology:
  chips = [x for x in CHIPS.values() if x.kind == devices[0].device_kind]
  num_hosts = len({device.process_index for device in devices})
  return Topology(name, devices, num_hosts, chips[0] if chips else None)


def _sides(text: str) -> list[int]:
  """Sides of `AxBxC`; [0], which is never valid, for any other form."""
  if not re.fullmatch(r'\d+(x\d+)*', text):
    return [0]
  return [int(side) for side in text.split('x')]
