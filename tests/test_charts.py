import json
import logging
import subprocess
import sys

import pytest
from PIL import Image

from maskrcnn_jax import charts
from maskrcnn_jax.evaluation import scores

TERMS = (*scores.TERMS, 'l2_loss')


def trained(steps):
  """Lines of training: every term is 0.5, the total falls."""
  return [
    {'step': step, 'train/total_loss': 4 - 3 * step / steps[-1]}
    | {f'train/{term}': 0.5 for term in TERMS}
    | {'train/learning_rate': 0.08}
    for step in steps
  ]


def write(workdir, lines, end=''):
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (workdir / 'metrics.jsonl').write_text(text + end)


def test_reads_the_last_finite_value_of_a_step(tmp_path):
  lines = [{'step': 1, 'a': 1.0}, {'step': 2, 'a': 2.0, 'b': None}]
  write(tmp_path, [*lines, {'step': 1, 'a': 3.0}], end='{"step": 3, "a')
  values = charts.read_metrics(tmp_path)
  assert values == {'a': {1: 3.0, 2: 2.0}, 'b': {}}


def test_points_are_sorted_summed_and_not_negative():
  a, b = {3: 0.5, 1: 0.25, 2: -1.0}, {1: 1.0, 2: 1.0, 4: 1.0}
  assert charts.points([a]) == [(1.0, 0.25), (3.0, 0.5)]
  assert charts.points([a, b]) == [(1.0, 1.25), (2.0, 0.0)]
  assert charts.points([{}]) == []


def test_many_points_become_means_of_neighbors():
  found = charts.points([{step: float(step % 2) for step in range(1, 901)}])
  assert len(found) == 300
  assert found[0] == (2.0, pytest.approx(2 / 3))
  assert found[1] == (5.0, pytest.approx(1 / 3))


@pytest.mark.parametrize(
  'values, shown_percent, expected',
  [
    ([1.0] * 99 + [1000.0], 98, 1.05),  # A spike.
    ([1.0] * 99 + [1000.0], 100, 1050),
    ([0.0], 100, 1.0),
    ([], 100, 1.05),
  ],
)
def test_top_of_a_panel(values, shown_percent, expected):
  line = charts.Line('loss', [*enumerate(values)], charts.BLUE)
  panel = charts.LinePanel('', [line], shown_percent)
  assert panel.top == pytest.approx(expected)


def test_line_chart_draws_lines_to_scale_and_names_the_highest_first():
  panels = charts.learning_curve_panels(
    {
      'train/total_loss': {1: 4.0, 100: 1.0},
      'train/box': {1: 2.0, 100: 0.5},
      'train/mask': {1: 1.0, 100: 0.75},
      'train/learning_rate': {1: 0.02, 100: 0.02},
    }
  )
  losses, rate = charts.line_chart(panels).axes
  titles = [axes.get_title('left') for axes in (losses, rate)]
  assert titles == [panel.title for panel in panels]
  lines = [line.get_xydata().tolist() for line in losses.lines]
  assert lines[0] == [[1, 2], [100, 0.5]]
  assert lines[1] == [[1, 1], [100, 0.75]]
  assert lines[2] == [[1, 4], [100, 1]]
  assert [line.get_color() for line in losses.lines] == [
    *(charts.ORANGE, charts.PINK, charts.INK)
  ]
  assert losses.get_xlim() == rate.get_xlim() == (0, 101)
  assert losses.get_ylim() == pytest.approx((0, panels[0].top))
  assert rate.get_ylim() == pytest.approx((0, 0.021))
  legend = [text.get_text() for text in losses.get_legend().get_texts()]
  assert legend == ['total  1', 'mask  0.75', 'box  0.5']


def test_bar_chart_shows_values_limits_and_unknown_ones():
  bars = [
    charts.Bar('8 devices', 12.0, charts.SKY, limit=16.0),
    charts.Bar('16 devices', None),
  ]
  empty = charts.BarPanel('seconds', [])
  figure = charts.bar_chart([charts.BarPanel('GiB', bars), empty])
  (axes,) = figure.axes
  assert axes.get_title('left') == 'GiB'
  assert [bar.get_width() for bar in axes.patches] == [12.0, 0.0]
  assert [text.get_text() for text in axes.texts] == ['12', '-']
  assert [text.get_text() for text in axes.get_yticklabels()] == [
    *('8 devices', '16 devices')
  ]
  (mark,) = axes.collections
  assert mark.get_segments()[0].tolist() == [[16, -0.45], [16, 0.45]]
  assert axes.get_xlim() == pytest.approx((0, 17.6))
  assert axes.get_ylim() == (1.5, -0.5)  # The first bar is on top.


def test_a_chart_without_bars_is_blank(tmp_path):
  charts.save(charts.bar_chart([]), tmp_path / 'new' / 'blank.png')
  with Image.open(tmp_path / 'new' / 'blank.png') as image:
    assert image.size == (900, 100)
    assert image.convert('L').getextrema() == (255, 255)


def test_learning_curves_have_a_panel_for_each_kind_of_number(tmp_path):
  lines = trained([10, 20, 30, 40])
  more = (
    {},
    {'step': 20, 'eval/AP': 0.1, 'eval/mask_AP': -1.0},
    {'step': 20, **dict.fromkeys(scores.LOSSES, 0.5)},
  )
  for line, num_panels in zip(more, (2, 3, 4)):
    lines += [line] if line else []
    write(tmp_path, lines)
    path = charts.learning_curves(tmp_path)
    assert path == tmp_path / 'curves.png'
    with Image.open(path) as image:
      assert image.size == (900, num_panels * 270)
  assert {p.name for p in tmp_path.iterdir()} == {'curves.png', 'metrics.jsonl'}


@pytest.mark.parametrize('lines', [[], [{'step': 1, 'eval/AP': 0.5}]])
def test_a_workdir_without_a_trained_step_gets_no_curves(tmp_path, lines):
  assert charts.learning_curves(tmp_path) is None
  write(tmp_path, lines)
  assert charts.learning_curves(tmp_path) is None
  assert not (tmp_path / 'curves.png').exists()


def test_curves_that_cannot_be_written_do_not_end_a_run(tmp_path, caplog):
  write(tmp_path, trained([1, 2]))
  (tmp_path / 'curves.png').mkdir()
  with caplog.at_level(logging.WARNING):
    assert charts.learning_curves(tmp_path) is None
  assert str(tmp_path / 'curves.png') in caplog.text
  assert {p.name for p in tmp_path.iterdir()} == {'curves.png', 'metrics.jsonl'}


def test_curves_are_drawn_however_a_run_ends(tmp_path):
  write(tmp_path, trained([1, 2]))
  with charts.drawn_at_end(tmp_path, enabled=False):
    pass
  assert not (tmp_path / 'curves.png').exists()
  with pytest.raises(SystemExit), charts.drawn_at_end(tmp_path, enabled=True):
    raise SystemExit(0)
  assert (tmp_path / 'curves.png').exists()


def test_matplotlib_is_imported_by_the_first_chart_and_pyplot_never():
  script = (
    'import sys\n'
    'from maskrcnn_jax import charts\n'
    "assert 'matplotlib' not in sys.modules\n"
    'charts.bar_chart([])\n'
    "assert 'matplotlib' in sys.modules\n"
    "assert 'matplotlib.pyplot' not in sys.modules\n"
  )
  subprocess.run([sys.executable, '-c', script], check=True)
