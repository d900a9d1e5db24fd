"""Monitor: bad steps, loss spikes, collapsed scores, early stopping."""

import json

import jax
import numpy as np
import pytest
import tiny_model

from maskrcnn_jax.training import monitor

AP, LOSS = 'eval/AP', 'eval/loss'


def values(total=1.0, **terms):
  names = ('rpn_objectness', 'rpn_box', 'class', 'box', 'mask', 'l2_loss')
  return {**dict.fromkeys(names, 0.1), **terms, 'total_loss': total}


def watched(num_steps=30, max_bad_steps=3):
  """A run of losses near 1."""
  watch = monitor.Monitor(max_bad_steps)
  for step in range(1, num_steps + 1):
    assert watch.good_step(step, values(1.0 + 0.01 * step), [step]) is None
  return watch


def test_a_spike_is_named_with_its_term_and_images():
  watch = watched()
  message = watch.good_step(31, values(9.0, box=8.0), [7, 8])
  assert message.startswith('step 31: ')
  # The loss, its ratio to the median, the median; the largest term.
  for value in ('9 ', '7.79 ', '1.155', 'box (8)', '[7, 8]'):
    assert value in message
  # One spike does not change the median.
  assert watch.good_step(32, values(1.2), [9]) is None


def test_the_first_steps_and_a_falling_loss_are_no_spikes():
  watch = monitor.Monitor(3)
  for step, loss in enumerate([50.0, 2.0, 30.0] + [1.0] * 30):
    assert watch.good_step(step, values(loss), []) is None


def test_bad_steps_in_a_row_make_a_run_go_back_once():
  watch = watched()
  for number in (1, 2, 3):
    assert not watch.must_rewind()
    message = watch.bad_step(30 + number, values(np.nan, mask=np.inf), [number])
    assert message.endswith(f' {number} in a row')
    assert message.startswith(f'step {30 + number}: ')
    assert 'mask is inf' in message
  assert watch.must_rewind()
  watch.rewind(20)
  assert not watch.must_rewind()
  assert watch.num_skipped == 3
  for number in (21, 22, 23):
    watch.bad_step(number, values(np.nan), [number])
  with pytest.raises(monitor.NonFiniteError) as error:
    watch.rewind(20)
  assert error.value.item == 20
  for number in (21, 22, 23):
    line = f'step {number}: total_loss is nan; images [{number}]'
    assert line in str(error.value)


def test_a_good_step_ends_the_row_and_progress_allows_another_rewind():
  watch = watched(max_bad_steps=2)
  watch.bad_step(31, values(np.nan), [])
  watch.good_step(32, values(), [])
  watch.bad_step(33, values(np.nan), [])
  assert not watch.must_rewind()
  watch.rewind(20)
  watch.rewind(40)  # A later checkpoint: the run got on.


def test_settled_steps_are_warned_of_and_end_at_a_rewind():
  lines, located = [], []

  def find(state, step, inputs):
    located.append((state, step, inputs))
    return 'images[0]'

  watch = monitor.Monitor(2, find, lines.append)
  ids = np.array([7, 8])
  for step, finite in enumerate([True, False, True, False, False, True], 1):
    loss = float(step) if finite else np.nan
    metrics = values(loss, finite=np.array(finite))
    watch.add(step, ids, f'inputs {step}', metrics)
  assert watch.settle('a', lag=6) == []
  (first,) = watch.settle('b', lag=4)
  assert first == values(1.0)  # Without the flag.
  assert located == [('b', 2, 'inputs 2')]
  assert lines[0].startswith('WARNING: step 2: total_loss is nan')
  assert '[7, 8]' in lines[0] and lines[0].endswith('images[0]')
  # Step 6 is left where it is, as the run goes back.
  assert watch.settle('c', lag=0) == [values(3.0)]
  assert watch.must_rewind() and watch.num_skipped == 3
  assert located[1:] == [('c', 4, 'inputs 4')]  # Not for a second in a row.
  watch.rewind(0)
  assert watch.settle('d', lag=0) == []


def write_scores(folder, scores, name='eval/mask_AP', end='{"step": 9, "ev'):
  """Metrics of a run that was killed while it wrote a line."""
  lines = [json.dumps({'step': step, name: ap}) for step, ap in scores.items()]
  (folder / 'metrics.jsonl').write_text('\n'.join([*lines, end]))


