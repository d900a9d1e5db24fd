"""Launcher: the rank of this process in its job, read from the environment.

Imports no JAX, so that a command may ask before anything heavy is imported.
"""

import dataclasses
import os
import pathlib
import socket
import time

from maskrcnn_jax import files
from maskrcnn_jax.errors import UserError, invalid

LOCAL_HOST = '127.0.0.1'
# Launcher -> variables with the number of processes, the rank of this one, and
# its rank on its machine, which only launchers of one process per device set.
# Variables set by hand come first. Open MPI comes before SLURM, since mpirun in
# a SLURM job inherits SLURM's variables; those of a SLURM step are absent from
# a batch script that starts no step. Kubernetes numbers the pods of an indexed
# job but does not tell them how many there are.
_LAUNCHERS = {
  'explicit': ('JAX_NUM_PROCESSES', 'JAX_PROCESS_ID', None),
  'ompi': (
    'OMPI_COMM_WORLD_SIZE',
    'OMPI_COMM_WORLD_RANK',
    'OMPI_COMM_WORLD_LOCAL_RANK',
  ),
  'slurm': ('SLURM_STEP_NUM_TASKS', 'SLURM_PROCID', 'SLURM_LOCALID'),
  'kubernetes': ('JAX_NUM_PROCESSES', 'JOB_COMPLETION_INDEX', None),
}
_ADDRESS_SECONDS = 60  # For process 0 to write its address.


class JobError(UserError):
  """The processes of a job do not find each other."""


@dataclasses.dataclass(frozen=True)
class Launch:
  """This process among those that a launcher started as one job.

  Attributes:
    launcher: `explicit`, `ompi`, `slurm` or `kubernetes`.
    rank: of this process; process 0 alone prints and writes.
    local_rank: of this process on its machine; it uses the device of that
      number. None: it uses all devices of its machine.
  """

  launcher: str
  num_processes: int
  rank: int
  local_rank: int | None = None

  def __str__(self):
    # With the machine, which users look for rather than the number.
    host = os.uname().nodename
    return f'process {self.rank} of {self.num_processes} on {host}'


def find_launch() -> Launch | None:
  """The job of this process, by the environment.

  Returns:
    None where this process is the only one, also under `mpirun --np 1`. A job
    of one process that was described by hand is a job: its devices add up
    gradients in the same order as those of several processes.

  Raises:
    UserError: a variable is not a valid number.
  """
  for launcher, names in _LAUNCHERS.items():
    names = [name for name in names if name]
    if all(name in os.environ for name in names):
      launch = Launch(launcher, *map(_number, names))
      if launch.num_processes <= 1 and launcher != 'explicit':
        return None
      if launch.rank >= launch.num_processes:
        wanted = f'less than {names[0]}, {launch.num_processes}'
        raise invalid(names[1], launch.rank, wanted)
      return launch
  return None


def find_address(launch: Launch) -> str | None:
  """`HOST:PORT` of process 0 where none was given; None: JAX finds it.

  Raises:
    JobError: the launcher does not tell the address.
  """
  if launch.num_processes == 1:
    return free_address()
  if launch.launcher == 'slurm':
    return None
  if launch.launcher != 'ompi':
    raise JobError(
      'The address of process 0 is not known: set runtime.coordinator_address, '
      'or JAX_COORDINATOR_ADDRESS, to HOST:PORT, a free port on its machine.',
      argument='runtime.coordinator_address',
    )
  folder = os.environ.get('PMIX_SERVER_TMPDIR')
  num_local = int(os.environ.get('OMPI_COMM_WORLD_LOCAL_SIZE', 0))
  if folder and num_local == launch.num_processes:
    job = os.environ.get('PMIX_NAMESPACE', '')
    return _share_address(
      pathlib.Path(folder, f'jax-coordinator-{job}'), launch.rank
    )
  # Open MPI 5 no longer says where mpirun runs.
  if 'OMPI_MCA_orte_hnp_uri' not in os.environ:
    raise JobError(
      'This version of Open MPI does not say where process 0 is: set '
      'runtime.coordinator_address to HOST:PORT, a free port on its machine.',
      argument='runtime.coordinator_address',
    )
  return None


def free_address() -> str:
  """`HOST:PORT` of this machine that nobody listens to."""
  with socket.socket() as free:
    free.bind((LOCAL_HOST, 0))
    return f'{LOCAL_HOST}:{free.getsockname()[1]}'


def _share_address(path: pathlib.Path, rank: int) -> str:
  """A free address of this machine, which process 0 writes and others read.

  A port computed from the number of the job could belong to another job, whose
  processes JAX would then disturb; the operating system knows a free one.
  """
  if rank == 0:
    address = free_address()
    files.write_text(path, address)
    return address
  end = time.monotonic() + _ADDRESS_SECONDS
  while not path.exists():
    if time.monotonic() > end:
      raise JobError(
        f'Process 0 did not write {path} within {_ADDRESS_SECONDS} s.',
        path=path,
      )
    time.sleep(0.05)
  return path.read_text()


def _number(name: str) -> int:
  text = os.environ[name]
  if not text.isdigit():
    raise invalid(name, text, 'a whole number')
  return int(text)
