"""Measures programs: their work as the compiler counts it, and their time.

Times are seconds of the wall clock from a call until its result is there.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import tqdm

from maskrcnn_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled function, and what the compiler says of it.

  Attributes:
    run: the function, of arrays of the shapes that it was compiled for.
    flops: operations of a call on one device, see `count_flops`; 0 if the
      compiler does not say.
    bytes_accessed: that the instructions of a call read and write, as if there
      were no caches. On a GPU what libraries do is not in it.
    memory: bytes by kind, see `program_memory`.
    compile_seconds: of tracing and compiling; short where a cache had it.
  """

  run: Callable
  flops: float
  bytes_accessed: float
  memory: dict[str, int]
  compile_seconds: float

  def costs(self) -> dict[str, Any]:
    """What can be written as JSON."""
    names = [x.name for x in dataclasses.fields(self) if x.name != 'run']
    return {name: getattr(self, name) for name in names}


def compile_program(function: Callable, *arguments: Any) -> Program:
  """Compiles a function for these arguments.

  Args:
    function: jitted, or any that can be.
    arguments: arrays, or their shapes.
  """
  jitted = function if hasattr(function, 'lower') else jax.jit(function)
  start = time.perf_counter()
  traced = jitted.trace(*arguments)
  lowered = traced.lower()
  compiled = lowered.compile()
  seconds = time.perf_counter() - start
  costs = compiled.cost_analysis() or {}
  return Program(
    run=compiled,
    flops=count_flops(traced, compiled),
    bytes_accessed=max(costs.get('bytes accessed', 0.0), 0.0),
    memory=program_memory(compiled.memory_analysis()),
    compile_seconds=seconds,
  )


def count_flops(traced: Any, compiled: Any) -> float:
  """Operations of a call, as the compiler counts them.

  The larger of two counts. That of the compiled program lacks what libraries
  do in it, on a GPU most products; that before compilation lacks what is
  computed twice. Both count the body of a loop once. The one before compilation
  is of the form for TPUs, whose products are as they are defined: where a CPU
  gets by with fewer, the work that it is spared counts as done.

  Args:
    traced: the function, of all devices.
    compiled: the same as one device has it.
  """
  defined = traced.lower(lowering_platforms=('tpu',))
  whole, part = (
    (stage.cost_analysis() or {}).get('flops', 0.0)
    for stage in (defined, compiled)
  )
  return max(whole / num_devices(compiled), part, 0.0)


def num_devices(compiled: Any) -> int:
  """How many devices share a compiled program."""
  places = jax.tree.leaves(compiled.input_shardings)
  return max((len(place.device_set) for place in places), default=1)


def program_memory(analysis: Any) -> dict[str, int]:
  """Bytes on one device, by what they hold.

  Args:
    analysis: of a compiled program.

  Returns:
    `needed` is all that is allocated while the program runs; `least_moved` what
    it must read and write whatever it does, arguments and outputs.
  """
  memory = {
    'arguments': analysis.argument_size_in_bytes,
    'outputs': analysis.output_size_in_bytes,
    # Outputs that take the place of arguments.
    'aliased': analysis.alias_size_in_bytes,
    'temporaries': analysis.temp_size_in_bytes,
    'program': analysis.generated_code_size_in_bytes,
  }
  needed = sum(memory.values()) - 2 * memory['aliased']
  least_moved = memory['arguments'] + memory['outputs']
  return memory | {'needed': needed, 'least_moved': least_moved}


def seconds_of(function: Callable, *arguments: Any) -> tuple[float, Any]:
  """Seconds of a call until its result is there, and the result."""
  start = time.perf_counter()
  result = jax.block_until_ready(function(*arguments))
  return time.perf_counter() - start, result


def alternate(
  sides: Mapping[str, Callable[[int], float]],
  rounds: int,
  warmup: int,
  title: str = '',
) -> dict[str, list[float]]:
  """Runs sides by turns, A B A B, so that each sees the machine alike.

  Args:
    sides: by name a function of the number of the round that returns seconds.
    rounds: that count.
    warmup: rounds before them.
    title: of the progress bar.

  Returns:
    By name the seconds of every round that counts.
  """
  seconds = {name: [] for name in sides}
  total = (warmup + rounds) * len(sides)
  with tqdm.tqdm(total=total, desc=title, leave=False, disable=None) as bar:
    for number in range(warmup + rounds):
      for name, run in sides.items():
        value = run(number)
        if number >= warmup:
          seconds[name].append(value)
        bar.update()
  return seconds


def summary(seconds: Sequence[float]) -> dict[str, Any]:
  """Median and spread of measured times, and all of them.

  Args:
    seconds: one or more.

  Returns:
    `median`, `lowest`, `highest`, and `all` in the order of measurement.
  """
  return {
    'median': statistics.median(seconds),
    'lowest': min(seconds),
    'highest': max(seconds),
    'all': list(seconds),
  }


def ratio(ours: Sequence[float], others: Sequence[float]) -> dict[str, float]:
  """How our times compare with theirs, of the same rounds.

  Args:
    ours: seconds of every round.
    others: likewise.

  Returns:
    `median`: ratio of the medians, below 1 where we are faster. `lowest` and
    `highest` of the ratios of single rounds.
  """
  if len(ours) != len(others):
    raise UserError(
      f'Both sides must have run in every round, got {len(ours)} and '
      f'{len(others)} times.'
    )
  rounds = [a / b for a, b in zip(ours, others)]
  return {
    'median': statistics.median(ours) / statistics.median(others),
    'lowest': min(rounds),
    'highest': max(rounds),
  }


def floor(
  flops: float, num_bytes: float, peak: float, bandwidth: float
) -> dict[str, Any]:
  """The least time that work can take on a machine (its roofline).

  Args:
    flops: operations.
    num_bytes: to be read and written at least.
    peak: operations a second.
    bandwidth: bytes a second.

  Returns:
    `compute_seconds`, `memory_seconds`, their maximum `seconds`, and `bound`,
    the name of the larger: 'compute' or 'memory'.
  """
  times = {'compute': flops / peak, 'memory': num_bytes / bandwidth}
  bound = max(times, key=times.get)
  return {
    'compute_seconds': times['compute'],
    'memory_seconds': times['memory'],
    'seconds': times[bound],
    'bound': bound,
  }


def throughput(seconds: Sequence[float], batch_size: int) -> dict[str, Any]:
  """Times of a batch, and images a second by their median."""
  times = summary(seconds)
  return {
    'seconds': times,
    'images_per_second': batch_size / times['median'],
  }
