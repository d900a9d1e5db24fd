"""Joins the processes of a job, picks the backend and the compilation cache.

All before any array is made.
"""

import dataclasses
import logging
import os
import pathlib
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax

BACKENDS = ('auto', 'cpu', 'gpu', 'tpu', 'hpu')

# What brings each backend; JAX finds an installed one by itself.
_INSTALL = {
  'gpu': 'pip install "maskrcnn-jax[cuda]"',
  'tpu': 'pip install "maskrcnn-jax[tpu]"',
  'hpu': "install Intel Gaudi's JAX plugin",
}

# Size of the job, number of this process, its number on its machine. Open MPI
# comes first, for mpirun inside of a SLURM job inherits SLURM's variables;
# those of a SLURM step are not there in a batch script that starts no step.
_LAUNCHERS = {
  'ompi': (
    'OMPI_COMM_WORLD_SIZE',
    'OMPI_COMM_WORLD_RANK',
    'OMPI_COMM_WORLD_LOCAL_RANK',
  ),
  'slurm': ('SLURM_STEP_NUM_TASKS', 'SLURM_PROCID', 'SLURM_LOCALID'),
}
_LOCAL_HOST = '127.0.0.1'
_STDOUT, _STDERR = 1, 2
_MEETING_SECONDS = 60  # For the first process of a machine to tell its port.
_HESITATION_SECONDS = 3  # See `end_job`.


@dataclasses.dataclass(frozen=True)
class Launch:
  """This process among those that a launcher started as one job.

  Attributes:
    launcher: `ompi` or `slurm`.
    num_processes: of the job.
    rank: of this process; process 0 alone prints and writes.
    local_rank: of this process on its machine.
  """

  launcher: str
  num_processes: int
  rank: int
  local_rank: int


def start(section: Mapping[str, Any]) -> int:
  """Everything that has to be done before a device is touched.

  Args:
    section: `runtime` of a config.

  Returns:
    The number of processes.

  Raises:
    ValueError: there is no such backend, or the address is wrong.
    RuntimeError: the processes did not find each other.
  """
  if section.get('deterministic'):
    make_deterministic()
  num_processes = start_distributed(section.get('coordinator_address'))
  pick_backend(section.get('backend', 'auto'), num_processes)
  enable_compilation_cache(section.get('compilation_cache', ''))
  return num_processes


def find_launch() -> Launch | None:
  """What the environment says about a job of several processes.

  Returns:
    None where this process is the only one, also under `mpirun --np 1`.
  """
  for launcher, names in _LAUNCHERS.items():
    if all(name in os.environ for name in names):
      launch = Launch(launcher, *(int(os.environ[name]) for name in names))
      return launch if launch.num_processes > 1 else None
  return None


def start_distributed(coordinator_address: str | None = None) -> int:
  """Joins the processes that `mpirun` or `srun` started; waits for all.

  Each then drives one GPU, that of its local rank, unless
  `JAX_LOCAL_DEVICE_IDS` says otherwise. Gaudi's driver reads the local rank of
  Open MPI by itself, and a CPU is one device.

  Args:
    coordinator_address: `HOST:PORT`, a free port on the machine of process 0;
      None finds one.

  Returns:
    The number of processes; 1 without a launcher.

  Raises:
    ValueError: the address is wrong, or has to be given.
    RuntimeError: the processes did not find each other.
  """
  launch = find_launch()
  if launch is None:
    return 1
  address = coordinator_address or os.environ.get('JAX_COORDINATOR_ADDRESS')
  if address is None:
    address = _find_address(launch)
  elif not address.rpartition(':')[2].isdigit():
    raise ValueError(
      f'runtime.coordinator_address must be HOST:PORT, got {address!r}.'
    )
  if launch.rank != 0:
    # Process 0 alone has something to say there, but gloo, which JAX uses on
    # the CPU, greets in every process.
    _mute(_STDOUT)
  is_local = address is not None and address.startswith(f'{_LOCAL_HOST}:')
  own_device = 'JAX_LOCAL_DEVICE_IDS' not in os.environ
  try:
    jax.distributed.initialize(
      address,
      launch.num_processes,
      launch.rank,
      local_device_ids=[launch.local_rank] if own_device else None,
      # JAX would listen to all machines.
      coordinator_bind_address=address if is_local else None,
    )
  except Exception as error:
    raise RuntimeError(
      f'Process {launch.rank} of {launch.num_processes} did not reach the '
      f'others through {address or "the address that JAX found"}: {error}'
    ) from error
  return launch.num_processes


