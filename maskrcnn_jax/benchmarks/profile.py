"""Time of the kernels of a program by stage, from a profiler trace.

It is of the whole program, as the compiler fused it: a kernel belongs to the
stage that the compiler's metadata names for it.
"""

import collections
import contextlib
import pathlib
import tempfile
from collections.abc import Iterable, Mapping

import jax

from maskrcnn_jax.benchmarks import measure
from maskrcnn_jax.planning import breakdown, program_text

_UNNAMED = 'kernels without a name'
# What these run has events of its own.
_OUTER = ('call', 'conditional', 'while')


def run(
  side: measure.Side, steps: int, warmup: int, folder: str | None = None
) -> list[measure.Row]:
  """Traces a program; rows of `stage_rows`, with the work of every stage.

  Args:
    side: with the compiled program.
    steps: runs to trace.
    warmup: runs before them.
    folder: for the trace, which TensorBoard's profiler shows; None: not kept.

  Returns:
    The rows, of one run. `program` has the operations and bytes of a stage, see
    `breakdown.breakdown`, in the form of `measure.compile_program`.
  """
  for number in range(warmup):
    side.seconds(number)
  with contextlib.ExitStack() as stack:
    if folder is None:
      folder = stack.enter_context(tempfile.TemporaryDirectory())
    with jax.profiler.trace(folder):
      for number in range(steps):
        side.seconds(number)
    text = side.compiled.as_text()
    rows = stage_rows(stages_of(text), events(folder), steps)
  work = {
    _title(stage['stage'], stage['pass']): {
      'flops': stage['flops'],
      'bytes_accessed': stage['bytes'],
      'memory': {'least_moved': stage['least_bytes']},
    }
    for stage in breakdown.breakdown(text)['stages']
  }
  return [row | {'program': work.get(row['name'])} for row in rows]


def stages_of(text: str) -> dict[str, str | None]:
  """Stage and direction of the instructions of a program, by their name.

  Args:
    text: of `jax.stages.Compiled.as_text`.

  Returns:
    Such as `FPN, backward`, see `breakdown.stage_of`; None for loops and calls,
    whose bodies count. Names with dots are there with underscores too, as
    kernels are named.
  """
  _, computations = program_text.read(text)
  found = {}
  for instructions in computations.values():
    for name, instruction in instructions.items():
      stage = None
      if instruction.opcode not in _OUTER:
        stage = _title(*breakdown.stage_of(instruction, computations))
      found[name] = stage
      found.setdefault(name.replace('.', '_'), stage)
  return found


def _title(stage: str, direction: str) -> str:
  return f'{stage}, {direction}' if direction else stage


def events(folder: str) -> Iterable[tuple[str, float, bool]]:
  """Name, seconds and whether it ran on an accelerator, of traced events."""
  (path,) = pathlib.Path(folder).rglob('*.xplane.pb')
  for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
    on_device = plane.name.startswith('/device:')
    lines = list(plane.lines)
    # The same events in other groups are beside them.
    operations = [line for line in lines if line.name == 'XLA Ops']
    for line in operations or lines:
      for event in line.events:
        name = dict(event.stats).get('hlo_op')
        if name or on_device:
          yield name or event.name, event.duration_ns / 1e9, on_device


def stage_rows(
  stages: Mapping[str, str | None],
  traced: Iterable[tuple[str, float, bool]],
  steps: int,
) -> list[measure.Row]:
  """Rows by stage, the longest first.

  Args:
    stages: see `stages_of`.
    traced: see `events`.
    steps: number of traced steps.

  Returns:
    Rows with the `seconds` of a step, their `share` of all and the number of
    `kernels`. On a CPU kernels run side by side, and work that one hands to
    other threads counts once.
  """
  seconds, kernels = collections.Counter(), collections.Counter()
  for name, duration, on_device in traced:
    # Those of the host that are no instruction are Python's or the runtime's.
    stage = stages.get(name, _UNNAMED if on_device else None)
    if stage is not None:
      seconds[stage] += duration / steps
      kernels[stage] += 1 / steps
  total = sum(seconds.values())
  return [
    {'name': stage, **measure.timing([value])}
    | {'share': value / total, 'kernels': round(kernels[stage])}
    for stage, value in seconds.most_common()
  ]
