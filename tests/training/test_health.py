"""What is said of bad steps, spikes and fallen scores, and when to go back."""

import json

import jax
import numpy as np
import pytest
import tiny_model

from maskrcnn_jax.training import diagnosis, health


def values(total=1.0, **terms):
  names = ('rpn_objectness', 'rpn_box', 'class', 'box', 'mask', 'l2_loss')
  return {**dict.fromkeys(names, 0.1), **terms, 'total_loss': total}


def watched(num_steps=30, max_bad_steps=3):
  """A run of losses near 1."""
  watch = health.Health(max_bad_steps)
  for step in range(1, num_steps + 1):
    assert watch.good_step(step, values(1.0 + 0.01 * step), [step]) is None
  return watch


def test_a_spike_is_named_with_its_term_and_images():
  watch = watched()
  message = watch.good_step(31, values(9.0, box=8.0), [7, 8])
  start = 'step 31: the loss 9 is 7.79 times the usual 1.155'
  assert message.startswith(start)
  assert 'most of it box (8)' in message
  assert message.endswith('images [7, 8]')
  # One spike does not change what is usual.
  assert watch.good_step(32, values(1.2), [9]) is None


def test_the_first_steps_and_a_falling_loss_are_no_spikes():
  watch = health.Health(3)
  for step, loss in enumerate([50.0, 2.0, 30.0] + [1.0] * 30):
    assert watch.good_step(step, values(loss), []) is None


def test_bad_steps_in_a_row_make_a_run_go_back_once():
  watch = watched()
  for number in (1, 2, 3):
    assert not watch.must_rewind()
    message = watch.bad_step(30 + number, values(np.nan, mask=np.inf), [number])
    assert message.endswith(f'The update was skipped, {number} in a row')
    assert 'loss term mask is inf' in message
    assert watch.is_first_in_a_row() == (number == 1)
  assert watch.must_rewind()
  watch.rewind(20)
  assert not watch.must_rewind()
  assert watch.skipped == 3
  for number in (21, 22, 23):
    watch.bad_step(number, values(np.nan), [number])
  with pytest.raises(health.NonFiniteError) as error:
    watch.rewind(20)
  assert 'after step 20 with other images' in str(error.value)
  assert 'step 22: total_loss is nan; images [22]' in str(error.value)


def test_a_good_step_ends_the_row_and_progress_allows_another_rewind():
  watch = watched(max_bad_steps=2)
  watch.bad_step(31, values(np.nan), [])
  watch.good_step(32, values(), [])
  watch.bad_step(33, values(np.nan), [])
  assert not watch.must_rewind()
  watch.rewind(20)
  watch.rewind(40)  # A later checkpoint: the run got on.


def write_scores(folder, scores, name='eval/mask_AP'):
  lines = [json.dumps({'step': step, name: ap}) for step, ap in scores.items()]
  (folder / 'metrics.jsonl').write_text('\n'.join([*lines, '{"step": 9, "ev']))


def test_a_fallen_score_is_called_out(tmp_path):
  write_scores(tmp_path, {1: 0.1, 2: 0.29})
  message = health.fallen_score(tmp_path, 3, {'eval/mask_AP': 0.0})
  assert 'step 3: eval/mask_AP fell to 0 from 0.29 at step 2' in message
  assert health.fallen_score(tmp_path, 3, {'eval/mask_AP': 0.2}) is None
  # An evaluation again of an early step is compared with those before it.
  assert health.fallen_score(tmp_path, 1, {'eval/mask_AP': 0.0}) is None


def test_a_run_that_never_learnt_has_not_fallen(tmp_path):
  assert health.fallen_score(tmp_path, 3, {'eval/AP': 0.0}) is None
  write_scores(tmp_path, {1: 0.01}, 'eval/AP')
  assert health.fallen_score(tmp_path, 3, {'eval/AP': 0.0}) is None


@pytest.fixture(scope='module')
def healthy():
  """A tiny model, its variables and a batch, all finite."""
  model = tiny_model.make_model()
  batch = tiny_model.make_batch()
  state, _ = tiny_model.make_state(model, batch)
  return model, state.variables(), batch


def first(healthy, variables=None, batch=None):
  model, own_variables, own_batch = healthy
  return diagnosis.first_nonfinite(
    model, variables or own_variables, batch or own_batch, jax.random.key(0)
  )


def replaced(tree, path, change):
  """A copy of nested dicts with one leaf changed."""
  name, *rest = path
  inner = replaced(tree[name], rest, change) if rest else change(tree[name])
  return {**tree, name: inner}


@pytest.mark.slow
def test_the_first_tensor_that_is_not_finite(healthy):
  _, variables, batch = healthy
  assert first(healthy) is None
  path = ('params', 'fpn', 'output3', 'kernel')
  bad = replaced(variables, path, lambda x: x.at[0, 0, 0, 0].set(np.nan))
  assert first(healthy, bad) == 'params/fpn/output3/kernel'
  images = np.array(batch['images'])
  images[1, 3, 3, 0] = np.inf
  bad = {**batch, 'images': images}
  assert first(healthy, batch=bad) == 'images[1]'
  # Finite numbers that become too large are named where that happens.
  path = ('params', 'backbone', 'stem', 'conv', 'kernel')
  bad = replaced(variables, path, lambda x: x * 0 + 1e38)
  assert first(healthy, bad) == 'output of backbone/stem/conv'
