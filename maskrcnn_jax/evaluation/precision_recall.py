"""Precision-recall curves of an evaluation as a picture."""

from collections.abc import Sequence

import numpy as np

from maskrcnn_jax import charts, fonts
from maskrcnn_jax.evaluation.class_report import ClassReport
from maskrcnn_jax.terminal import escaped

_KINDS = {'bbox': 'Boxes', 'segm': 'Masks'}
_COLORS = (
  *(charts.BLUE, charts.ORANGE, charts.GREEN, charts.PINK),
  *(charts.SKY, charts.RED),
)
_LONGEST_NAME = 20  # Characters that the legend has room for.


def chart(report: ClassReport):
  """Figure of the curves, see `charts.save`.

  A panel for boxes and one for masks show the mean over the classes at several
  IoUs; one more the classes with most objects at IoU 0.5, with a dot at the
  recommended score threshold.
  """
  panels = [
    charts.LinePanel(f'{_KINDS[kind]}: precision over recall', _means(curves))
    for kind, curves in report.curves.items()
  ]
  kind = 'segm' if 'segm' in report.curves else 'bbox'
  lines = _classes(report, report.curves[kind][0])
  if lines:
    title = f'{_KINDS[kind]} at IoU 0.5: AP, and score of the best F1 (dot)'
    if len(lines) < 2 * np.count_nonzero(report.num_objects):
      title += '; classes with most objects'
    panels.append(charts.LinePanel(title, lines))
  return charts.line_chart(panels, of_steps=False)


def _means(curves: np.ndarray) -> list[charts.Line]:
  """Lines of `[thresholds, recalls, classes]`, over classes with objects."""
  curves = curves[..., np.any(curves > -1, axis=(0, 1))]
  if not curves.size:
    return []
  means = np.mean(curves, axis=-1)
  lines = []
  for name, values, color in (
    ('IoU 0.5', means[0], charts.SKY),
    ('IoU 0.75', means[5], charts.ORANGE),
    ('IoU 0.5 to 0.95', np.mean(means, axis=0), charts.BLUE),
  ):
    name = f'{name}: AP {np.mean(values):.3f}'
    lines.append(charts.Line(name, _points(values), color, 2))
  return lines


def _classes(report: ClassReport, curves: np.ndarray) -> list[charts.Line]:
  """A line for each of the classes with most objects, and its dot if any."""
  order = np.argsort(-report.num_objects, kind='stable')
  rows = [row for row in order if report.num_objects[row]]
  lines = []
  for row, color in zip(rows, _COLORS):
    values, best = curves[:, row], report.thresholds[row]
    # matplotlib skips labels that begin with an underscore, as names may.
    name = f'{np.mean(values):.3f} {_short(report.names[row], report.ids[row])}'
    if best is not None:
      name += f', score {best.score:.2f}'
    lines.append(charts.Line(name, _points(values), color, 1.5))
    dot = [] if best is None else [(best.recall, best.precision)]
    lines.append(charts.Line('', dot, color, 2.5))
  return lines


def _short(name: str, category_id: int) -> str:
  name = escaped(name)
  if not fonts.is_in_charts(name):
    return f'class {category_id}'
  return name if len(name) <= _LONGEST_NAME else f'{name[:_LONGEST_NAME]}...'


def _points(values: np.ndarray) -> Sequence[tuple[float, float]]:
  recalls = np.linspace(0.0, 1.0, len(values))
  return list(zip(recalls.tolist(), values.tolist()))
