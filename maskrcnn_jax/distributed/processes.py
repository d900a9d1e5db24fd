"""Joins the processes of a job, picks the backend and the compilation cache.

All before any array is made.
"""

import logging
import os
import pathlib
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax

from maskrcnn_jax.distributed import backends, roll_call
from maskrcnn_jax.distributed.launcher import Launch, find_launch
from maskrcnn_jax.errors import UserError

# Where programs that were compiled once are kept.
COMPILATION_CACHE = '~/.cache/maskrcnn_jax/xla'
_LOCAL_HOST = '127.0.0.1'
_LOCAL_NAMES = (_LOCAL_HOST, 'localhost')
_STDOUT, _STDERR = 1, 2
_MEETING_SECONDS = 60  # For the first process of a machine to tell its port.
_HESITATION_SECONDS = 3  # See `end_job`.
_HEARTBEAT_SECONDS = 100  # JAX's own.
# What errors of collectives and of JAX's coordination say.
_LOST = ('Gloo', 'NCCL', 'UNAVAILABLE', 'heartbeat')


def start(section: Mapping[str, Any]) -> int:
  """Everything that has to be done before a device is touched.

  Args:
    section: `runtime` of a config.

  Returns:
    The number of processes.

  Raises:
    ValueError: there is no such backend, or the job is not described fully.
    RuntimeError: the processes did not find each other.
  """
  if section.get('deterministic'):
    make_deterministic()
  _describe_job(section)
  num_processes = start_distributed(
    section.get('coordinator_address'),
    section.get('heartbeat_seconds') or _HEARTBEAT_SECONDS,
  )
  backends.pick_backend(
    section.get('backend', 'auto'), num_processes, section.get('plugin_path')
  )
  enable_compilation_cache(section.get('compilation_cache', ''))
  return num_processes


def _describe_job(section: Mapping[str, Any]) -> None:
  """Puts a job described in the config where launchers describe one."""
  names = {'num_processes': 'JAX_NUM_PROCESSES', 'process_id': 'JAX_PROCESS_ID'}
  given = {name: section.get(name) for name in names}
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == 1:
    (other,) = {*names} - {*missing}
    raise UserError(
      f'runtime.{other} is {given[other]}, but runtime.{missing[0]} is not set.'
    )
  if not missing:
    os.environ.update({names[name]: str(given[name]) for name in names})


def start_distributed(
  coordinator_address: str | None = None,
  heartbeat_seconds: int = _HEARTBEAT_SECONDS,
) -> int:
  """Joins the processes of the job that this one is of; waits for all.

  Where the launcher starts a process per device, each drives one GPU, that of
  its local rank, unless `JAX_LOCAL_DEVICE_IDS` says otherwise; elsewhere each
  drives all of its machine. Gaudi's driver reads the local rank of Open MPI by
  itself.

  Args:
    coordinator_address: `HOST:PORT`, a free port on the machine of process 0;
      None finds one, under Open MPI and SLURM.
    heartbeat_seconds: a process that was silent for so long ends the others.

  Returns:
    The number of processes; 1 without a launcher.

  Raises:
    ValueError: the address is wrong, or has to be given.
    RuntimeError: the processes did not find each other.
  """
  launch = find_launch()
  if launch is None:
    _check_alone()
    return 1
  address = coordinator_address or os.environ.get('JAX_COORDINATOR_ADDRESS')
  if address is None:
    address = _find_address(launch)
  elif not address.rpartition(':')[2].isdigit():
    raise UserError(
      f'runtime.coordinator_address must be HOST:PORT, got {address!r}.'
    )
  if launch.rank != 0:
    # Process 0 alone has something to say there, but gloo, which JAX uses on
    # the CPU, greets in every process.
    _mute(_STDOUT)
    logging.getLogger().setLevel(logging.WARNING)
  _join(launch, address, heartbeat_seconds)
  return launch.num_processes


def _check_alone() -> None:
  """Raises where half of a job is described: each would train it all."""
  number = os.environ.get('JAX_NUM_PROCESSES', '1')
  if number != '1':
    raise UserError(
      f'JAX_NUM_PROCESSES is {number}, but nothing says which of them this is: '
      'set JAX_PROCESS_ID, or let Kubernetes set JOB_COMPLETION_INDEX.'
    )


