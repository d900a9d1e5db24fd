"""The machine of a benchmark: its peaks, its load, the roofline they give.

Peaks are measured in the run that they are compared with: clouds and laptops
change from hour to hour. Load of other processes slows the two sides of a
comparison unequally: PyTorch's threads wait for each other at the end of every
loop, so that one that was preempted holds up all, where XLA hands out work in
small pieces.
"""

import math
import os
import pathlib
import resource
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from maskrcnn_jax.benchmarks import measure

# Sides of the matrices, and bytes of the array that is copied: so large that a
# call takes some ms, and that the array is in no cache.
_SIDES = {'cpu': (1024, 2048), 'default': (4096, 8192, 16384)}
_COPY_BYTES = {'cpu': 2**28, 'default': 2**31}
DTYPES = ('float32', 'bfloat16')
_PROC = pathlib.Path('/proc')
# CPUs that a quiet machine uses by itself.
QUIET = 0.1


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
) -> dict[str, Any]:
  """Peaks of one device: products of large matrices, copies of large arrays.

  Args:
    rounds: calls that are timed, after one that is not; the fastest counts.
    sides: of square matrices to multiply; None: by backend.
    copy_bytes: of the array to copy; None: by backend.

  Returns:
    `flops`: operations a second by dtype. `bandwidth`: bytes a second, read
    and written ones together. `gemm_side`: of the fastest product by dtype.
  """
  kind = 'cpu' if jax.default_backend() == 'cpu' else 'default'
  best = {
    dtype: max(
      (_gemm_rate(side, dtype, rounds), side) for side in sides or _SIDES[kind]
    )
    for dtype in DTYPES
  }
  return {
    'flops': {dtype: rate for dtype, (rate, _) in best.items()},
    'gemm_side': {dtype: side for dtype, (_, side) in best.items()},
    'bandwidth': _copy_rate(copy_bytes or _COPY_BYTES[kind], rounds),
  }


def highest(*measured: dict[str, Any]) -> dict[str, Any]:
  """The highest of each peak, of several measurements."""
  best = {
    dtype: max((x['flops'][dtype], x['gemm_side'][dtype]) for x in measured)
    for dtype in measured[0]['flops']
  }
  return {
    'flops': {dtype: rate for dtype, (rate, _) in best.items()},
    'gemm_side': {dtype: side for dtype, (_, side) in best.items()},
    'bandwidth': max(x['bandwidth'] for x in measured),
  }


def _gemm_rate(side, dtype, rounds) -> float:
  keys = jax.random.split(jax.random.key(0))
  # Random: products of zeros draw less power, and are faster for it.
  a, b = (jax.random.normal(key, (side, side), dtype) for key in keys)
  product = jax.jit(lambda a, b: a @ b)
  measure.seconds_of(product, a, b)
  times = [measure.seconds_of(product, a, b)[0] for _ in range(rounds)]
  return 2 * side**3 / min(times)


def _copy_rate(num_bytes, rounds) -> float:
  # In place: where the result is new memory, a CPU's kernel fills that with
  # zeros first, which takes longer than the copy.
  add = jax.jit(lambda x: x + 1, donate_argnums=0)
  x = add(jnp.ones(math.ceil(num_bytes / 4), jnp.float32))
  times = []
  for _ in range(rounds):
    seconds, x = measure.seconds_of(add, x)
    times.append(seconds)
  return 2 * x.nbytes / min(times)


def add_floors(result: dict[str, Any]) -> None:
  """Adds to every measured program its roofline, from the peaks of the run.

  Args:
    result: see `bench.bench`; changed in place. Whatever has a `program` and
      `seconds` gets `floor`, the least time that its work can take:
      `compute_seconds` of its operations, `memory_seconds` of the bytes that
      any program must move, arguments and outputs, their maximum `seconds`, and
      `bound`, 'compute' or 'memory'; `gap_seconds`, the median less the floor;
      `traffic_seconds`, the time of the bytes that this program moves, without
      caches; and `peak_share`, operations a second over the peak.
  """
  float32 = result['subject']['dtype'] == 'float32'
  peak = result['peaks']['flops']['float32' if float32 else 'bfloat16']
  bandwidth = result['peaks']['bandwidth']
  sides = ('step', 'inference', 'backbone')
  rows = [result[name]['ours'] for name in sides if name in result]
  rows += [x for kind in result.get('stages', {}).values() for x in kind]
  rows += [row for row in result.get('growth', []) if row['program']]
  for row in rows:
    work, median = row['program'], row['seconds']['median']
    compute = work['flops'] / peak
    memory = work['memory']['least_moved'] / bandwidth
    row['floor'] = {
      'compute_seconds': compute,
      'memory_seconds': memory,
      'seconds': max(compute, memory),
      'bound': 'memory' if memory > compute else 'compute',
    }
    row['gap_seconds'] = median - row['floor']['seconds']
    row['traffic_seconds'] = work['bytes_accessed'] / bandwidth
    row['peak_share'] = compute / median


class OtherLoad:
  """CPUs used by other processes, since it was made or last read."""

  def __init__(self, pids: Sequence[int] = ()):
    """Starts to count; `pids` are part of the benchmark, as is this process."""
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
      own = [(_PROC / str(pid) / 'stat').read_text() for pid in self._pids]
    except OSError:
      return None
    return time.monotonic(), busy, sum(map(process_seconds, own))


def busy_seconds(stat: str) -> float:
  """Seconds that all CPUs have worked, from the text of /proc/stat."""
  # user, nice, system, idle, iowait, irq, softirq, steal; time of guests is in
  # that of user.
  ticks = [int(word) for word in stat.splitlines()[0].split()[1:9]]
  return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf('SC_CLK_TCK')


def process_seconds(stat: str) -> float:
  """Seconds that a process and its ended children worked, of /proc/PID/stat."""
  # The name in parentheses may hold spaces; fields 14 to 17 are utime, stime,
  # cutime and cstime.
  fields = stat.rpartition(')')[2].split()
  return sum(int(x) for x in fields[11:15]) / os.sysconf('SC_CLK_TCK')
