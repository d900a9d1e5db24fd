"""Throughput, the summary of a run under Habana's names, and its profile."""

import json

import jax
import jax.numpy as jnp
import pytest

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.habana import metric_names
from maskrcnn_jax.training import metrics, summary

VALUES = {
  'rpn_objectness': 1.0,
  'rpn_box': 2.0,
  'class': 4.0,
  'box': 8.0,
  'mask': 16.0,
  'l2_loss': 32.0,
  'total_loss': 63.0,
  'learning_rate': 0.5,
  'gradient_norm': 3.0,
}


class Clock:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def entries(path):
  return [json.loads(line)['data'] for line in path.read_text().splitlines()]


def test_pauses_do_not_count():
  clock = Clock()
  run = summary.RunSummary(None, clock=clock)
  run.add(8, None)
  clock.now += 2.0
  with run.paused():
    clock.now += 10.0
  rates = run.habana_rates()
  assert rates == {'global_step/sec': 0.5, 'examples/sec': 4.0}
  run.add(3, None)
  clock.now += 1.5
  assert run.habana_rates()['examples/sec'] == pytest.approx(2.0)
  assert run.habana_rates()['examples/sec'] == 0.0


def run_steps(tmp_path, num_steps, capsys):
  """A run of 4 images a step: 1 s each at first, 0.5 s after the warm-up."""
  clock, waits = Clock(), []
  path = tmp_path / 'logs' / 'run.json'
  with (
    metrics.MetricWriter(tmp_path) as writer,
    summary.RunSummary(writer, str(path), clock) as run,
  ):
    for step in range(num_steps):
      clock.now += 1.0 if step < summary.WARMUP_STEPS else 0.5
      run.add(4, lambda step=step: waits.append(step + 1))
    with run.paused():
      clock.now += 50.0
    run.values = VALUES
  return capsys.readouterr().out, entries(path), waits


def test_the_first_hundred_steps_do_not_count(tmp_path, capsys):
  shown, logged, waits = run_steps(tmp_path, 120, capsys)
  assert waits == [100]  # The clock waited for the device there.
  assert 'status: SUCCESS' in shown
  assert '8 images/s' in shown and '100 steps' in shown
  assert '120 in 0:02:40' in shown
  assert logged[0] == {
    'Average_throughput': pytest.approx(8.0),
    'Total processed steps': 120,
    'Total_processing_time': pytest.approx(160.0),
  }


def test_a_short_run_is_marked_as_warm_up(tmp_path, capsys):
  shown, logged, waits = run_steps(tmp_path, 100, capsys)
  assert waits == [100]
  assert 'warm-up' in shown and 'step 101' in shown
  assert logged[0]['Average_throughput'] == -1.0
  shown, logged, _ = run_steps(tmp_path / 'shorter', 10, capsys)
  assert '4 images/s' in shown and 'warm-up' in shown
  assert logged[0]['Average_throughput'] == -1.0


def test_the_log_has_names_of_habana(tmp_path, capsys):
  _, logged, _ = run_steps(tmp_path, 2, capsys)
  assert logged[1] == {
    'FastRCNN box loss': 8.0,
    'FastRCNN class loss': 4.0,
    'FastRCNN total loss': 12.0,
    'L2 loss': 32.0,
    'Learning rate': 0.5,
    'Mask loss': 16.0,
    'RPN box loss': 2.0,
    'RPN score loss': 1.0,
    'RPN total loss': 3.0,
    'Total loss': 63.0,
  }
  shown = metric_names.tensorboard(VALUES)
  assert shown['train/fastRCNN_total_loss'] == 12.0
  assert shown['train/rpn_total_loss'] == 3.0
  assert shown['loss'] == shown['train/total_loss'] == 63.0
  assert len(shown) == 11
  assert metric_names.logged({}) == {}


def test_a_failure_is_reported_and_passed_on(tmp_path, capsys):
  path = tmp_path / 'run.json'
  with (
    pytest.raises(FloatingPointError),
    metrics.MetricWriter(tmp_path) as writer,
    summary.RunSummary(writer, str(path)),
  ):
    raise FloatingPointError('step 3')
  assert 'status: FAILURE, FloatingPointError' in capsys.readouterr().out
  assert len(entries(path)) == 1


def test_the_log_is_appended_to(tmp_path):
  path = tmp_path / 'run.json'
  path.write_text('{"data": "of an earlier run"}\n')
  summary.log(str(path), {'eval/AP': 0.5}, {})
  assert entries(path) == ['of an earlier run', {'eval/AP': 0.5}]
  summary.log(None, {'eval/AP': 0.5})
  line = json.loads(path.read_text().splitlines()[-1])
  assert line['step'] == [] and line['type'] == 'LOG'


def test_speed_of_inference():
  lines, logged = summary.inference_lines([9.0, 0.5, 0.5, 1.0], batch_size=2)
  assert '3 images/s' in lines[0]
  assert '50 % 0.5' in lines[0] and '100 % 1' in lines[0]
  # As in Habana: -1 up to a hundred batches, and the time is the total.
  assert logged == {
    'avg_inference_throughput': -1.0,
    'avg_inference_time': 11.0,
  }
  assert summary.inference_lines([1.0], 2)[0] == []
  _, logged = summary.inference_lines([1.0] * 100 + [0.5] * 4 + [7.0], 2)
  assert logged['avg_inference_throughput'] == 4.0


def test_accuracy_is_the_mask_ap():
  values = {'eval/AP': 0.5, 'eval/mask_AP': 0.25}
  assert metric_names.evaluated(values)['accuracy'] == 0.25
  assert metric_names.evaluated({'eval/AP': 0.5})['accuracy'] == 0.5


@pytest.fixture
def profiler(monkeypatch):
  """Calls of the profiler."""
  calls = []
  monkeypatch.setattr(
    jax.profiler, 'start_trace', lambda folder: calls.append('start')
  )
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: calls.append('stop'))
  return calls


@pytest.mark.parametrize(
  'steps, num_steps, calls',
  [
    ((2, 3), 5, [1, 'start', 2, 3, 'stop', 4, 5]),
    # Closed where training ends.
    ((2, 9), 3, [1, 'start', 2, 3, 'stop']),
    ((3, 3), 3, [1, 2, 'start', 3, 'stop']),
    (None, 2, [1, 2]),
  ],
)
def test_the_trace_covers_its_steps(
  profiler, tmp_path, steps, num_steps, calls
):
  with summary.Profile(tmp_path, steps) as trace:
    for step in range(1, num_steps + 1):
      trace.before(step)
      profiler.append(step)
      trace.after(step, ())
  assert profiler == calls


@pytest.mark.parametrize('steps', [(2,), (0, 3), (4, 3), (1, 2, 3)])
def test_wrong_steps_are_an_error(steps, tmp_path):
  with pytest.raises(UserError) as error:
    summary.Profile(tmp_path, steps)
  assert error.value.argument == 'training.profile'
  assert error.value.given == steps


def test_a_trace_lies_where_tensorboard_looks_for_it(tmp_path):
  square = jax.jit(lambda x: x @ x)
  with summary.Profile(tmp_path, (1, 1)) as trace:
    trace.before(1)
    trace.after(1, square(jnp.ones((8, 8))))
  (found,) = tmp_path.glob('plugins/profile/*/*.xplane.pb')
  assert found.stat().st_size > 1000
