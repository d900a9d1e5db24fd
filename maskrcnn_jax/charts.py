"""Line and bar charts of runs, benchmarks and plans, drawn by matplotlib.

matplotlib is imported when a chart is drawn, and only through its `Figure`: no
window system and no state of `pyplot` is touched.

`WORKDIR/curves.png`, the learning curves of a run, is drawn from
`WORKDIR/metrics.jsonl` after every evaluation and at the end of a run.
"""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from maskrcnn_jax import files
from maskrcnn_jax.evaluation import scores
from maskrcnn_jax.tables import number

# Okabe and Ito's colors, which color-blind readers can tell apart.
BLUE, SKY, GREEN, ORANGE = '#0072b2', '#56b4e9', '#009e73', '#e69f00'
PINK, RED, YELLOW = '#cc79a7', '#d55e00', '#f0e442'
INK, GREY, GRID = '#222222', '#999999', '#dddddd'

_DPI = 100
_WIDTH, _LINE_PANEL = 9.0, 2.7  # Inches.
_BAR, _BAR_PANEL = 0.22, 0.6  # Inches of one bar, and of a title and axis.
_STYLE = {
  'axes.axisbelow': True,
  'axes.edgecolor': GRID,
  'axes.grid': True,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.titlelocation': 'left',
  'axes.titlesize': 10,
  'font.size': 8,
  'grid.color': GRID,
  'legend.frameon': False,
  'text.color': INK,
  'text.parse_math': False,  # Names may have dollar signs.
  'xtick.color': INK,
  'ytick.color': INK,
}
# Longer lines show means of neighboring points.
_MAX_POINTS = 300
# Lines of few points mark each of them.
_MAX_MARKED_POINTS = 60


@dataclasses.dataclass(frozen=True)
class Line:
  """One line of a panel.

  Attributes:
    name: in the legend, which adds the last value.
    points: `(x, y)` in ascending order of x; a line without any is not drawn.
    color: of the line.
    width: of the line, in points.
  """

  name: str
  points: Sequence[tuple[float, float]]
  color: str
  width: float = 1.0


@dataclasses.dataclass(frozen=True)
class LinePanel:
  """Lines over one pair of axes, y from 0.

  Attributes:
    title: above the panel.
    lines: to draw.
    shown_percent: of the points of each line that lie within the panel; less
      than 100 keeps spikes from squeezing the rest.
  """

  title: str
  lines: Sequence[Line]
  shown_percent: float = 100.0

  @property
  def top(self) -> float:
    """Value at the upper end of the y axis."""
    tops = [
      np.percentile([y for _, y in line.points], self.shown_percent)
      for line in self.lines
      if line.points
    ]
    return 1.05 * float(max(tops, default=1.0)) or 1.0


@dataclasses.dataclass(frozen=True)
class Bar:
  """One horizontal bar with its value beside it.

  Attributes:
    label: at the left.
    value: length of the bar; None: unknown, a dash.
    color: of the bar.
    limit: a mark across the bar, such as a floor or a capacity; None: no mark.
  """

  label: str
  value: float | None
  color: str = BLUE
  limit: float | None = None


@dataclasses.dataclass(frozen=True)
class BarPanel:
  """Bars of one unit, from top to bottom; `title` names the unit."""

  title: str
  bars: Sequence[Bar]


def line_chart(panels: Sequence[LinePanel], of_steps: bool = True):
  """Figure of panels that share their x axis; see `save`.

  Args:
    panels: from top to bottom.
    of_steps: x is a number of steps; False: a share from 0 to 1, and the legend
      has names alone, if any, in their order.
  """
  all_lines = [line for panel in panels for line in panel.lines]
  last = max((x for line in all_lines for x, _ in line.points), default=1)
  last = last if of_steps else 1.0
  with _figure([_LINE_PANEL] * len(panels)) as (figure, axes):
    for axis, panel in zip(axes, panels):
      # With the margin the marker of the last point is whole.
      axis.set(title=panel.title, xlim=(0, 1.01 * last), ylim=(0, panel.top))
      axis.xaxis.set_major_formatter('{x:,.0f}' if of_steps else '{x:.1f}')
      axis.xaxis.get_major_locator().set_params(integer=of_steps)
      drawn = [(x, _draw_line(axis, x)) for x in panel.lines if x.points]
      drawn = [(line, handle) for line, handle in drawn if line.name]
      if of_steps:
        drawn.sort(key=lambda each: -each[0].points[-1][1])
      values = (
        f'  {x.points[-1][1]:.3g}' if of_steps else '' for x, _ in drawn
      )
      axis.legend(
        [handle for _, handle in drawn],
        [f'{line.name}{value}' for (line, _), value in zip(drawn, values)],
        loc='upper left',
        bbox_to_anchor=(1.0, 1.0),
      )
    # Panels end at the same place, however long the names in their legends.
    height = figure.get_figheight()
    right = 0.8 if of_steps else 0.7
    bottom, top = 0.3 / height, 1 - 0.3 / height
    figure.subplots_adjust(0.07, bottom, right, top, 0, 0.35)
  return figure


def _draw_line(axis, line):
  is_marked = len(line.points) <= _MAX_MARKED_POINTS
  return axis.plot(
    *zip(*line.points),
    color=line.color,
    linewidth=line.width,
    marker='o' if is_marked else None,
    markersize=2 * (line.width + 1),
  )[0]