def test_a_collapsed_score_is_a_warning(tmp_path):
  write_scores(tmp_path, {1: 0.1, 2: 0.29})
  message = monitor.collapsed_score(tmp_path, 3, {'eval/mask_AP': 0.0})
  assert message.startswith('step 3: eval/mask_AP ')
  assert 'to 0 from 0.29 at step 2' in message
  assert monitor.collapsed_score(tmp_path, 3, {'eval/mask_AP': 0.2}) is None
  # An evaluation again of an early step is compared with those before it.
  assert monitor.collapsed_score(tmp_path, 1, {'eval/mask_AP': 0.0}) is None


def test_a_low_score_cannot_collapse(tmp_path):
  assert monitor.collapsed_score(tmp_path, 3, {'eval/AP': 0.0}) is None
  write_scores(tmp_path, {1: 0.01}, 'eval/AP')
  assert monitor.collapsed_score(tmp_path, 3, {'eval/AP': 0.0}) is None


def replaced(tree, path, change):
  """A copy of nested dicts with one leaf changed."""
  name, *rest = path
  inner = replaced(tree[name], rest, change) if rest else change(tree[name])
  return {**tree, name: inner}


@pytest.mark.slow
def test_the_first_tensor_that_is_not_finite():
  model, batch = tiny_model.make_model(), tiny_model.make_batch()
  state, _ = tiny_model.make_state(model, batch)

  def first(params=state.params, batch=batch):
    changed = state.replace(params=params)
    key = jax.random.key(0)
    return monitor.find_nonfinite(model, key, changed, 1, batch)

  assert first().startswith('All ')
  path = ('fpn', 'output3', 'kernel')
  bad = replaced(state.params, path, lambda x: x.at[0, 0, 0, 0].set(np.nan))
  assert first(bad).endswith(': params/fpn/output3/kernel')
  images = np.array(batch['images'])
  images[1, 3, 3, 0] = np.inf
  assert first(batch={**batch, 'images': images}).endswith(': images[1]')
  # Finite numbers that become too large are named where that happens.
  path = ('backbone', 'stem', 'conv', 'kernel')
  bad = replaced(state.params, path, lambda x: x * 0 + 1e38)
  assert first(bad).endswith(': output of backbone/stem/conv')


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
    write_scores(tmp_path, {s: v for s, v in by_step.items() if s <= step}, AP)
    reason = monitor.reason_to_stop(tmp_path, step, AP, patience)
    if reason and ends is None:
      ends = step
  assert ends == ends_at
  # The whole file, as a killed run leaves it, changes nothing before its end.
  write_scores(tmp_path, by_step, AP)
  for step in by_step:
    reason = monitor.reason_to_stop(tmp_path, step, AP, patience)
    assert ends is not None or reason is None
    assert reason is None or step >= ends


def test_a_loss_must_fall(tmp_path):
  write_scores(tmp_path, {1: 3.0, 2: 2.0, 3: 1.0}, LOSS)
  assert monitor.reason_to_stop(tmp_path, 3, LOSS, 1) is None
  write_scores(tmp_path, {1: 3.0, 2: 2.0, 3: 2.5}, LOSS)
  assert monitor.reason_to_stop(tmp_path, 3, LOSS, 1)


def test_the_reason_names_score_and_step_and_option(tmp_path):
  write_scores(tmp_path, {10: 0.25, 20: 0.5, 30: 0.25, 40: 0.5}, AP)
  reason = monitor.reason_to_stop(tmp_path, 40, AP, 2)
  for value in ('step 40', AP, 'step 20 (0.5)', 'training.patience is 2'):
    assert value in reason
  write_scores(tmp_path, {10: None}, AP)
  assert AP in monitor.reason_to_stop(tmp_path, 10, AP, 1)


def test_evaluations_that_are_none_of_the_run_do_not_count(tmp_path):
  write_scores(tmp_path, {10: 0.5, 15: 0.1, 20: 0.4}, AP)
  on_time = {'counts': lambda step: step % 10 == 0}
  assert monitor.reason_to_stop(tmp_path, 20, AP, 2)
  assert not monitor.reason_to_stop(tmp_path, 20, AP, 2, **on_time)
  assert monitor.reason_to_stop(tmp_path, 20, AP, 1, **on_time)


def test_a_run_that_was_never_evaluated_goes_on(tmp_path):
  assert monitor.reason_to_stop(tmp_path, 5, AP, 1) is None