def end_job(message: str, code: int, expected: bool = True) -> None:
  """Ends this process, and so the job; does nothing if it is the only one.

  An ordinary exit would wait for the other processes, which wait for this one.
  Where all fail alike, or one because another did, the one that knows best
  speaks first, and the launcher ends the others while they hesitate.

  Args:
    message: for stderr.
    code: exit code, not 0, which makes the launcher end the others.
    expected: whether the message names the cause; other errors may be due to
      the end of another process.
  """
  launch = find_launch()
  if launch is None:
    return
  # JAX itself ends a process that lost process 0, with a long trace.
  stderr = _mute(_STDERR)
  time.sleep(_HESITATION_SECONDS * ((launch.rank > 0) + 2 * (not expected)))
  os.dup2(stderr, _STDERR)
  print(message, file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def pick_backend(name: str = 'auto', num_processes: int | None = None) -> str:
  """Makes JAX compute on a backend, and says which one.

  Args:
    name: `auto` takes the accelerator that JAX finds, and the CPU with a
      warning where there is none; every other name insists on that backend.
    num_processes: how many must have joined, see `start_distributed`; None
      takes any number.

  Returns:
    The name of the backend in use, for example `cpu`.

  Raises:
    ValueError: the name is unknown, there is no such backend, or not all
      processes have it.
  """
  if name not in BACKENDS:
    raise ValueError(
      f'runtime.backend must be one of {", ".join(BACKENDS)}, got {name!r}.'
    )
  if name == 'cpu':  # Leaves an accelerator to others.
    jax.config.update('jax_platforms', 'cpu')
  found = jax.default_backend()
  if name == 'auto' and found == 'cpu' and jax.process_index() == 0:
    logging.warning(
      'JAX finds no accelerator here; computing on the CPU (%d devices).',
      jax.device_count(),
    )
  if name not in ('auto', found):
    raise ValueError(
      f'runtime.backend is {name!r}, but JAX finds only {_found()}.'
      + (f' To use it, {_INSTALL[name]}.' if name in _INSTALL else '')
      + ' Or set runtime.backend to auto.'
    )
  # A backend counts the processes that have it, so one that is missing
  # anywhere, or does not join processes, is seen here without communication.
  if num_processes not in (None, jax.process_count()):
    raise ValueError(
      f'{jax.process_count()} of {num_processes} processes compute together '
      f'on {found}: all of them need the same backend, and it must be able to '
      'join processes. Set runtime.backend to one that all have.'
    )
  return found


def make_deterministic() -> None:
  """Makes a GPU give the same bits in every run; before it is touched.

  Sums whose order would depend on timing, such as the gradients of RoIs that
  overlap, are then made in a fixed order. A CPU does so anyway.
  """
  flag = '--xla_gpu_deterministic_ops=true'
  flags = os.environ.get('XLA_FLAGS', '')
  if flag not in flags:
    os.environ['XLA_FLAGS'] = f'{flags} {flag}'.strip()


def enable_compilation_cache(folder: str) -> None:
  """Keeps compiled programs, so that the next start does not compile again.

  A cache that is already set, as by `JAX_COMPILATION_CACHE_DIR`, stays.

  Args:
    folder: where to keep them; `~` is the home directory, '' keeps nothing.
  """
  if not folder or jax.config.jax_compilation_cache_dir:
    return
  path = pathlib.Path(folder).expanduser()
  jax.config.update('jax_compilation_cache_dir', str(path))


def _mute(descriptor: int) -> int:
  """Drops what is written there from now on; returns the former descriptor."""
  former = os.dup(descriptor)
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, descriptor)
  os.close(nowhere)
  return former


def _find_address(launch: Launch) -> str | None:
  """Where process 0 is reached; None leaves it to JAX to find out."""
  if launch.launcher != 'ompi':
    return None
  folder = os.environ.get('PMIX_SERVER_TMPDIR')
  num_local = int(os.environ.get('OMPI_COMM_WORLD_LOCAL_SIZE', 0))
  if folder and num_local == launch.num_processes:
    job = os.environ.get('PMIX_NAMESPACE', '')
    return _meet(pathlib.Path(folder) / f'jax-coordinator-{job}', launch.rank)
  # Open MPI 5 no longer says where mpirun runs.
  if 'OMPI_MCA_orte_hnp_uri' not in os.environ:
    raise ValueError(
      'This version of Open MPI does not say how the processes reach each '
      'other: set runtime.coordinator_address to HOST:PORT, a free port on the '
      'machine of process 0.'
    )
  return None


def _meet(path: pathlib.Path, rank: int) -> str:
  """An address on this machine, told through a file of the job.

  A port computed from the number of the job may be that of another job, whose
  processes JAX would then disturb; the operating system knows a free one.
  """
  if rank == 0:
    with socket.socket() as free:
      free.bind((_LOCAL_HOST, 0))
      address = f'{_LOCAL_HOST}:{free.getsockname()[1]}'
    unfinished = path.with_name(f'{path.name}.unfinished')
    unfinished.write_text(address)
    unfinished.replace(path)
    return address
  end = time.monotonic() + _MEETING_SECONDS
  while not path.exists():
    if time.monotonic() > end:
      raise RuntimeError(
        f'Process 0 did not write {path} within {_MEETING_SECONDS} s.'
      )
    time.sleep(0.05)
  return path.read_text()


def _found() -> str:
  """Devices in words, for example `2 cpu (cpu)`."""
  devices = jax.devices()
  kinds = sorted({device.device_kind for device in devices})
  return f'{len(devices)} {devices[0].platform} ({", ".join(kinds)})'
