"""Time to compile the step and detection, with a cold and a warm cache."""

import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from maskrcnn_jax.benchmarks import comparison
from maskrcnn_jax.benchmarks.subject import Subject
from maskrcnn_jax.distributed import mesh as mesh_lib


def run(subject: Subject) -> dict[str, Any]:
  """Seconds until the programs `step` and `inference` of a subject can run.

  Returns:
    By program see `cold_and_cached`.
  """
  batch, state = subject.batches()[0], subject.state()
  key = mesh_lib.put_replicated(jax.random.key(0), subject.mesh)
  return {
    'step': cold_and_cached(
      lambda: (comparison.jitted_step(subject, state), state, batch, key)
    ),
    'inference': cold_and_cached(
      lambda: comparison.detect_call(subject, state.variables())
    ),
  }


def cold_and_cached(make: Callable[[], tuple]) -> dict[str, Any]:
  """Compiles a program with an empty cache, and again with what that wrote.

  Args:
    make: returns a jitted function and its arguments, the same in each call.

  Returns:
    `cold`, with an empty cache, and `cached`, each `trace_seconds` (Python),
    `compile_seconds` (the compiler, or reading its program from the cache) and
    their sum `seconds`; and `cache_bytes`.

  Raises:
    RuntimeError: the second program did not come from the cache.
  """
  with tempfile.TemporaryDirectory(prefix='maskrcnn_jax_') as folder:
    settings = {
      'jax_compilation_cache_dir': folder,
      'jax_persistent_cache_min_compile_time_secs': 0.0,
    }
    former = {name: getattr(jax.config, name) for name in settings}
    try:
      _configure(settings)
      cold = _compile(*make())
      again = make()
      written = _sizes(folder)
      cached = _compile(*again)
    finally:
      _configure(former)
      compilation_cache.reset_cache()
    if _sizes(folder) != written or not written:
      raise RuntimeError(
        f'The compiled program did not come from the cache: {written}.'
      )
  return {'cold': cold, 'cached': cached, 'cache_bytes': sum(written.values())}


def _configure(settings) -> None:
  for name, value in settings.items():
    jax.config.update(name, value)


def _compile(jitted, *arguments) -> dict[str, float]:
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


def _sizes(folder: str) -> dict[str, int]:
  """Bytes of the cached programs, by file name."""
  paths = pathlib.Path(folder).rglob('*-cache')
  return {path.name: path.stat().st_size for path in paths}