def _join(launch: Launch, address: str | None, heartbeat_seconds: int) -> None:
  local_ids = None
  if launch.local_rank is not None and 'JAX_LOCAL_DEVICE_IDS' not in os.environ:
    local_ids = [launch.local_rank]
  is_local = address and address.rpartition(':')[0] in _LOCAL_NAMES
  try:
    jax.distributed.initialize(
      address,
      launch.num_processes,
      launch.rank,
      local_device_ids=local_ids,
      # With an address there is nothing left to detect; in a pod JAX would
      # want to ask Kubernetes, with a package and a permission for it.
      cluster_detection_method='deactivate' if address else None,
      # JAX would listen to all machines.
      coordinator_bind_address=address if is_local else None,
      heartbeat_timeout_seconds=heartbeat_seconds,
    )
    names = roll_call.introduce(launch.local_rank is None)
  except Exception as error:
    raise RuntimeError(
      f'{launch} did not reach the others through '
      f'{address or "the address that JAX found"}: {error}'
    ) from error
  # JAX names a process that went silent by its number.
  if launch.rank == 0:
    logging.info('%d processes: %s', launch.num_processes, '; '.join(names))


def end_job(message: str, code: int, expected: bool = True) -> None:
  """Ends this process, and so the job; does nothing if it is the only one.

  An ordinary exit would wait for the other processes, which wait for this one.
  Where all fail alike, or one because another did, the one that knows best
  speaks first, and the launcher ends the others while they hesitate. Where it
  does not, a process that lost another one says which.

  Args:
    message: for stderr.
    code: exit code, not 0, which makes the launcher end the others.
    expected: whether the message names the cause; other errors may be due to
      the end of another process.
  """
  launch = find_launch()
  if launch is None or launch.num_processes == 1:
    return
  # Whatever failed in the end, it may have failed for want of another process.
  lost = any(word in message for word in _LOST)
  expected = expected and not lost
  seconds = _HESITATION_SECONDS * ((launch.rank > 0) + 2 * (not expected))
  if lost:
    message = _name_the_lost(launch, message, seconds)
  else:
    # JAX itself ends a process that lost process 0, with a long trace.
    stderr = _mute(_STDERR)
    time.sleep(seconds)
    os.dup2(stderr, _STDERR)
  print(message, file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _name_the_lost(launch: Launch, message: str, seconds: float) -> str:
  """Takes the place of a traceback that ends in a collective."""
  own = message.strip().splitlines()[-1]
  start = time.monotonic()
  lines = roll_call.call(f'failed: {own}', seconds)
  # Under mpirun and srun the one that knows more may still speak.
  if launch.local_rank is not None:
    time.sleep(max(0.0, seconds - time.monotonic() + start))
  silent = [
    line for line in lines if not line.partition(': ')[2].startswith('failed')
  ]
  if not silent:
    return message
  return f'{launch}: {own}\nLost: {"; ".join(silent)}. {roll_call.ADVICE}'


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
  if launch.num_processes == 1:
    return _free_address()
  if launch.launcher == 'slurm':
    return None
  if launch.launcher != 'ompi':
    raise UserError(
      'The processes do not know where to meet: set '
      'runtime.coordinator_address, or JAX_COORDINATOR_ADDRESS, to HOST:PORT, '
      'a free port on the machine of process 0.'
    )
  folder = os.environ.get('PMIX_SERVER_TMPDIR')
  num_local = int(os.environ.get('OMPI_COMM_WORLD_LOCAL_SIZE', 0))
  if folder and num_local == launch.num_processes:
    job = os.environ.get('PMIX_NAMESPACE', '')
    return _meet(pathlib.Path(folder) / f'jax-coordinator-{job}', launch.rank)
  # Open MPI 5 no longer says where mpirun runs.
  if 'OMPI_MCA_orte_hnp_uri' not in os.environ:
    raise UserError(
      'This version of Open MPI does not say how the processes reach each '
      'other: set runtime.coordinator_address to HOST:PORT, a free port on the '
      'machine of process 0.'
    )
  return None


def _free_address() -> str:
  with socket.socket() as free:
    free.bind((_LOCAL_HOST, 0))
    return f'{_LOCAL_HOST}:{free.getsockname()[1]}'


def _meet(path: pathlib.Path, rank: int) -> str:
  """An address on this machine, told through a file of the job.

  A port computed from the number of the job may be that of another job, whose
  processes JAX would then disturb; the operating system knows a free one.
  """
  if rank == 0:
    address = _free_address()
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
