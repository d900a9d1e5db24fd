"""Scores of a run: reading them, and the best step."""

import json

import numpy as np
import pytest

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import scores

AP, LOSS = 'eval/mask_AP', 'eval/loss_mask'


def write(workdir, *entries, end=''):
  text = ''.join(json.dumps(entry) + '\n' for entry in entries)
  (workdir / 'metrics.jsonl').write_text(text + end)


def test_the_last_line_of_a_step_holds(tmp_path):
  assert scores.read(tmp_path, AP) == {}
  write(
    tmp_path,
    {'step': 2, AP: 0.5, LOSS: 1.0},
    {'step': 4, 'train/mask': 0.5},
    {'step': 4, AP: None},
    {'step': 2, AP: 0.25},
    end=f'{{"step": 6, "{AP}": 0.',  # Killed while writing.
  )
  assert scores.read(tmp_path, AP) == {2: 0.25, 4: None}
  assert scores.read(tmp_path, LOSS) == {2: 1.0}


def test_lines_of_a_stranger(tmp_path):
  deep, path = '[' * 100_000, tmp_path / 'metrics.jsonl'
  write(
    tmp_path,
    *([AP], AP, {AP: 0.5}, {'step': '3', AP: 0.5}, {'step': 3, AP: 'high'}),
    *({'step': 3, 'x': AP}, {'step': 4, AP: [1]}, {'step': 5, AP: 0.5}),
    end=f'{{"step": 6, "{AP}": {deep}\n',
  )
  assert scores.read(tmp_path, AP) == {5: 0.5}
  path.rename(tmp_path / 'elsewhere')
  path.symlink_to(tmp_path / 'elsewhere')
  with pytest.raises(UserError) as error:
    scores.read(tmp_path, AP)
  assert error.value.path == str(path)


@pytest.mark.parametrize(
  'values, newest, first',
  [
    ({}, None, None),
    ({1: None}, None, None),
    ({1: 0.25, 2: 0.5, 3: 0.5, 4: 0.0}, 3, 2),
    ({3: -1.0, 1: None, 2: -2.0}, 3, 3),
  ],
)
def test_the_highest_is_the_best_and_of_losses_the_lowest(
  values, newest, first
):
  losses = {k: v if v is None else -v for k, v in values.items()}
  assert scores.best_step(values, AP) == newest
  assert scores.best_step(values, AP, first=True) == first
  assert scores.best_step(losses, LOSS) == newest
  assert scores.best_step(losses, LOSS, first=True) == first


def test_only_some_steps_may_count():
  values = {1: 0.9, 2: 0.1, 3: 0.2}
  assert scores.best_step(values, AP, [2, 3, 7]) == 3
  assert scores.best_step(values, AP, []) is None


@pytest.mark.parametrize('metric', [AP, LOSS])
def test_the_best_is_that_of_numpy(metric):
  rng = np.random.default_rng(0)
  for _ in range(50):
    values = rng.integers(0, 5, rng.integers(1, 9)).astype(float)
    signed = values if metric == AP else -values
    by_step = dict(enumerate(values.tolist()))
    assert scores.best_step(by_step, metric, first=True) == np.argmax(signed)
    newest = len(values) - 1 - np.argmax(signed[::-1])
    assert scores.best_step(by_step, metric) == newest