def bar_chart(panels: Sequence[BarPanel]):
  """Figure of panels of horizontal bars, one below the other; see `save`."""
  panels = [panel for panel in panels if panel.bars]
  heights = [_BAR_PANEL + _BAR * len(panel.bars) for panel in panels]
  with _figure(heights, layout='constrained') as (figure, axes):
    for axis, panel in zip(axes, panels):
      _draw_bars(axis, panel.bars)
      axis.set_title(panel.title)
  return figure


def _draw_bars(axis, bars):
  rows = np.arange(len(bars))
  values = [bar.value or 0.0 for bar in bars]
  drawn = axis.barh(rows, values, 0.7, color=[bar.color for bar in bars])
  axis.bar_label(drawn, [number(bar.value) for bar in bars], padding=4)
  limits = [(row, b.limit) for row, b in enumerate(bars) if b.limit is not None]
  for row, limit in limits:
    axis.vlines(limit, row - 0.45, row + 0.45, color=RED, linewidth=2)
  highest = max([*values, *(limit for _, limit in limits)]) or 1.0
  axis.set(xlim=(0, 1.1 * highest), ylim=(len(bars) - 0.5, -0.5))
  axis.set_yticks(rows, [bar.label for bar in bars])
  axis.tick_params('y', length=0)
  axis.grid(visible=False, axis='y')


@contextlib.contextmanager
def _figure(heights, layout=None):
  """An empty figure and its axes, one below the other; heights in inches."""
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(_STYLE):
    size = _WIDTH, sum(heights) or 1.0
    figure = Figure(size, dpi=_DPI, layout=layout)
    grid = figure.add_gridspec(
      max(len(heights), 1), height_ratios=heights or [1]
    )
    yield figure, [figure.add_subplot(grid[row]) for row in range(len(heights))]


def save(figure, path) -> None:
  """Writes a figure as a PNG file that appears whole or not at all."""
  with files.replaced(path) as unfinished:
    figure.savefig(unfinished, format='png')


def to_pixels(figure) -> np.ndarray:
  """The picture of a figure, `[height, width, 3]` uint8."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3]


@contextlib.contextmanager
def drawn_at_end(workdir, enabled: bool):
  """Draws the curves when the block ends, after an error too; if enabled."""
  try:
    yield
  finally:
    if enabled:
      learning_curves(workdir)


def learning_curves(workdir) -> pathlib.Path | None:
  """Writes `WORKDIR/curves.png` and returns its path.

  None if no step was trained, or if it could not be written, which is logged
  and does not end a run.
  """
  path = pathlib.Path(workdir) / 'curves.png'
  try:
    panels = learning_curve_panels(read_metrics(workdir))
    if not panels:
      return None
    save(line_chart(panels), path)
  except OSError as error:
    logging.warning('%s could not be written: %s', path, error)
    return None
  return path


def read_metrics(workdir) -> dict[str, dict[int, float]]:
  """Finite numbers of a run's metrics: key -> step -> the last value."""
  values = {}
  for line in scores.read_lines(workdir):
    step = line.pop('step')
    for key, value in line.items():
      values.setdefault(key, {})[step] = value
  return {
    key: {step: x for step, x in by_step.items() if x is not None}
    for key, by_step in values.items()
  }


_LOSS_COLORS = {
  'rpn_objectness': BLUE,
  'rpn_box': SKY,
  'class': GREEN,
  'box': ORANGE,
  'mask': PINK,
  'l2_loss': GREY,
}


def learning_curve_panels(
  values: Mapping[str, Mapping[int, float]],
) -> list[LinePanel]:
  """A panel for each kind of number that a run has; none without a step.

  Args:
    values: see `read_metrics`.
  """
  if not values.get('train/total_loss'):
    return []

  def line(name, color, width, *keys):
    return Line(name, points([values.get(x, {}) for x in keys]), color, width)

  def terms(prefix, names):
    return [line(x, _LOSS_COLORS[x], 1, f'{prefix}{x}') for x in names]

  losses = terms('train/', _LOSS_COLORS)
  losses.append(line('total', INK, 2, 'train/total_loss'))
  panels = [LinePanel('Training loss', losses, shown_percent=98)]
  if scores.LOSS in values:
    in_training = [f'train/{term}' for term in scores.TERMS]
    losses = terms(f'{scores.LOSS}_', scores.TERMS)
    losses.append(line('sum in training', GREY, 2, *in_training))
    losses.append(line('sum', INK, 2, scores.LOSS))
    panels.append(LinePanel('Loss on the evaluation set', losses, 98))
  rate = line('learning rate', BLUE, 2, 'train/learning_rate')
  panels.append(LinePanel('Learning rate', [rate]))
  precisions = [
    line('box AP50', SKY, 1, 'eval/AP50'),
    line('mask AP50', '#f0c27a', 1, 'eval/mask_AP50'),
    line('box AP', BLUE, 2, 'eval/AP'),
    line('mask AP', ORANGE, 2, 'eval/mask_AP'),
  ]
  if any(line.points for line in precisions):
    panels.append(LinePanel('AP on the evaluation set', precisions))
  return panels


def points(parts: Sequence[Mapping[int, float]]) -> list[tuple[float, float]]:
  """`(step, sum of the values)` at the steps that all mappings have.

  Negative sums, such as an AP of -1 where nothing was measured, are skipped.
  More than 300 points become means of neighbors.
  """
  steps = sorted(set.intersection(*({*part} for part in parts)))
  found = [(s, sum(part[s] for part in parts)) for s in steps]
  found = [(s, value) for s, value in found if value >= 0]
  size = -(-len(found) // _MAX_POINTS) or 1
  groups = (found[i : i + size] for i in range(0, len(found), size))
  return [tuple(np.mean(group, axis=0).tolist()) for group in groups]
