"""What it takes to compile the step and detection: anew, and from the cache."""

import contextlib
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from maskrcnn_jax.benchmarks.subject import Subject
from maskrcnn_jax.distributed import mesh as sharding
from maskrcnn_jax.training import train_step as step_lib

_DIR = 'jax_compilation_cache_dir'
_LEAST = 'jax_persistent_cache_min_compile_time_secs'


def run(
  subject: Subject, other: Any = None, rounds: int = 1, warmup: int = 0
) -> dict[str, Any]:
  """Seconds until a program can run.

  Args:
    subject: whose programs they are.
    other: not used: PyTorch compiles nothing here.
    rounds: not used: a program is compiled once, and fetched once.
    warmup: likewise.

  Returns:
    For `step` and `inference`: `cold`, with an empty cache, and `cached`, each
    `trace_seconds` (Python), `compile_seconds` (the compiler, or reading what
    it made) and their sum `seconds`; and `cache_bytes`, what was kept.
  """
  del other, rounds, warmup
  batch, state = subject.batches()[0], subject.state()
  places = jax.tree.map(lambda x: x.sharding, state)
  key = jax.device_put(jax.random.key(0), sharding.replicated(subject.mesh))

  def step():
    jitted = step_lib.jit_train_step(
      subject.model, subject.optimizer, subject.mesh, places
    )
    return jitted, (state, batch, key)

  def detect():
    def function(variables, images, sizes):
      return step_lib.detect(subject.model, variables, images, sizes)

    images = batch['images'], batch['image_sizes']
    return jax.jit(function), (state.variables(), *images)

  return {'step': cold_and_cached(step), 'inference': cold_and_cached(detect)}


def cold_and_cached(make: Callable[[], tuple[Any, tuple]]) -> dict[str, Any]:
  """Compiles a program with an empty cache, and again with what that left.

  Args:
    make: returns a jitted function and its arguments, the same in each call.

  Returns:
    See `run`.
  """
  with tempfile.TemporaryDirectory(prefix='maskrcnn_jax_') as folder:
    with _cache_in(folder):
      cold = _compile(*make())
      again = make()
      kept = _sizes(folder)
      cached = _compile(*again)
    if _sizes(folder) != kept or not kept:
      raise RuntimeError(
        f'The compiled program was not taken from the cache, which has {kept}.'
      )
  return {'cold': cold, 'cached': cached, 'cache_bytes': sum(kept.values())}


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
  """Keeps compiled programs in a folder, however short they took."""
  former = {name: getattr(jax.config, name) for name in (_DIR, _LEAST)}
  jax.config.update(_DIR, folder)
  jax.config.update(_LEAST, 0.0)
  try:
    yield
  finally:
    for name, value in former.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()


def _sizes(folder: str) -> dict[str, int]:
  """Bytes of the programs that are kept there, by name."""
  return {
    path.name: path.stat().st_size
    for path in pathlib.Path(folder).rglob('*-cache')
  }
