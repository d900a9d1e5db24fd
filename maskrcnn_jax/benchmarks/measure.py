"""Measurement of compiled programs: seconds, operations and memory.

Times are seconds of the wall clock from a call until its result is there.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import tqdm


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled function and what the compiler reports about it.

  Attributes:
    run: the function, of arrays of the shapes that it was compiled for.
    flops: operations of a call on one device, see `count_flops`; 0 if the
      compiler does not report any.
    bytes_accessed: read and written by the instructions of a call, as if there
      were no caches; without what libraries do on a GPU.
    memory: bytes by kind, see `program_memory`.
    compile_seconds: of tracing and compiling; short with a warm cache.
  """

  run: Callable
  flops: float
  bytes_accessed: float
  memory: dict[str, int]
  compile_seconds: float

  def costs(self) -> dict[str, Any]:
    """All attributes but `run`, as JSON values."""
    names = [x.name for x in dataclasses.fields(self) if x.name != 'run']
    return {name: getattr(self, name) for name in names}


def compile_program(function: Callable, *arguments: Any) -> Program:
  """Compiles a function for these arguments, arrays or shapes."""
  jitted = function if hasattr(function, 'lower') else jax.jit(function)
  start = time.perf_counter()
  traced = jitted.trace(*arguments)
  compiled = traced.lower().compile()
  seconds = time.perf_counter() - start
  costs = compiled.cost_analysis() or {}
  return Program(
    run=compiled,
    flops=count_flops(traced, compiled),
    bytes_accessed=max(costs.get('bytes accessed', 0.0), 0.0),
    memory=program_memory(compiled),
    compile_seconds=seconds,
  )


def count_flops(traced: Any, compiled: Any) -> float:
  """Operations of a call on one device, as the compiler counts them.

  The larger of two counts. That of the compiled program lacks library calls,
  on a GPU most products; that before compilation lacks what is computed twice.
  Both count the body of a loop once. The count before compilation is of the
  form for TPUs, whose products are as they are defined: where a CPU needs fewer
  operations (Winograd), the operations that it saves count as done.

  Args:
    traced: a `jax.stages.Traced`, of all devices.
    compiled: the same as one device has it.
  """
  defined = traced.lower(lowering_platforms=('tpu',))
  whole, part = (
    (stage.cost_analysis() or {}).get('flops', 0.0)
    for stage in (defined, compiled)
  )
  shardings = jax.tree.leaves(compiled.input_shardings)
  num_devices = max((len(x.device_set) for x in shardings), default=1)
  return max(whole / num_devices, part, 0.0)


def program_memory(compiled: Any) -> dict[str, int]:
  """Bytes of a `jax.stages.Compiled` on one device, by what they hold.

  Returns:
    `arguments`, `outputs`, `aliased` (outputs in the memory of arguments),
    `temporaries`, `program`; `needed`, all that is allocated while it runs;
    `least_moved`, arguments and outputs, which must be read and written;
    `peak`, in use at once without the program, or None.
  """
  analysis = compiled.memory_analysis()
  memory = {
    'arguments': analysis.argument_size_in_bytes,
    'outputs': analysis.output_size_in_bytes,
    'aliased': analysis.alias_size_in_bytes,
    'temporaries': analysis.temp_size_in_bytes,
    'program': analysis.generated_code_size_in_bytes,
  }
  return memory | {
    'needed': sum(memory.values()) - 2 * memory['aliased'],
    'least_moved': memory['arguments'] + memory['outputs'],
    'peak': getattr(analysis, 'peak_memory_in_bytes', None),
  }


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
  """Runs sides in turn (A B A B), so that all see the same machine.

  Args:
    sides: by name a function of the round number that returns seconds.
    rounds: measured rounds.
    warmup: rounds before them, not measured.
    title: of the progress bar.

  Returns:
    By name the seconds of every measured round.
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


def compare(
  seconds: Mapping[str, Sequence[float]], batch_size: int
) -> dict[str, Any]:
  """By side its `throughput`; `ratios` of our times to the others'.

  Args:
    seconds: of every round, by side; ours is `ours`.
    batch_size: images of a call.

  Returns:
    A ratio has the `median`, that of the medians, below 1 where we are faster,
    and `lowest` and `highest` of the ratios of single rounds.
  """
  result = {name: throughput(x, batch_size) for name, x in seconds.items()}
  ours, ratios = seconds['ours'], {}
  for name in seconds.keys() - {'ours'}:
    rounds = [a / b for a, b in zip(ours, seconds[name], strict=True)]
    medians = statistics.median(ours) / statistics.median(seconds[name])
    ratios[name] = {
      'median': medians,
      'lowest': min(rounds),
      'highest': max(rounds),
    }
  return result | ({'ratios': ratios} if ratios else {})


def summary(seconds: Sequence[float]) -> dict[str, Any]:
  """`median`, `lowest`, `highest` and `all` of measured times."""
  return {
    'median': statistics.median(seconds),
    'lowest': min(seconds),
    'highest': max(seconds),
    'all': list(seconds),
  }


def throughput(seconds: Sequence[float], batch_size: int) -> dict[str, Any]:
  """`summary` of the `seconds` of a batch, and `images_per_second`."""
  times = summary(seconds)
  return {'seconds': times, 'images_per_second': batch_size / times['median']}
