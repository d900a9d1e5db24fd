"""Which process of a job this is, by what its launcher put in the environment.

Knows no JAX, so that a command may ask before anything heavy is imported.
"""

import dataclasses
import os

from maskrcnn_jax.errors import UserError

# Launcher -> size of the job, number of this process, its number on its
# machine, which only launchers of one process per device say. Variables that
# somebody set by hand come first. Open MPI comes before SLURM, for mpirun
# inside of a SLURM job inherits SLURM's variables; those of a SLURM step are
# not there in a batch script that starts no step. Kubernetes numbers the pods
# of an indexed job but does not tell them how many there are.
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


@dataclasses.dataclass(frozen=True)
class Launch:
  """This process among those that a launcher started as one job.

  Attributes:
    launcher: `explicit`, `ompi`, `slurm` or `kubernetes`.
    num_processes: of the job.
    rank: of this process; process 0 alone prints and writes.
    local_rank: of this process on its machine, whose device of that number it
      drives; None: it drives all devices of its machine.
  """

  launcher: str
  num_processes: int
  rank: int
  local_rank: int | None = None

  def __str__(self):
    """For messages: users look for the machine, not for the number."""
    return (
      f'process {self.rank} of {self.num_processes} on {os.uname().nodename}'
    )


def find_launch() -> Launch | None:
  """What the environment says about the job that this process is of.

  Returns:
    None where this process is the only one, also under `mpirun --np 1`; but a
    job of one process that was described by hand is a job: its devices then add
    as those of several processes do, in the same order.

  Raises:
    ValueError: a variable is no number that can be.
  """
  for launcher, names in _LAUNCHERS.items():
    names = [name for name in names if name]
    if all(name in os.environ for name in names):
      launch = Launch(launcher, *map(_number, names))
      if launch.num_processes <= 1 and launcher != 'explicit':
        return None
      if launch.rank >= launch.num_processes:
        raise UserError(
          f'{names[1]} must be less than {names[0]}, {launch.num_processes}; '
          f'got {launch.rank}.'
        )
      return launch
  return None


def _number(name: str) -> int:
  if not os.environ[name].isdigit():
    raise UserError(f'{name} must be a whole number, got {os.environ[name]!r}.')
  return int(os.environ[name])
