"""A trace covers the steps it was asked for, and is closed at the end."""

import jax
import jax.numpy as jnp
import pytest

from maskrcnn_jax.training import tracing


@pytest.fixture
def profiler(monkeypatch):
  """What was asked of the profiler."""
  calls = []
  monkeypatch.setattr(
    jax.profiler, 'start_trace', lambda folder: calls.append('start')
  )
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: calls.append('stop'))
  return calls


def run(trace, num_steps, calls):
  with trace:
    for step in range(1, num_steps + 1):
      trace.before(step)
      calls.append(step)
      trace.after(step, ())


def test_the_trace_starts_before_the_first_step_and_ends_after_the_last(
  profiler, tmp_path
):
  run(tracing.Trace(tmp_path, (2, 3)), 5, profiler)
  assert profiler == [1, 'start', 2, 3, 'stop', 4, 5]


def test_the_trace_is_closed_where_training_ends(profiler, tmp_path):
  run(tracing.Trace(tmp_path, (2, 9)), 3, profiler)
  assert profiler == [1, 'start', 2, 3, 'stop']
  profiler.clear()
  run(tracing.Trace(tmp_path, (3, 3)), 3, profiler)
  assert profiler == [1, 2, 'start', 3, 'stop']


def test_no_steps_no_trace(profiler, tmp_path):
  run(tracing.Trace(tmp_path, None), 2, profiler)
  assert profiler == [1, 2]


@pytest.mark.parametrize('steps', [(2,), (0, 3), (4, 3), (1, 2, 3)])
def test_wrong_steps_are_an_error(steps, tmp_path):
  with pytest.raises(ValueError, match=r'training\.profile must be the first'):
    tracing.Trace(tmp_path, steps)


def test_a_trace_lies_where_tensorboard_looks_for_it(tmp_path):
  square = jax.jit(lambda x: x @ x)
  with tracing.Trace(tmp_path, (1, 1)) as trace:
    trace.before(1)
    trace.after(1, square(jnp.ones((8, 8))))
  (found,) = tmp_path.glob('plugins/profile/*/*.xplane.pb')
  assert found.stat().st_size > 1000
