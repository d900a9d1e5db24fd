"""Which checkpoints stay: the newest, the best, one every few hours."""

import json

import pytest
from tiny_checkpoint import CLASSES, POSITION, make_config, make_state

from maskrcnn_jax.training import checkpoint

METRIC = 'eval/mask_AP'


def report(workdir, step, score, metric=METRIC):
  """A line as an evaluation writes it."""
  workdir.mkdir(exist_ok=True)
  with (workdir / 'metrics.jsonl').open('a') as file:
    file.write(json.dumps({'step': step, metric: score}) + '\n')


def save_and_score(workdir, scores, **options):
  """A run that is evaluated after every save; None: not after this one."""
  with checkpoint.CheckpointWriter(workdir, **options) as writer:
    for step, score in scores.items():
      state = make_state(step=step)
      writer.save(step, state, POSITION, make_config(), CLASSES)
      if score is not None:
        report(workdir, step, score)


def kept(workdir):
  names = [p.name for p in (workdir / 'checkpoints').iterdir()]
  return sorted(int(name) for name in names)


def test_the_best_stays_besides_the_newest(tmp_path):
  scores = {1: 0.1, 2: 0.3, 3: None, 4: 0.2, 5: 0.25, 6: None}
  save_and_score(tmp_path, scores, keep=2, keep_best=METRIC)
  assert kept(tmp_path) == [2, 5, 6]
  assert checkpoint.best_step(tmp_path, METRIC) == 2
  # A later run goes on with what there is, and a better one takes its place.
  save_and_score(tmp_path, {7: 0.5, 8: 0.1, 9: 0.1}, keep=1, keep_best=METRIC)
  assert kept(tmp_path) == [7, 9]
  assert checkpoint.best_step(tmp_path, METRIC) == 7


def test_without_a_score_only_the_newest_stay(tmp_path):
  report(tmp_path, 1, 0.9, metric='eval/AP')
  save_and_score(tmp_path, {1: None, 2: None}, keep=1, keep_best=METRIC)
  assert kept(tmp_path) == [2]
  assert checkpoint.best_step(tmp_path, METRIC) is None


def test_only_saved_steps_and_last_lines_count(tmp_path):
  assert checkpoint.best_step(tmp_path, METRIC) is None
  save_and_score(tmp_path, {1: 0.1, 2: 0.2, 3: 0.2})
  report(tmp_path, 9, 0.9)  # Between two saves.
  assert checkpoint.best_step(tmp_path, METRIC) == 3
  report(tmp_path, 3, None)  # Was not finite when it was reached again.
  assert checkpoint.best_step(tmp_path, METRIC) == 2
  report(tmp_path, 1, 0.7)
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 2, "' + METRIC + '": 0.')  # Killed while writing.
  assert checkpoint.best_step(tmp_path, METRIC) == 1


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
  'options, message',
  [
    ({'keep': 0}, 'keep must be at least 1, got 0'),
    ({'keep_every_hours': 0.0}, 'keep_every_hours must be positive, got 0.0'),
  ],
)
def test_a_policy_that_cannot_be_is_refused(tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    checkpoint.CheckpointWriter(tmp_path, **options)
