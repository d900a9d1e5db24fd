"""Compilation with a cold and a warm cache, of a small program."""

import jax
import jax.numpy as jnp
import pytest

from maskrcnn_jax.benchmarks import compilation


def _make():
  def function(x):
    for _ in range(40):
      x = jnp.tanh(x @ x) + 1
    return x

  return jax.jit(function), jnp.ones((8, 8))


def test_the_second_program_comes_from_the_cache():
  former = jax.config.jax_compilation_cache_dir
  values = compilation.cold_and_cached(_make)
  assert jax.config.jax_compilation_cache_dir == former
  assert values['cache_bytes'] > 0
  for kind in ('cold', 'cached'):
    parts = values[kind]['trace_seconds'] + values[kind]['compile_seconds']
    assert values[kind]['seconds'] == pytest.approx(parts)
    assert values[kind]['trace_seconds'] > 0


def test_a_changed_program_is_not_cached():
  numbers = iter(range(2))

  def make():
    number = next(numbers)
    return jax.jit(lambda x: x + number), jnp.ones(4)

  with pytest.raises(RuntimeError):
    compilation.cold_and_cached(make)
