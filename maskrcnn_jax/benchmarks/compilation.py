"""Time until the training step and detection can run, also from the cache."""

import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from maskrcnn_jax.benchmarks import measure, programs
from maskrcnn_jax.benchmarks.subject import Subject
from maskrcnn_jax.distributed import arrays
from maskrcnn_jax.inference import detection


def run(subject: Subject) -> list[measure.Row]:
  """Rows of the time until the step and detection can run; see `compiled`."""
  step_arguments = programs.step_arguments(subject)
  state, batch, _ = step_arguments
  variables = arrays.put_replicated(state.variables(), subject.mesh)

  def make_step():
    return programs.jitted_step(subject, state)

  def make_detection():
    return detection.jit_detect(subject.model, subject.mesh)

  inputs = variables, batch['images'], batch['image_sizes']
  return [
    *compiled('train step', make_step, *step_arguments),
    *compiled('inference', make_detection, *inputs),
  ]


def compiled(
  name: str, make: Callable[[], Any], *arguments: Any
) -> list[measure.Row]:
  """Compiles a program with an empty cache, and again with what that wrote.

  Args:
    name: of the program.
    make: returns the jitted function, the same in each call.
    arguments: of the function.

  Returns:
    Two rows: `seconds` are the sum of `trace_seconds` (Python) and
    `compile_seconds` (the compiler, or reading its program from the cache);
    `cache_bytes` is the size of the cached program.

  Raises:
    RuntimeError: the second program did not come from the cache.
  """
  options = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
  )
  former = [getattr(jax.config, option) for option in options]

  def configure(values):
    for option, value in zip(options, values):
      jax.config.update(option, value)
    compilation_cache.reset_cache()

  rows, sizes = [], []
  with tempfile.TemporaryDirectory(prefix='maskrcnn_jax_') as folder:
    try:
      for kind in ('cold', 'cached'):
        configure((folder, 0.0))
        # Of this process; files stay.
        jax.clear_caches()
        start = time.perf_counter()
        lowered = make().lower(*arguments)
        middle = time.perf_counter()
        lowered.compile()
        end = time.perf_counter()
        paths = pathlib.Path(folder).rglob('*-cache')
        sizes.append({path.name: path.stat().st_size for path in paths})
        rows.append(
          {'name': f'{name}, {kind}', **measure.timing([end - start])}
          | {'trace_seconds': middle - start, 'compile_seconds': end - middle}
          | {'cache_bytes': sum(sizes[-1].values())}
        )
    finally:
      configure(former)
  if sizes[1] != sizes[0] or not sizes[0]:
    raise RuntimeError(f'{name} did not come from the cache: {sizes}.')
  return rows
