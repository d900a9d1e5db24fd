"""Facts of the machine of a benchmark: its peaks and the load of others.

Peaks are measured in the run that they are compared with: clouds and laptops
change from hour to hour. Load of other processes slows the two sides of a
comparison unequally: PyTorch's threads wait for each other at the end of every
loop, so that one that was preempted holds up all, where XLA hands out work in
small pieces.
"""

import os
import pathlib
import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maskrcnn_jax.benchmarks import measure

# Sides of the matrices, and bytes of the array that is copied: so large that a
# call takes some ms, and that the array is in no cache.
_SIDES = {'cpu': (1024, 2048), 'default': (4096, 8192, 16384)}
_COPY_BYTES = {'cpu': 2**28, 'default': 2**31}


def describe() -> dict[str, Any]:
  """Backend, devices, CPUs and load, for the record."""
  return {
    'backend': jax.default_backend(),
    'device': jax.devices()[0].device_kind,
    'devices': jax.device_count(),
    'cpus': num_cpus(),
    'jax': jax.__version__,
    'load_before': os.getloadavg()[0],
  }


def num_cpus() -> int:
  """CPUs that this process may use, as JAX takes them."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count()


def peak_memory() -> int:
  """Largest number of bytes in use on a device; on a CPU of this process."""
  stats = jax.local_devices()[0].memory_stats() or {}
  resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return stats.get('peak_bytes_in_use', resident)


def measure_peaks(
  rounds: int = 5,
  sides: tuple[int, ...] | None = None,
  copy_bytes: int | None = None,
) -> dict[str, float]:
  """Peaks of one device: products of large matrices, copies of large arrays.

  Args:
    rounds: calls that are timed, after one that is not; the fastest counts.
    sides: of square matrices to multiply; None: by backend.
    copy_bytes: of the array to copy; None: by backend.

  Returns:
    `float32` and `bfloat16`: operations a second. `bandwidth`: bytes a second,
    read and written ones together.
  """
  kind = 'cpu' if jax.default_backend() == 'cpu' else 'default'
  peaks = {
    dtype: max(_gemm_rate(x, dtype, rounds) for x in sides or _SIDES[kind])
    for dtype in ('float32', 'bfloat16')
  }
  # In place: where the result is new memory, a CPU's kernel fills that with
  # zeros first, which takes longer than the copy.
  add = jax.jit(lambda x: x + 1, donate_argnums=0)
  x = add(jnp.ones((copy_bytes or _COPY_BYTES[kind]) // 4, jnp.float32))
  times = []
  for _ in range(rounds):
    seconds, x = measure.seconds_of(add, x)
    times.append(seconds)
  return peaks | {'bandwidth': 2 * x.nbytes / min(times)}


def _gemm_rate(side, dtype, rounds) -> float:
  keys = jax.random.split(jax.random.key(0))
  # Random: products of zeros draw less power, and are faster for it.
  a, b = (jax.random.normal(key, (side, side), dtype) for key in keys)
  product = jax.jit(lambda a, b: a @ b)
  times = [measure.seconds_of(product, a, b)[0] for _ in range(1 + rounds)]
  return 2 * side**3 / min(times[1:])


def busy_seconds() -> float | None:
  """Seconds that all CPUs have worked; None where the system does not tell."""
  try:
    line = pathlib.Path('/proc/stat').read_text().partition('\n')[0]
  except OSError:
    return None
  # user, nice, system, idle, iowait, irq, softirq, steal; time of guests is in
  # that of user.
  ticks = [int(word) for word in line.split()[1:9]]
  return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf('SC_CLK_TCK')


class OtherLoad:
  """Number of CPUs used by other processes, between its readings."""

  def __init__(self, others: Callable[[], float]):
    """Starts to count; `others` tells the CPU seconds of our other process."""
    self._others = others
    self._last = self._now()

  def read(self) -> float | None:
    """A mean since the last reading; None where the system does not tell."""
    last, self._last = self._last, self._now()
    if last is None or self._last is None:
      return None
    wall, cpu = (new - old for new, old in zip(self._last, last))
    return max(cpu, 0.0) / wall if wall else None

  def _now(self) -> tuple[float, float] | None:
    busy = busy_seconds()
    if busy is None:
      return None
    # Own processes that have ended count too.
    own = sum(os.times()[:4]) + self._others()
    return time.monotonic(), busy - own
