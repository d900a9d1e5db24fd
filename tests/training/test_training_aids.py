"""Runs with averages, validation losses, a best checkpoint or an early stop.

Scores that decide something are made up, so that they are known.
"""

import json

import numpy as np
import pytest
import tiny_run
from PIL import Image

from maskrcnn_jax.checkpoints import checksums, store
from maskrcnn_jax.evaluation import scores
from maskrcnn_jax.training import evaluator, loop

pytestmark = pytest.mark.usefixtures('fast_compilation')

METRIC = 'eval/mask_AP'


class Killed(BaseException):
  """The end of a process, as far as a test can have it."""


def score_by(monkeypatch, table, killed_at=None):
  """Evaluations write made-up scores; returns the steps that were evaluated."""
  evaluated = []

  def evaluate(self, step, variables, writer, heartbeat):
    if step == killed_at:
      raise Killed
    evaluated.append(step)
    values = {'eval/AP': 0.5, METRIC: table[step]}
    writer.scalars(step, values)
    return values

  monkeypatch.setattr(evaluator.Evaluator, '__call__', evaluate)
  return evaluated


def with_patience(config, patience=1, num_steps=8):
  return tiny_run.changed(
    config,
    {
      'training.num_steps': num_steps,
      'training.keep_best': METRIC,
      'training.patience': patience,
      'training.keep_checkpoints': 1,
      'training.checkpoint_every_steps': 100,
      'evaluation.every_steps': 1,
    },
  )


TABLE = {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.4, 5: 0.1}


@pytest.mark.long
@pytest.mark.slow
def test_a_run_without_improvement_stops_early_and_keeps_its_best(
  config, tmp_path, monkeypatch, capsys
):
  evaluated = score_by(monkeypatch, TABLE)
  values = loop.train_and_evaluate(with_patience(config), tmp_path)
  assert evaluated == [1, 2, 3]
  assert values[METRIC] == 0.2
  said = capsys.readouterr().err
  assert METRIC in said and 'step 2 (0.3)' in said
  assert tiny_run.saved_steps(tmp_path) == [2, 3]
  assert store.step_of(tmp_path, 'best') == 2
  assert (tmp_path / 'curves.png').exists()
  # The same command does not go on silently, and neither does its training.
  before = (tmp_path / 'metrics.jsonl').read_text()
  loop.train_and_evaluate(with_patience(config), tmp_path)
  assert 'step 2 (0.3)' in capsys.readouterr().err
  assert evaluated == [1, 2, 3, 3]  # As of any run that has ended.
  added = (tmp_path / 'metrics.jsonl').read_text().removeprefix(before)
  assert 'train/' not in added
  assert tiny_run.saved_steps(tmp_path) == [2, 3]
  # With more patience it goes on, and finds something better.
  loop.train_and_evaluate(with_patience(config, 2, num_steps=4), tmp_path)
  assert 'training.patience' not in capsys.readouterr().err
  assert store.latest_step(tmp_path) == 4
  assert store.step_of(tmp_path, 'best') == 4
  assert sorted(tiny_run.lines(tmp_path, 'train/total_loss')) == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_run_killed_before_an_evaluation_makes_up_for_it(
  config, tmp_path, monkeypatch
):
  """It ends at the same step, with the same scores and the same best."""
  score_by(monkeypatch, TABLE, killed_at=2)
  with pytest.raises(Killed):
    loop.train_and_evaluate(with_patience(config), tmp_path)
  assert store.latest_step(tmp_path) == 2  # Saved, not evaluated.
  assert sorted(tiny_run.lines(tmp_path, METRIC)) == [1]
  evaluated = score_by(monkeypatch, TABLE)
  loop.train_and_evaluate(with_patience(config), tmp_path)
  assert evaluated == [2, 3]
  assert tiny_run.saved_steps(tmp_path) == [2, 3]
  assert store.step_of(tmp_path, 'best') == 2
  # Killed once more, at the evaluation that is the last one: it still is.
  text = (tmp_path / 'metrics.jsonl').read_text().splitlines(keepends=True)
  (tmp_path / 'metrics.jsonl').write_text(
    ''.join(x for x in text if not ('"step": 3' in x and METRIC in x))
  )
  evaluated = score_by(monkeypatch, TABLE)
  values = loop.train_and_evaluate(with_patience(config), tmp_path)
  assert evaluated == [3] and values[METRIC] == 0.2
  assert tiny_run.saved_steps(tmp_path) == [2, 3]


def aided(config):
  """A run with an average and with losses beside the AP."""
  return tiny_run.changed(
    config,
    {
      'optimizer.ema_decay': 0.9,
      'evaluation.losses': True,
      'training.keep_best': scores.LOSS,
      'evaluation.every_steps': 2,
    },
  )


@pytest.fixture(scope='module')
def run(tmp_path_factory, dataset, fast_compilation):
  """An aided run of four steps, evaluated after two and at the end."""
  workdir = tmp_path_factory.mktemp('run')
  config = aided(tiny_run.make_config(*dataset))
  return workdir, loop.train_and_evaluate(config, workdir)


@pytest.mark.slow
def test_validation_losses_are_reported_with_the_ap(run):
  workdir, values = run
  reported = tiny_run.lines(workdir, scores.LOSS)
  assert sorted(reported) == [2, 4]
  for line in reported.values():
    terms = [line[f'{scores.LOSS}_{term}'] for term in scores.TERMS]
    assert np.all(np.isfinite(terms)) and min(terms) > 0
    np.testing.assert_allclose(line[scores.LOSS], sum(terms), rtol=1e-9)
    assert line['eval/AP'] >= 0
  assert values[scores.LOSS] == reported[4][scores.LOSS]
  assert reported[2][scores.LOSS] != reported[4][scores.LOSS]
  assert len(values) == 24 + 6
  best = min(reported, key=lambda step: reported[step][scores.LOSS])
  assert store.step_of(workdir, 'best') == best


@pytest.mark.slow
def test_a_run_leaves_tables_by_class_and_curves(run):
  workdir, _ = run
  for step in (2, 4):
    text = (workdir / f'eval/classes-{step}.md').read_text()
    assert text.startswith(f'# Step {step}, class by class\n')
    # Two discs and a star, see `tiny_run`.
    assert '| disc  | 2       |' in text
    assert '| star  | 1       |' in text
    assert '| object     | disc | star | background |' in text
    # The thresholds are known to be of this checkpoint, its average.
    evaluated = json.loads((workdir / f'eval/classes-{step}.json').read_text())
    saved = checksums.read(workdir / 'checkpoints' / str(step))
    assert checksums.saved_model_digest(saved) == evaluated['weights']
  with Image.open(workdir / 'curves.png') as image:
    assert image.size == (900, 4 * 270)


@pytest.mark.slow
def test_an_average_is_evaluated_saved_and_resumed_bit_by_bit(
  run, config, tmp_path, capsys
):
  workdir, _ = run
  half = aided(config)
  half.training.num_steps = 2
  # Its last step is evaluated from the checkpoint.
  loop.train_and_evaluate(half, tmp_path)
  loop.train_and_evaluate(aided(config), tmp_path)
  for key in ('train/total_loss', 'eval/AP'):
    assert tiny_run.lines(tmp_path, key) == tiny_run.lines(workdir, key)
  folders = [w / 'checkpoints/4' for w in (workdir, tmp_path)]
  trees = [checksums.read_shapes(folder, None) for folder in folders]
  assert trees[0].keys() == trees[1].keys() >= {'ema', 'params'}
  tiny_run.assert_same_end(workdir, tmp_path)
  assert '| disc  | 2       |' in capsys.readouterr().out
