"""Retention: the newest stay, the best, and one every few hours."""

import json

import pytest
from tiny_checkpoint import (
  CLASSES,
  POSITION,
  make_config,
  make_state,
  save_state,
)

from maskrcnn_jax.checkpoints import store
from maskrcnn_jax.errors import UserError

METRIC = 'eval/mask_AP'


def report(workdir, step, score, metric=METRIC):
  """A line as an evaluation writes it."""
  workdir.mkdir(exist_ok=True)
  with (workdir / 'metrics.jsonl').open('a') as file:
    file.write(json.dumps({'step': step, metric: score}) + '\n')


def save_and_score(workdir, scores, metric=METRIC, **options):
  """A run that is evaluated after every save, except where it is None."""
  with store.CheckpointWriter(workdir, **options) as writer:
    for step, score in scores.items():
      save_state(writer, step, make_state(step=step))
      if score is not None:
        report(workdir, step, score, metric)


def kept(workdir):
  names = [p.name for p in (workdir / 'checkpoints').iterdir()]
  return sorted(int(name) for name in names)


def test_the_best_stays_besides_the_newest(tmp_path):
  scores = {1: 0.1, 2: 0.3, 3: None, 4: 0.2, 5: 0.25, 6: None}
  save_and_score(tmp_path, scores, keep=2, keep_best=METRIC)
  assert kept(tmp_path) == [2, 5, 6]
  assert store.best_step(tmp_path, METRIC) == 2
  # A later run goes on with what there is, and a better one takes its place.
  save_and_score(tmp_path, {7: 0.5, 8: 0.1, 9: 0.1}, keep=1, keep_best=METRIC)
  assert kept(tmp_path) == [7, 9]
  assert store.best_step(tmp_path, METRIC) == 7


def test_without_a_score_only_the_newest_stay(tmp_path):
  report(tmp_path, 1, 0.9, metric='eval/AP')
  save_and_score(tmp_path, {1: None, 2: None}, keep=1, keep_best=METRIC)
  assert kept(tmp_path) == [2]
  assert store.best_step(tmp_path, METRIC) is None


def test_only_saved_steps_and_last_lines_count(tmp_path):
  assert store.best_step(tmp_path, METRIC) is None
  save_and_score(tmp_path, {1: 0.1, 2: 0.2, 3: 0.2})
  report(tmp_path, 9, 0.9)  # Between two saves.
  assert store.best_step(tmp_path, METRIC) == 3
  report(tmp_path, 3, None)  # Was not finite when it was reached again.
  assert store.best_step(tmp_path, METRIC) == 2
  report(tmp_path, 1, 0.7)
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 2, "' + METRIC + '": 0.')  # Killed while writing.
  assert store.best_step(tmp_path, METRIC) == 1


def test_of_a_loss_the_lowest_stays(tmp_path):
  losses = {1: 0.5, 2: 0.2, 3: 0.4, 4: 0.3}
  save_and_score(tmp_path, losses, 'eval/loss', keep=1, keep_best='eval/loss')
  assert kept(tmp_path) == [2, 4]
  assert store.best_step(tmp_path, 'eval/loss') == 2


def save_with_best(workdir, scores, keep_best=METRIC):
  """A run whose config names its metric."""
  config = make_config()
  config.training.keep_best = keep_best
  with store.CheckpointWriter(workdir, 3, keep_best) as writer:
    for step, score in scores.items():
      state = make_state(step=step, scale=float(step))
      save_state(writer, step, state, config)
      report(workdir, step, score)


def test_the_best_is_restored_by_name(tmp_path):
  save_with_best(tmp_path, {1: 0.1, 2: 0.3, 3: 0.2})
  path = tmp_path / 'checkpoints' / 'best'
  assert not path.exists()
  assert store.is_checkpoint(path)
  for given in ((tmp_path, 'best'), (path,)):
    assert store.step_of(*given) == 2
    variables, _ = store.restore(*given)
    assert float(variables['params']['head']['bias'][0]) == 2.0
    assert store.read_classes(*given) == CLASSES
    assert store.read_position(*given) == POSITION
  assert store.step_of(tmp_path) == 3
  # What becomes the best later is what the name means then.
  report(tmp_path, 3, 0.4)
  assert store.step_of(path) == 3


def test_without_a_best_the_name_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    store.restore(tmp_path, 'best')
  assert str(tmp_path) in str(error.value)
  assert not store.is_checkpoint(tmp_path / 'checkpoints' / 'best')
  save_with_best(tmp_path / 'a', {1: None})
  with pytest.raises(FileNotFoundError) as error:
    store.restore(tmp_path / 'a', 'best')
  assert METRIC in str(error.value)
  save_with_best(tmp_path / 'b', {1: 0.5}, keep_best=None)
  with pytest.raises(UserError) as error:
    store.restore(tmp_path / 'b/checkpoints/best')
  assert error.value.argument == 'training.keep_best'
  assert error.value.path == str(tmp_path / 'b')


def make_older(workdir, hours):
  """As if everything had been saved so long ago."""
  for path in (workdir / 'checkpoints').glob('*/_CHECKPOINT_METADATA'):
    metadata = json.loads(path.read_text())
    metadata['commit_timestamp_nsecs'] -= int(3.6e12 * hours)
    path.write_text(json.dumps(metadata))


def test_one_every_few_hours_stays(tmp_path):
  for step in range(1, 7):
    save_and_score(tmp_path, {step: None}, keep=1, keep_every_hours=1.5)
    make_older(tmp_path, hours=1)
  # The first, then always the next that is 1.5 hours younger, and the newest.
  assert kept(tmp_path) == [1, 3, 5, 6]


@pytest.mark.parametrize(
  'argument, value', [('keep', 0), ('keep_every_hours', 0.0)]
)
def test_a_policy_that_keeps_nothing_is_refused(tmp_path, argument, value):
  with pytest.raises(UserError) as error:
    store.CheckpointWriter(tmp_path, **{argument: value})
  assert (error.value.argument, error.value.given) == (argument, value)
