"""When a run is said to have learnt what it will, and what must not count."""

import json

import pytest

from maskrcnn_jax.training import early_stopping

AP, LOSS = 'eval/AP', 'eval/loss'


def write(workdir, scores, metric=AP):
  lines = [json.dumps({'step': s, metric: v}) for s, v in scores.items()]
  (workdir / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')


@pytest.mark.parametrize(
  'scores, patience, ends_at',
  [
    ([0.1, 0.2, 0.3, 0.4], 1, None),
    ([0.1, 0.3, 0.2, 0.25], 2, 40),
    ([0.1, 0.3, 0.2, 0.4, 0.3, 0.3], 2, 60),
    ([0.2, 0.2, 0.2], 2, 30),  # An equal one is no better.
    ([0.1, None, None], 2, 30),  # Not finite.
    ([None, None, 0.1], 2, 20),
    ([None, 0.1, 0.05], 2, None),
    ([-1.0, -1.0], 1, 20),  # Nothing to measure.
  ],
)
def test_the_first_evaluation_without_hope_ends_a_run(
  tmp_path, scores, patience, ends_at
):
  by_step = {10 * i: score for i, score in enumerate(scores, start=1)}
  ends = None
  for step in by_step:
    write(tmp_path, {s: v for s, v in by_step.items() if s <= step})
    reason = early_stopping.reason_to_stop(tmp_path, step, AP, patience)
    if reason and ends is None:
      ends = step
  assert ends == ends_at
  # The whole file, as a killed run leaves it, changes nothing before its end.
  write(tmp_path, by_step)
  for step in by_step:
    reason = early_stopping.reason_to_stop(tmp_path, step, AP, patience)
    assert ends is not None or reason is None
    assert reason is None or step >= ends


def test_a_loss_must_fall(tmp_path):
  write(tmp_path, {1: 3.0, 2: 2.0, 3: 1.0}, LOSS)
  assert early_stopping.reason_to_stop(tmp_path, 3, LOSS, 1) is None
  write(tmp_path, {1: 3.0, 2: 2.0, 3: 2.5}, LOSS)
  assert early_stopping.reason_to_stop(tmp_path, 3, LOSS, 1)


def test_the_reason_names_score_and_step_and_how_to_go_on(tmp_path):
  write(tmp_path, {10: 0.25, 20: 0.5, 30: 0.25, 40: 0.5})
  reason = early_stopping.reason_to_stop(tmp_path, 40, AP, 2)
  assert reason == (
    'stopped early at step 40: eval/AP has not improved since step 20 (0.5), '
    'in 2 evaluations. training.patience is 2; with a higher one, or None, the '
    'same command goes on.'
  )
  write(tmp_path, {10: None})
  reason = early_stopping.reason_to_stop(tmp_path, 10, AP, 1)
  assert 'eval/AP never had a value, in 1 evaluations' in reason


def test_evaluations_that_are_none_of_the_run_do_not_count(tmp_path):
  write(tmp_path, {10: 0.5, 15: 0.1, 20: 0.4})
  on_time = {'counts': lambda step: step % 10 == 0}
  assert early_stopping.reason_to_stop(tmp_path, 20, AP, 2)
  assert not early_stopping.reason_to_stop(tmp_path, 20, AP, 2, **on_time)
  assert early_stopping.reason_to_stop(tmp_path, 20, AP, 1, **on_time)


def test_a_run_that_was_never_evaluated_goes_on(tmp_path):
  assert early_stopping.reason_to_stop(tmp_path, 5, AP, 1) is None
