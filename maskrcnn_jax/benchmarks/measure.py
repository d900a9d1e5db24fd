"""Measurement of programs: seconds in turn, operations, memory, floors.

Times are seconds of the wall clock from a call until its result is there. A
result is a list of rows, dicts of JSON values, see `run`.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import tqdm

from maskrcnn_jax.distributed import allocator
from maskrcnn_jax.planning import program_text

Row = dict[str, Any]


@dataclasses.dataclass
class Side:
  """One of the programs that run in turn.

  Attributes:
    seconds: runs it for a round number and returns its time.
    images: of a call; None: it has no rate.
    program: what the compiler reports, see `compile_program`; None: unknown.
    facts: further fields of the row; `seconds` may change them.
    compiled: the `jax.stages.Compiled` that it runs; None: unknown.
  """

  seconds: Callable[[int], float]
  images: int | None = None
  program: Row | None = None
  facts: Row = dataclasses.field(default_factory=dict)
  compiled: Any = None


def run(
  sides: Mapping[str, Side], rounds: int, warmup: int, title: str = ''
) -> list[Row]:
  """Runs sides in turn (A B A B), so that all see the same machine.

  Returns:
    A row for each: `name`, see `timing`, `program` and the side's facts; of the
    `rounds` after those to warm up. `title` is that of the progress bar.
  """
  seconds = {name: [] for name in sides}
  total = (warmup + rounds) * len(sides)
  with tqdm.tqdm(total=total, desc=title, leave=False, disable=None) as bar:
    for number in range(warmup + rounds):
      for name, side in sides.items():
        value = side.seconds(number)
        if number >= warmup:
          seconds[name].append(value)
        bar.update()
  return [
    {'name': name}
    | timing(seconds[name], side.images)
    | ({'program': side.program} if side.program else {})
    | side.facts
    for name, side in sides.items()
  ]


def timing(seconds: Sequence[float], images: int | None = None) -> Row:
  """`seconds`: `median`, `lowest`, `highest` and `all`; `images_per_second`."""
  median = statistics.median(seconds)
  times = {
    'median': median,
    'lowest': min(seconds),
    'highest': max(seconds),
    'all': list(seconds),
  }
  rate = {'images_per_second': images / median} if images else {}
  return {'seconds': times, **rate}


def add_ratios(rows: list[Row]) -> list[Row]:
  """Adds to all rows but the first the `ratio` of its time to theirs.

  Its `median` is that of the medians, below 1 where the first is faster;
  `lowest` and `highest` are of the ratios of single rounds.
  """
  ours = rows[0]['seconds']
  for row in rows[1:]:
    theirs = row['seconds']
    rounds = [a / b for a, b in zip(ours['all'], theirs['all'], strict=True)]
    row['ratio'] = {
      'median': ours['median'] / theirs['median'],
      'lowest': min(rounds),
      'highest': max(rounds),
    }
  return rows


def add_floors(rows: Sequence[Row], peaks: Mapping[str, float], dtype: str):
  """Adds to every row with a program its roofline, from the peaks of the run.

  Args:
    rows: changed in place. `floor` is the least time that its work can take:
      the longer of its operations at the peak and of the bytes that any program
      must move, arguments and outputs, with `bound`, 'compute' or 'memory';
      `gap_seconds` the median less the floor; `traffic_seconds` the time of the
      bytes that this program moves, without caches; `peak_share` its operations
      a second over the peak.
    peaks: see `machine.measure_peaks`.
    dtype: of the model.
  """
  peak = peaks['float32' if dtype == 'float32' else 'bfloat16']
  for row in rows:
    if not row.get('program'):
      continue
    work, median = row['program'], row['seconds']['median']
    compute = work['flops'] / peak
    memory = work['memory']['least_moved'] / peaks['bandwidth']
    row['floor'] = {
      'seconds': max(compute, memory),
      'bound': 'memory' if memory > compute else 'compute',
    }
    row['gap_seconds'] = median - row['floor']['seconds']
    row['traffic_seconds'] = work['bytes_accessed'] / peaks['bandwidth']
    row['peak_share'] = compute / median


def seconds_of(function: Callable, *arguments: Any) -> tuple[float, Any]:
  """Seconds of a call until its result is there, and the result."""
  start = time.perf_counter()
  result = jax.block_until_ready(function(*arguments))
  return time.perf_counter() - start, result


def compile_program(
  function: Callable, *arguments: Any
) -> tuple[Callable, Row]:
  """Compiles a function for these arguments, arrays or shapes.

  Returns:
    The compiled function, and what the compiler reports: `flops`, see
    `count_flops`, 0 if it reports none; `bytes_accessed`, read and written as
    if there were no caches, without what libraries do on a GPU; `memory`, see
    `program_text.memory`; `compile_seconds` of tracing and compiling.
  """
  jitted = function if hasattr(function, 'lower') else jax.jit(function)
  start = time.perf_counter()
  traced = jitted.trace(*arguments)
  compiled = traced.lower().compile()
  seconds = time.perf_counter() - start
  allocator.keep_freed_memory()
  costs = compiled.cost_analysis() or {}
  return compiled, {
    'flops': count_flops(traced, compiled),
    'bytes_accessed': max(costs.get('bytes accessed', 0.0), 0.0),
    'memory': program_text.memory(compiled),
    'compile_seconds': seconds,
  }


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
