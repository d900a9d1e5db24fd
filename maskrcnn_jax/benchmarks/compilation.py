"""Time to compile the step and detection, with a cold and a warm cache."""

import contextlib
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from maskrcnn_jax.benchmarks import comparison
from maskrcnn_jax.benchmarks.subject import Subject
from maskrcnn_jax.distributed import mesh as mesh_lib
from maskrcnn_jax.training import train_step


def run(subject: Subject) -> dict[str, Any]:
  """Seconds until a program can run.

  Args:
    subject: whose programs they are.

  Returns:
    For `step` and `inference`: `cold`, with an empty cache, and `cached`, each
    `trace_seconds` (Python), `compile_seconds` (the compiler, or reading its
    program from the cache) and their sum `seconds`; and `cache_bytes`.
  """
  batch, state = subject.batches()[0], subject.state()
  key = jax.device_put(jax.random.key(0), mesh_lib.replicated(subject.mesh))

  def step():
    return comparison.jitted_step(subject, state), (state, batch, key)

  def detect():
    def function(variables, images, sizes):
      return train_step.detect(subject.model, variables, images, sizes)

    images = batch['images'], batch['image_sizes']
    return jax.jit(function), (state.variables(), *images)

  return {'step': cold_and_cached(step), 'inference': cold_and_cached(detect)}


def cold_and_cached(make: Callable[[], tuple[Any, tuple]]) -> dict[str, Any]:
  """Compiles a program with an empty cache, and again with what that wrote.

  Args:
    make: returns a jitted function and its arguments, the same in each call.

  Returns:
    See `run`.

  Raises:
    RuntimeError: the second program did not come from the cache.
  """
  with tempfile.TemporaryDirectory(prefix='maskrcnn_jax_') as folder:
    with _cache_in(folder):
      cold = _compile(*make())
      again = make()
      written = _sizes(folder)
      cached = _compile(*again)
    if _sizes(folder) != written or not written:
      raise RuntimeError(
        f'The compiled program did not come from the cache: {written}.'
      )
  return {'cold': cold, 'cached': cached, 'cache_bytes': sum(written.values())}


def _compile(jitted, arguments) -> dict[str, float]:
  # Of this process; files stay.
  jax.clear_caches()
  compilation_cache.reset_cache()
  start = time.perf_counter()
  lowered = jitted.lower(*arguments)
  middle = time.perf_counter()
  lowered.compile()
  end = time.perf_counter()
  return {
    'trace_seconds': middle - start,
    'compile_seconds': end - middle,
    'seconds': end - start,
  }


@contextlib.contextmanager
def _cache_in(folder: str) -> Iterator[None]:
  """Caches compiled programs in a folder, however short they took."""
  settings = {
    'jax_compilation_cache_dir': folder,
    'jax_persistent_cache_min_compile_time_secs': 0.0,
  }
  former = {name: getattr(jax.config, name) for name in settings}
  try:
    for name, value in settings.items():
      jax.config.update(name, value)
    yield
  finally:
    for name, value in former.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()


def _sizes(folder: str) -> dict[str, int]:
  """Bytes of the cached programs, by file name."""
  paths = pathlib.Path(folder).rglob('*-cache')
  return {path.name: path.stat().st_size for path in paths}
