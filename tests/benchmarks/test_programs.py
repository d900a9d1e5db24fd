"""Compilation with a cold and a warm cache, and growth of a step."""

import jax
import jax.numpy as jnp
import pytest
import tiny_run

from maskrcnn_jax.benchmarks import compilation, programs
from maskrcnn_jax.benchmarks.options import BenchOptions
from maskrcnn_jax.benchmarks.subject import make_subject


def test_the_second_program_comes_from_the_cache():
  def make():
    def function(x):
      for _ in range(40):
        x = jnp.tanh(x @ x) + 1
      return x

    return jax.jit(function)

  former = jax.config.jax_compilation_cache_dir
  cold, cached = compilation.compiled('tanh', make, jnp.ones((8, 8)))
  assert jax.config.jax_compilation_cache_dir == former
  assert (cold['name'], cached['name']) == ('tanh, cold', 'tanh, cached')
  assert cold['cache_bytes'] == cached['cache_bytes'] > 0
  for row in (cold, cached):
    parts = row['trace_seconds'] + row['compile_seconds']
    assert row['seconds']['median'] == pytest.approx(parts)
    assert row['trace_seconds'] > 0


def test_a_changed_program_is_not_cached():
  numbers = iter(range(2))

  def make():
    number = next(numbers)
    return jax.jit(lambda x: x + number)

  with pytest.raises(RuntimeError):
    compilation.compiled('sum', make, jnp.ones(4))


def _make_config():
  config = tiny_run.make_config('no data is read', 'none')
  config.input.batch_size = 1
  config.input.image_dtype = 'uint8'
  return config


@pytest.mark.parametrize(
  'axis, value, shape, count, classes',
  [
    ('batch', 3, (3, 64, 64, 3), None, 3),
    ('canvas', 96, (1, 96, 96, 3), None, 3),
    ('objects', 3, (1, 64, 64, 3), 3, 3),
    ('classes', 96, (1, 64, 64, 3), None, 96),
  ],
)
def test_one_size_changes_and_the_others_stay(
  axis, value, shape, count, classes
):
  config = _make_config()
  subject = programs.subject_of(config, axis, value)
  batch = subject.host_batches[0]
  assert batch['images'].shape == shape
  assert subject.model.num_classes == classes
  if count:
    assert batch['instances']['valid'].sum(axis=1).tolist() == [count]
  assert config == _make_config()


@pytest.mark.long
def test_the_number_of_objects_changes_no_program():
  one, four = programs.growth(
    _make_config(), BenchOptions(rounds=2, warmup=1), {'objects': (1, 4)}
  )
  assert (one['name'], four['name']) == ('objects 1', 'objects 4')
  assert one['program']['flops'] == four['program']['flops'] > 1e6
  assert one['program']['memory'] == four['program']['memory']
  for row in (one, four):
    assert len(row['seconds']['all']) == 2
    rate = 1 / row['seconds']['median']
    assert row['images_per_second'] == pytest.approx(rate)


@pytest.mark.slow
def test_the_backbone_alone_runs_forward_and_backward():
  config = _make_config()
  config.model.backbone.norm = 'batch'
  subject = make_subject(config, False, num_batches=1)
  side = programs.backbone_side(subject)
  forward = jax.jit(
    lambda variables, pixels: subject.model.apply(
      *(variables, pixels, None, True),
      method=lambda model, *inputs: model.body(*inputs),
      mutable=['batch_stats'],
    )
  ).lower(subject.state().variables(), jnp.ones((1, 64, 64, 3)))
  ratio = side.program['flops'] / forward.cost_analysis()['flops']
  # Gradients of weights and of inputs cost as much each; pixels have none.
  assert 2.5 < ratio < 3.5
  assert side.images == 1 and side.seconds(0) > 0
