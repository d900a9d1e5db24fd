"""Start and end of a process: its job, its backend, its compilation cache."""

import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax

from maskrcnn_jax.distributed import (
  allocator,
  backends,
  collectives,
  launcher,
)
from maskrcnn_jax.errors import UserError, invalid

# Folder of compiled programs.
COMPILATION_CACHE = '~/.cache/maskrcnn_jax/xla'
_LOCAL_NAMES = (launcher.LOCAL_HOST, 'localhost')
_STDOUT, _STDERR = 1, 2
_DELAY_SECONDS = 3  # See `end_job`.
_HEARTBEAT_SECONDS = 100  # JAX's own.


def start(section: Mapping[str, Any]) -> int:
  """Joins the job and picks the backend; before any array is made.

  Returns:
    The number of processes.

  Raises:
    UserError: there is no such backend, or the job is not described fully.
    JobError: the processes did not find each other.
  """
  if section.get('deterministic'):
    make_deterministic()
  _describe_job(section)
  num_processes = start_distributed(
    section.get('coordinator_address'),
    section.get('heartbeat_seconds') or _HEARTBEAT_SECONDS,
  )
  if num_processes == 1:
    allocator.run_in_calling_thread()
  backends.pick_backend(
    section.get('backend', 'auto'), num_processes, section.get('plugin_path')
  )
  enable_compilation_cache(section.get('compilation_cache', ''))
  return num_processes


def _describe_job(section: Mapping[str, Any]) -> None:
  """Sets the variables of a launcher for a job described in the config."""
  given = {name: section.get(name) for name in ('num_processes', 'process_id')}
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == 1:
    (name,) = missing
    raise UserError(
      f'runtime.{name} must be set too, given only {given}.',
      argument=f'runtime.{name}',
    )
  if not missing:
    os.environ.update({f'JAX_{k.upper()}': str(v) for k, v in given.items()})


def start_distributed(
  coordinator_address: str | None = None,
  heartbeat_seconds: int = _HEARTBEAT_SECONDS,
) -> int:
  """Joins the job of this process, if there is one; waits for all processes.

  Where the launcher starts a process per device, each uses one GPU, that of its
  local rank, unless `JAX_LOCAL_DEVICE_IDS` says otherwise; elsewhere each uses
  all devices of its machine. Gaudi's driver reads the local rank of Open MPI
  itself.

  Args:
    coordinator_address: `HOST:PORT`, a free port on the machine of process 0;
      None finds one, under Open MPI and SLURM.
    heartbeat_seconds: a process that is silent for longer ends the others.

  Returns:
    The number of processes; 1 without a launcher.

  Raises:
    UserError: the address is wrong.
    JobError: the address has to be given, or the processes did not find each
      other.
  """
  launch = launcher.find_launch()
  if launch is None:
    number = os.environ.get('JAX_NUM_PROCESSES', '1')
    if number != '1':  # Each process would train alone.
      raise UserError(
        f'JAX_NUM_PROCESSES is {number}, but the rank of this process is not '
        'known: set JAX_PROCESS_ID, or let Kubernetes set '
        'JOB_COMPLETION_INDEX.',
        argument='JAX_PROCESS_ID',
      )
    return 1
  address = coordinator_address or os.environ.get('JAX_COORDINATOR_ADDRESS')
  if address is None:
    address = launcher.find_address(launch)
  elif not address.rpartition(':')[2].isdigit():
    raise invalid('runtime.coordinator_address', address, 'HOST:PORT')
  if launch.rank != 0:
    # Process 0 alone prints, but gloo, which JAX uses on the CPU, sends a line
    # in every process.
    _mute(_STDOUT)
    logging.getLogger().setLevel(logging.WARNING)
  _join(launch, address, heartbeat_seconds)
  return launch.num_processes


def _join(
  launch: launcher.Launch, address: str | None, heartbeat_seconds: int
) -> None:
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
      # With an address nothing is left to detect. In a pod JAX would ask
      # Kubernetes, which needs a package and a permission.
      cluster_detection_method='deactivate' if address else None,
      # Otherwise JAX would accept connections from all machines.
      coordinator_bind_address=address if is_local else None,
      heartbeat_timeout_seconds=heartbeat_seconds,
    )
    names = collectives.register(launch.local_rank is None)
  except (RuntimeError, ValueError, OSError) as error:
    raise launcher.JobError(
      f'{launch} did not reach the others through '
      f'{address or "the address that JAX found"}: {error}',
      argument='runtime.coordinator_address',
      given=address,
    ) from error
  # JAX names a process that went silent by its rank only.
  if launch.rank == 0:
    logging.info('%d processes: %s', launch.num_processes, '; '.join(names))


def end_job(message: str, code: int, expected: bool = True) -> None:
  """Ends this process, and so the job; does nothing if it is the only one.

  An ordinary exit would wait for the other processes, which wait for this one.
  Where all fail alike, or one because another did, the process that knows the
  cause prints first, and the launcher ends the others while they wait. Where it
  does not, a process that lost another one says which.

  Args:
    code: exit code, not 0, which makes the launcher end the others.
    expected: the message names the cause; other errors may be due to the end
      of another process.
  """
  launch = launcher.find_launch()
  if launch is None or launch.num_processes == 1:
    return
  # Any error may be due to the loss of another process.
  lost = collectives.is_loss(message)
  expected = expected and not lost
  seconds = _DELAY_SECONDS * ((launch.rank > 0) + 2 * (not expected))
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


def _name_the_lost(
  launch: launcher.Launch, message: str, seconds: float
) -> str:
  """Names the processes that are gone, in place of a collective's traceback."""
  own = message.strip().splitlines()[-1]
  start = time.monotonic()
  lines = collectives.all_statuses(f'failed: {own}', seconds)
  # Under mpirun and srun the process that knows the cause may still print.
  if launch.local_rank is not None:
    time.sleep(max(0.0, seconds - time.monotonic() + start))
  silent = [
    line for line in lines if not line.partition(': ')[2].startswith('failed')
  ]
  if not silent:
    return message
  return f'{launch}: {own}\nLost: {"; ".join(silent)}. {collectives.ADVICE}'


def make_deterministic() -> None:
  """Makes a GPU give the same bits in every run, as a CPU does anyway.

  Sums whose order would depend on timing, such as the gradients of overlapping
  RoIs, are then added in a fixed order.
  """
  flag = '--xla_gpu_deterministic_ops=true'
  flags = os.environ.get('XLA_FLAGS', '')
  if flag not in flags:
    os.environ['XLA_FLAGS'] = f'{flags} {flag}'.strip()


def enable_compilation_cache(folder: str) -> None:
  """Keeps compiled programs on disk, so that the next start is faster.

  Args:
    folder: of the programs; `~` is the home directory, '' keeps nothing. One
      that is already set, as by `JAX_COMPILATION_CACHE_DIR`, stays.
  """
  if folder and not jax.config.jax_compilation_cache_dir:
    path = os.path.expanduser(folder)
    jax.config.update('jax_compilation_cache_dir', path)


def _mute(descriptor: int) -> int:
  """Discards further output of a descriptor; returns a copy of the former."""
  former = os.dup(descriptor)
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, descriptor)
  os.close(nowhere)
  return former
