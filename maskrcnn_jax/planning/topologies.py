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
from maskrcnn_jax.planning import chips
from maskrcnn_jax.planning.chips import CHIPS, GPUS


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices that share a step.

  Attributes:
    name: as given.
    devices: of JAX, real or described.
    num_hosts: that deliver their input.
    chip: None if its figures are not known.
    compiler_options: of XLA.
  """

  name: str
  devices: Sequence
  num_hosts: int
  chip: chips.Chip | chips.Gpu | None
  compiler_options: dict | None = None


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
  + ' (chips of a TPU slice along its axes, such as v5e:4x4), '
  + ', '.join(f'{kind}:N' for kind in GPUS)
  + ' (GPUs of one host, or HOSTSxN)'
)
# There is no GPU to tune Triton's products on, and its default tiles need more
# shared memory than some have. cuBLAS computes them instead.
_GPU_OPTIONS = {'xla_gpu_enable_triton_gemm': False}


def check_names(names: Sequence[str]) -> None:
  """Checks that names are among `KNOWN`, before anything is compiled.

  Raises:
    UserError: a name is unknown, or the slice does not exist.
  """
  for name in names or ['']:
    if name == _HERE:
      continue
    kind, _, text = name.partition(':')
    known = *CHIPS, *GPUS, _CPU
    hint = '.' if kind in known else did_you_mean(kind, known)
    axes = 2 if kind in GPUS else CHIPS[kind].axes if kind in CHIPS else 1
    sides = _sides(text)
    if kind not in known or len(sides) > axes or min(sides) < 1:
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
  # A program of other code from the cache would have other names of scopes.
  jax.config.update('jax_compilation_cache_include_metadata_in_key', True)
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
  if kind in GPUS:
    return _gpus(name, kind, _sides(text))
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


def _gpus(name, kind, sides) -> Topology:
  """Described GPUs, `[hosts, GPUs of a host]` or GPUs of one host."""
  parts = 'jax_plugins.xla_cuda12', 'nvidia.cuda_nvcc'
  if not all(map(_is_installed, parts)):
    raise _error(
      name,
      f'{name} needs the compiler for GPUs, which runs on any machine: pip '
      'install "maskrcnn-jax[plan-gpu]".',
      'jax-cuda12-plugin',
    )
  hosts, count = [1, *sides][-2:]
  described = topologies.get_topology_desc(
    platform='cuda',
    target_config=GPUS[kind].target,
    topology=f'1x{hosts}x{count}',
  )
  found = _topology(name, described.devices)
  return dataclasses.replace(
    found, chip=GPUS[kind], compiler_options=_GPU_OPTIONS
  )


def _is_installed(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # Of the package around it.
    return False


def _topology(name, devices) -> Topology:
  known = [*CHIPS.values(), *GPUS.values()]
  found = [x for x in known if x.kind == devices[0].device_kind]
  num_hosts = len({device.process_index for device in devices})
  return Topology(name, devices, num_hosts, found[0] if found else None)


def _sides(text: str) -> list[int]:
  """Sides of `AxBxC`; [0], which is never valid, for any other form."""
  if not re.fullmatch(r'\d+(x\d+)*', text):
    return [0]
  return [int(side) for side in text.split('x')]
