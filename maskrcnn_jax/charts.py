"""Learning curves of a run as a picture: losses, learning rate, AP over steps.

`WORKDIR/curves.png` is drawn of `WORKDIR/metrics.jsonl` after every evaluation
and at the end of a run, whatever ends it.
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskrcnn_jax.evaluation import scores

# Okabe and Ito's colours, which all eyes tell apart.
_INK, _GRID, _LIGHT = '#222222', '#dddddd', '#999999'
_COLOURS = {
  'rpn_objectness': '#0072b2',
  'rpn_box': '#56b4e9',
  'class': '#009e73',
  'box': '#e69f00',
  'mask': '#cc79a7',
  'l2_loss': _LIGHT,
}
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 900, 270, 70, 190, 36, 34
# Lines are drawn at this size and made smaller, which smooths them.
_SCALE = 2
# Means of neighbouring steps are shown where there are more.
_MOST_POINTS = 300
# The share of the values of a loss that its panel must hold: not its spikes.
_SHOWN_PERCENT = 98


@dataclasses.dataclass(frozen=True)
class Series:
  """One line of a panel.

  Attributes:
    name: in the legend.
    key: of `metrics.jsonl`; the values of several are added up.
    colour: of the line.
    width: of the line, in pixels.
  """

  name: str
  key: str | tuple[str, ...]
  colour: str
  width: int = 1


_LOSSES = (
  *(Series(name, f'train/{name}', x) for name, x in _COLOURS.items()),
  Series('total', 'train/total_loss', _INK, 2),
)
_VALIDATION = (
  *(
    Series(term, f'{scores.LOSS}_{term}', _COLOURS[term])
    for term in scores.TERMS
  ),
  Series(
    'sum in training',
    tuple(f'train/{term}' for term in scores.TERMS),
    _LIGHT,
    2,
  ),
  Series('sum', scores.LOSS, _INK, 2),
)
_RATE = (Series('learning rate', 'train/learning_rate', '#0072b2', 2),)
_AP = (
  Series('box AP50', 'eval/AP50', '#56b4e9'),
  Series('mask AP50', 'eval/mask_AP50', '#f0c27a'),
  Series('box AP', 'eval/AP', '#0072b2', 2),
  Series('mask AP', 'eval/mask_AP', '#e69f00', 2),
)


@contextlib.contextmanager
def drawn_at_end(workdir, enabled: bool):
  """Draws the curves of a run when its context ends, however it ends.

  Args:
    workdir: of the run.
    enabled: False on all hosts but one.
  """
  try:
    yield
  finally:
    if enabled:
      write(workdir)


def write(workdir) -> pathlib.Path | None:
  """Writes `WORKDIR/curves.png`; a reader never sees half of it.

  Args:
    workdir: of a run.

  Returns:
    Its path; None if there is nothing to draw, or the disk does not take it,
    which is logged.
  """
  workdir = pathlib.Path(workdir)
  try:
    image = draw(read(workdir / 'metrics.jsonl'))
    if image is None:
      return None
    path = workdir / 'curves.png'
    unfinished = path.with_suffix('.unfinished')
    image.save(unfinished, 'PNG')
    unfinished.replace(path)
    return path
  except OSError as error:
    # A picture is not worth a run.
    logging.warning('%s/curves.png could not be written: %s', workdir, error)
    return None


def read(path: pathlib.Path) -> dict[str, dict[int, float]]:
  """The finite numbers of a `metrics.jsonl`: key -> step -> the last value."""
  values = {}
  if not path.exists():
    return values
  with path.open(encoding='utf-8', errors='replace') as file:
    for text in file:
      try:
        line = json.loads(text)
      except json.JSONDecodeError:
        continue  # The line that a killed run was writing.
      step = line.pop('step')
      for key, value in line.items():
        values.setdefault(key, {})[step] = value
  return {
    key: {step: x for step, x in by_step.items() if x is not None}
    for key, by_step in values.items()
  }


def draw(values: Mapping[str, Mapping[int, float]]) -> Image.Image | None:
  """The picture of a run: a panel for each kind of number that it has.

  Args:
    values: see `read`.

  Returns:
    None if no step was trained.
  """
  trained = values.get('train/total_loss', {})
  if not trained:
    return None
  panels = [
    ('Training loss', _LOSSES, False),
    ('Loss on the evaluation set', _VALIDATION, False),
    ('Learning rate', _RATE, True),
    ('AP on the evaluation set', _AP, True),
  ]
  if scores.LOSS not in values:
    del panels[1]
  if not any(points(values, x) for x in _AP):
    panels = [x for x in panels if x[1] is not _AP]
  last = max(max(by_step) for by_step in values.values() if by_step)
  image = Image.new(
    'RGB', (_SCALE * _WIDTH, _SCALE * _HEIGHT * len(panels)), 'white'
  )
  canvas = ImageDraw.Draw(image)
  for index, (title, series, whole) in enumerate(panels):
    lines = [(x, points(values, x)) for x in series]
    lines = [(x, found) for x, found in lines if found]
    _draw_panel(canvas, index * _HEIGHT, title, lines, last, whole)
  return image.reduce(_SCALE)


def points(
  values: Mapping[str, Mapping[int, float]], series: Series
) -> list[tuple[float, float]]:
  """(step, value) of a series in the order of the steps.

  An AP of -1, where there was nothing to measure, is left out; of many steps
  come the means of neighbours.
  """
  keys = series.key if isinstance(series.key, tuple) else (series.key,)
  parts = [values.get(key, {}) for key in keys]
  steps = sorted(set.intersection(*({*part} for part in parts)))
  found = [(s, sum(part[s] for part in parts)) for s in steps]
  found = [(s, value) for s, value in found if value >= 0]
  size = -(-len(found) // _MOST_POINTS) or 1
  groups = (found[i : i + size] for i in range(0, len(found), size))
  return [tuple(np.mean(group, axis=0).tolist()) for group in groups]


def highest(lines: Sequence[Sequence[tuple[float, float]]], whole: bool):
  """The value at the top of a panel.

  Args:
    lines: points of each series.
    whole: whether every point must be seen; otherwise most of each series.
  """
  percent = 100 if whole else _SHOWN_PERCENT
  tops = [np.percentile([y for _, y in line], percent) for line in lines]
  return 1.05 * max(tops, default=1.0) or 1.0


def ticks(top: float, most: int = 5) -> list[float]:
  """Round numbers from 0 to at most `top`: steps of 1, 2 or 5 times 10**n."""
  size = 10.0 ** np.floor(np.log10(top / most))
  step = next(size * f for f in (1, 2, 5, 10) if top / (size * f) <= most)
  return [float(step * i) for i in range(int(top / step + 1e-9) + 1)]


def _draw_panel(canvas, top, title, lines, last, whole) -> None:
  """One panel, its top at a row of the picture.

  Args:
    canvas: to draw on.
    top: row.
    title: above.
    lines: series with their points.
    last: step at the right end.
    whole: see `highest`.
  """
  small, large = (ImageFont.load_default(_SCALE * x) for x in (11, 14))
  bottom, right = top + _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
  limit = highest([found for _, found in lines], whole)

  def place(step, value):
    share = min(value / limit, 1.0)
    x = _LEFT + (right - _LEFT) * step / last
    y = bottom - (bottom - top - _TOP) * share
    return _SCALE * x, _SCALE * y

  canvas.text(
    (_SCALE * _LEFT, _SCALE * (top + 10)), title, _INK, large, anchor='lt'
  )
  for value in ticks(limit):
    (x, y), end = place(0, value), place(last, value)
    canvas.line([(x, y), end], _GRID, _SCALE)
    label = f'{value:.4g}'
    canvas.text((x - _SCALE * 8, y), label, _INK, small, anchor='rm')
  for step in ticks(last, most=7):
    x, y = place(step, 0)
    canvas.line([(x, y), (x, y + _SCALE * 4)], _INK, _SCALE)
    label = f'{step:,.0f}' if step == int(step) else ''
    canvas.text((x, y + _SCALE * 7), label, _INK, small, anchor='mt')
  for series, found in lines:
    path = [place(*point) for point in found]
    canvas.line(path, series.colour, _SCALE * series.width, joint='curve')
    if len(path) <= 60:
      radius = _SCALE * (series.width + 1)
      for x, y in path:
        box = [x - radius, y - radius, x + radius, y + radius]
        canvas.ellipse(box, series.colour)
  _draw_legend(canvas, top + _TOP, lines, small)


def _draw_legend(canvas, top, lines, font) -> None:
  """Names, colours and last values, the highest on top."""
  order = sorted(lines, key=lambda line: -line[1][-1][1])
  left = _WIDTH - _RIGHT + 14
  for row, (series, found) in enumerate(order):
    y = _SCALE * (top + 8 + 18 * row)
    mark = [(_SCALE * left, y), (_SCALE * (left + 16), y)]
    canvas.line(mark, series.colour, _SCALE * (series.width + 1))
    text = f'{series.name}  {found[-1][1]:.3g}'
    canvas.text((_SCALE * (left + 22), y), text, _INK, font, anchor='lm')
