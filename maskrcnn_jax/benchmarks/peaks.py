"""What the machine can do: products of large matrices, copies of large arrays.

Measured in the run that they are compared with, for machines change from hour
to hour.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from maskrcnn_jax.benchmarks import measure

# Sides of the matrices, and bytes of the array that is copied: so large that a
# call takes some ms, and that the array is in no cache.
_SIDES = {'cpu': (1024, 2048), 'default': (4096, 8192, 16384)}
_COPY_BYTES = {'cpu': 2**28, 'default': 2**31}
DTYPES = ('float32', 'bfloat16')


def measure_peaks(
  rounds: int = 5,
  sides: tuple[int, ...] | None = None,
  copy_bytes: int | None = None,
) -> dict[str, Any]:
  """Peaks of one device.

  Args:
    rounds: calls that are timed, after one that is not; the fastest counts.
    sides: of square matrices to multiply; None: by backend.
    copy_bytes: of the array to copy; None: by backend.

  Returns:
    `flops`: operations a second by dtype. `bandwidth`: bytes a second, read
    and written ones together. `gemm_side`: of the fastest product by dtype.
  """
  kind = jax.default_backend()
  kind = kind if kind in _SIDES else 'default'
  sides = sides or _SIDES[kind]
  copy_bytes = copy_bytes or _COPY_BYTES[kind]
  flops, best_sides = {}, {}
  for dtype in DTYPES:
    rates = {side: _gemm_rate(side, dtype, rounds) for side in sides}
    best_sides[dtype] = max(rates, key=rates.get)
    flops[dtype] = rates[best_sides[dtype]]
  return {
    'flops': flops,
    'gemm_side': best_sides,
    'bandwidth': _copy_rate(copy_bytes, rounds),
  }


def highest(*measured: dict[str, Any]) -> dict[str, Any]:
  """Of peaks measured at several times of a run, the highest of each."""
  best = {
    dtype: max(measured, key=lambda peaks, d=dtype: peaks['flops'][d])
    for dtype in measured[0]['flops']
  }
  return {
    'flops': {dtype: peaks['flops'][dtype] for dtype, peaks in best.items()},
    'gemm_side': {d: peaks['gemm_side'][d] for d, peaks in best.items()},
    'bandwidth': max(peaks['bandwidth'] for peaks in measured),
  }


def product_dtype(precision: str) -> str:
  """The dtype whose peak bounds a model of that precision."""
  return 'float32' if precision == 'float32' else 'bfloat16'


def _gemm_rate(side, dtype, rounds) -> float:
  keys = jax.random.split(jax.random.key(0))
  # Random: products of zeros draw less power, and are faster for it.
  a, b = (jax.random.normal(key, (side, side), dtype) for key in keys)
  program = measure.compile_program(lambda a, b: a @ b, a, b)
  return 2 * side**3 / _fastest(program.run, rounds, a, b)


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


def _fastest(run, rounds, *arguments) -> float:
  measure.seconds_of(run, *arguments)
  return min(measure.seconds_of(run, *arguments)[0] for _ in range(rounds))
