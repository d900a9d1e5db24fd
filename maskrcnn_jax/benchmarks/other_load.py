"""How much of the CPUs other processes take while something is measured.

They slow the two sides of a comparison unequally: PyTorch's threads wait for
each other at the end of every loop, so that one that was put off holds up all,
where XLA hands out work in small pieces.
"""

import os
import pathlib
import time
from collections.abc import Sequence

_PROC = pathlib.Path('/proc')
# What a quiet machine does by itself, in CPUs.
QUIET = 0.1


class OtherLoad:
  """CPUs that others used since it was made, or since it was last read."""

  def __init__(self, pids: Sequence[int] = ()):
    """Starts to count.

    Args:
      pids: processes besides this one that are not others.
    """
    self._pids = [os.getpid(), *pids]
    self._last = self._now()

  def read(self) -> float | None:
    """A mean number of CPUs; None where the system does not tell."""
    last, self._last = self._last, self._now()
    if last is None or self._last is None:
      return None
    wall, busy, own = (new - old for new, old in zip(self._last, last))
    return max(busy - own, 0.0) / wall if wall else None

  def _now(self) -> tuple[float, float, float] | None:
    """Seconds of the wall clock, of all CPUs, and of our processes."""
    try:
      busy = busy_seconds((_PROC / 'stat').read_text())
      own = sum(
        process_seconds((_PROC / str(pid) / 'stat').read_text())
        for pid in self._pids
      )
    except OSError:
      return None
    return time.monotonic(), busy, own


def busy_seconds(stat: str) -> float:
  """Seconds that CPUs worked since the machine started, in all.

  Args:
    stat: text of /proc/stat.
  """
  # user, nice, system, idle, iowait, irq, softirq, steal; time of guests is in
  # that of user.
  ticks = [int(word) for word in stat.splitlines()[0].split()[1:9]]
  return (sum(ticks) - ticks[3] - ticks[4]) / _ticks_per_second()


def process_seconds(stat: str) -> float:
  """Seconds that a process worked, and children that it has waited for.

  Args:
    stat: text of /proc/PID/stat.
  """
  # The name in parentheses may hold spaces; fields 14 to 17 are utime, stime,
  # cutime and cstime.
  fields = stat.rpartition(')')[2].split()
  return sum(int(word) for word in fields[11:15]) / _ticks_per_second()


def _ticks_per_second() -> int:
  return os.sysconf('SC_CLK_TCK')
