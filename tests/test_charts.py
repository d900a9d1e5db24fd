"""Learning curves: what is read, what is left out, where the lines are."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from maskrcnn_jax import charts as curves
from maskrcnn_jax.evaluation import scores

PANEL = 270
TERMS = (*scores.TERMS, 'l2_loss')


def trained(steps, **more):
  """Lines of training: every term is 0.5, the total falls."""
  return [
    {'step': step, 'train/total_loss': 4 - 3 * step / steps[-1]}
    | {f'train/{term}': 0.5 for term in TERMS}
    | {'train/learning_rate': 0.08, **more}
    for step in steps
  ]


def write(workdir, lines, end=''):
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (workdir / 'metrics.jsonl').write_text(text + end)


def test_the_last_finite_line_of_a_step_is_read(tmp_path):
  lines = [{'step': 1, 'a': 1.0}, {'step': 2, 'a': 2.0, 'b': None}]
  write(tmp_path, [*lines, {'step': 1, 'a': 3.0}], end='{"step": 3, "a')
  values = curves.read(tmp_path / 'metrics.jsonl')
  assert values == {'a': {1: 3.0, 2: 2.0}, 'b': {}}


def test_points_are_ordered_added_up_and_without_what_was_not_measured():
  values = {'a': {3: 0.5, 1: 0.25, 2: -1.0}, 'b': {1: 1.0, 2: 1.0, 4: 1.0}}

  def points(key):
    return curves.points(values, curves.Series('name', key, 'red'))

  assert points('a') == [(1.0, 0.25), (3.0, 0.5)]
  assert points(('a', 'b')) == [(1.0, 1.25), (2.0, 0.0)]
  assert points('c') == []


def test_many_points_become_means_of_neighbours():
  values = {'a': {step: float(step % 2) for step in range(1, 901)}}
  found = curves.points(values, curves.Series('name', 'a', 'red'))
  assert len(found) == 300
  assert found[0] == (2.0, pytest.approx(2 / 3))
  assert found[1] == (5.0, pytest.approx(1 / 3))


@pytest.mark.parametrize(
  'top, most, expected',
  [
    (3.2, 5, [0, 1, 2, 3]),
    (0.084, 5, [0, 0.02, 0.04, 0.06, 0.08]),
    (1400, 7, [0, 200, 400, 600, 800, 1000, 1200, 1400]),
    (360000, 7, [0, 100000, 200000, 300000]),
    (4, 7, [0, 1, 2, 3, 4]),
    (1.0, 5, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
  ],
)
def test_ticks_are_round(top, most, expected):
  np.testing.assert_allclose(curves.ticks(top, most), expected, rtol=1e-9)


def test_a_spike_of_the_loss_does_not_squeeze_the_rest():
  line = [(step, 1.0) for step in range(99)] + [(99, 1000.0)]
  assert curves.highest([line], whole=False) == pytest.approx(1.05)
  assert curves.highest([line], whole=True) == pytest.approx(1050)
  assert curves.highest([[(1, 0.0)]], whole=True) == 1.0


def test_a_picture_has_a_panel_for_each_kind_of_number(tmp_path):
  steps = [10, 20, 30, 40]
  lines = trained(steps)
  write(tmp_path, lines)
  path = curves.write(tmp_path)
  assert path == tmp_path / 'curves.png'
  with Image.open(path) as image:
    assert image.size == (900, 2 * PANEL)
  lines.append({'step': 20, 'eval/AP': 0.1, 'eval/mask_AP': -1.0})
  write(tmp_path, lines)
  curves.write(tmp_path)
  with Image.open(path) as image:
    assert image.size == (900, 3 * PANEL)
  lines.append({'step': 20, **dict.fromkeys(scores.LOSSES, 0.5)})
  write(tmp_path, lines)
  curves.write(tmp_path)
  with Image.open(path) as image:
    assert image.size == (900, 4 * PANEL)
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    'curves.png',
    'metrics.jsonl',
  ]


def test_lines_are_where_their_values_are(tmp_path):
  write(tmp_path, trained([*range(1, 101)]))
  curves.write(tmp_path)
  image = np.asarray(Image.open(tmp_path / 'curves.png')).astype(int)
  # The learning rate is constant: all across its panel, at 1 / 1.05.
  top, bottom = PANEL + 36, 2 * PANEL - 34
  row = round(bottom - (bottom - top) / 1.05)
  blue = np.array([0x00, 0x72, 0xB2])
  line = image[row - 1 : row + 2, 80:700]
  assert np.all(np.min(np.abs(line - blue).max(-1), axis=0) < 40)
  # The total falls from the upper left to the lower right: dark on the way.
  dark = np.argwhere(np.all(image[36 : PANEL - 34, 80:700] < 90, axis=-1))
  rows_left = dark[dark[:, 1] < 9, 0]
  rows_right = dark[dark[:, 1] >= 610, 0]
  assert np.max(rows_left) < 30
  assert 130 < np.min(rows_right) < np.max(rows_right) < 170


@pytest.mark.parametrize('lines', [[], [{'step': 1, 'eval/AP': 0.5}]])
def test_a_workdir_where_nothing_was_trained_gets_no_picture(tmp_path, lines):
  assert curves.write(tmp_path) is None
  write(tmp_path, lines)
  assert curves.write(tmp_path) is None
  assert not (tmp_path / 'curves.png').exists()


def test_a_disk_that_takes_no_picture_does_not_end_a_run(tmp_path, caplog):
  write(tmp_path, trained([1, 2]))
  (tmp_path / 'curves.unfinished').mkdir()
  with caplog.at_level(logging.WARNING):
    assert curves.write(tmp_path) is None
  assert 'curves.png could not be written' in caplog.text


def test_the_end_of_a_run_is_drawn_whatever_ends_it(tmp_path):
  write(tmp_path, trained([1, 2]))
  with curves.drawn_at_end(tmp_path, enabled=False):
    pass
  assert not (tmp_path / 'curves.png').exists()
  with (
    pytest.raises(SystemExit),
    curves.drawn_at_end(tmp_path, enabled=True),
  ):
    raise SystemExit(0)
  assert (tmp_path / 'curves.png').exists()
