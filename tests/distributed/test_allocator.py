"""Page faults of a program whose temporaries are as large as a step's."""

import platform
import sys
import types

import job_process
import pytest

from maskrcnn_jax.distributed import allocator

# Prints the faults of a call for every page of its temporaries.
FAULTS = """
import resource
from maskrcnn_jax.distributed import allocator, processes
processes.start({'backend': 'cpu'})
import jax, jax.numpy as jnp

@jax.jit
def program(x):
  a = jnp.cumsum(jnp.full(2**25, 1e-6) * x)
  b = jax.lax.optimization_barrier(a)[::-1]
  return x + jnp.sum((b * a)[:9])

compiled = program.lower(jnp.float32(1)).compile()
kept = allocator.keep_freed_memory()
x = jax.block_until_ready(compiled(jnp.float32(1)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
  x = jax.block_until_ready(compiled(x))
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages = compiled.memory_analysis().temp_size_in_bytes / resource.getpagesize()
assert pages > 2**14, pages
print(faults / 3 / pages)
"""


def faults_of_a_page(**variables):
  done = job_process.execute([sys.executable, '-c', FAULTS], **variables)
  assert done.returncode == 0, done.stderr
  return float(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(
  platform.libc_ver()[0] != 'glibc', reason='another C library'
)
def test_freed_memory_is_used_again():
  assert faults_of_a_page() < 0.05
  # Who chooses settings of the allocator has them.
  assert faults_of_a_page(MALLOC_TOP_PAD_='65536') > 0.5


@pytest.fixture
def changes(monkeypatch):
  """What the two functions change on a CPU with glibc."""
  found = []
  config = types.SimpleNamespace(
    values={'jax_cpu_enable_async_dispatch': False},
    update=lambda *x: found.append(x),
  )
  jax = types.SimpleNamespace(config=config, default_backend=lambda: 'cpu')
  libc = types.SimpleNamespace(mallopt=lambda *x: found.append(x) or 1)
  monkeypatch.setattr(allocator, 'jax', jax)
  monkeypatch.setattr(allocator.ctypes, 'CDLL', lambda _: libc)
  monkeypatch.setattr(allocator.sys, 'platform', 'linux')
  monkeypatch.setattr(allocator.os, 'environ', {})
  return found


def test_both_settings_of_the_heap_change(changes):
  allocator.run_in_calling_thread()
  assert changes == [('jax_cpu_enable_async_dispatch', False)]
  assert allocator.keep_freed_memory()
  assert changes[1:] == [(-4, 0), (-1, -1)]


@pytest.mark.parametrize(
  'target, value',
  [
    ('os.environ', {'LD_PRELOAD': 'libjemalloc.so.2'}),
    ('os.environ', {'MALLOC_CONF': 'x'}),
    ('os.environ', {'GLIBC_TUNABLES': 'x'}),
    ('sys.platform', 'darwin'),
    ('ctypes.CDLL', lambda _: types.SimpleNamespace()),  # musl.
  ],
)
def test_nothing_changes_elsewhere(target, value, changes, monkeypatch):
  module, name = target.split('.')
  monkeypatch.setattr(getattr(allocator, module), name, value)
  allocator.run_in_calling_thread()
  assert not allocator.keep_freed_memory()
  assert changes == []


@pytest.mark.parametrize(
  'name, value',
  [
    ('default_backend', lambda: 'gpu'),
    # A caller of the library, whose programs run in other threads.
    ('config', types.SimpleNamespace(values={})),
  ],
)
def test_the_heap_stays_as_it_is(name, value, changes, monkeypatch):
  monkeypatch.setattr(allocator.jax, name, value)
  assert not allocator.keep_freed_memory()
  assert changes == []
