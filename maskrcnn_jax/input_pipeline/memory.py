"""How much memory this process may use, and whether records fit into it."""

import os
import pathlib

# Habana's rule: a machine with less keeps no records and few batches.
PLENTY_BYTES = 45 * 2**30
# What a container may use: control groups, version 2 and version 1.
_LIMIT_FILES = (
  'sys/fs/cgroup/memory.max',
  'sys/fs/cgroup/memory/memory.limit_in_bytes',
)


def limit_bytes(root: str | os.PathLike = '/') -> int | None:
  """Memory of the machine or of the container around us, whichever is less.

  Args:
    root: where `proc` and `sys` are.

  Returns:
    Bytes; None where the system does not say.
  """
  limits = [_total_bytes(pathlib.Path(root, 'proc/meminfo'))]
  limits += [_limit(pathlib.Path(root, name)) for name in _LIMIT_FILES]
  return min((limit for limit in limits if limit is not None), default=None)


def is_plenty() -> bool:
  """Whether there is memory for more than what is needed next."""
  limit = limit_bytes()
  return limit is not None and limit >= PLENTY_BYTES


def share_bytes() -> int | None:
  """What every process of this machine may keep; None where nothing is known.

  Half of the memory, for all of them.
  """
  limit = limit_bytes()
  # Under mpirun its processes share the machine.
  processes = int(os.environ.get('OMPI_COMM_WORLD_LOCAL_SIZE', 1))
  return None if limit is None else limit // 2 // processes


def fits(num_bytes: int) -> bool:
  """Whether so much may be kept by every process of this machine."""
  return is_plenty() and num_bytes <= share_bytes()


def _total_bytes(path):
  """MemTotal of /proc/meminfo."""
  try:
    lines = path.read_text().splitlines()
  except OSError:
    return None
  for line in lines:
    name, _, value = line.partition(':')
    if name == 'MemTotal':
      return int(value.split()[0]) * 1024
  return None


def _limit(path):
  """A control group's limit; None for `max` or without the file."""
  try:
    return int(path.read_text())
  except (OSError, ValueError):
    return None
