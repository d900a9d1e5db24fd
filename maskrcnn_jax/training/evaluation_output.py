"""What an evaluation leaves in the workdir, and what it shows."""

import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from maskrcnn_jax import visualize
from maskrcnn_jax.evaluation import (
  class_report,
  coco_metrics,
  coco_results,
  scores,
)
from maskrcnn_jax.habana import metric_names as seed_names
from maskrcnn_jax.training import summary


def write(
  workdir: pathlib.Path,
  step: int,
  results: Sequence[Mapping],
  pictures: Sequence[tuple[int, np.ndarray]],
  writer,
) -> None:
  """Writes the detections of all hosts, and pictures of some.

  Args:
    workdir: of the run.
    step: names the files.
    results: COCO result dicts.
    pictures: by image id.
    writer: `metrics.MetricWriter`.
  """
  path = workdir / 'eval' / f'detections-{step}.json'
  coco_results.write_results(results, path)
  for image_id, picture in pictures:
    writer.image(step, f'eval/image-{image_id}', picture)
    name = f'step-{step}-image-{image_id}.png'
    visualize.save_png(workdir / 'pictures' / name, picture)


def report(
  workdir: pathlib.Path,
  step: int,
  values: Mapping[str, float],
  classes: class_report.ClassReport,
  writer,
  log_file: str | None,
  show_classes: int,
) -> None:
  """Writes the numbers down, and shows them.

  Args:
    workdir: of the run.
    step: that was evaluated.
    values: numbers by the key of `metrics.jsonl`.
    classes: the same class by class.
    writer: `metrics.MetricWriter`.
    log_file: see `summary.log`.
    show_classes: tables by class are shown for at most so many.
  """
  path = workdir / 'eval' / f'classes-{step}.md'
  text = class_report.document(classes, f'Step {step}, class by class')
  path.write_text(text, encoding='utf-8')
  # Last, as it says that the step is evaluated.
  writer.scalars(step, values)
  writer.flush()
  summary.log(log_file, seed_names.evaluated(values))
  if scores.LOSS in values:
    terms = ', '.join(
      f'{term} {values[f"{scores.LOSS}_{term}"]:.4g}' for term in scores.TERMS
    )
    writer.say(
      f'loss on the evaluation set {values[scores.LOSS]:.4g} ({terms})'
    )
  writer.say(coco_metrics.format_table(values), file=sys.stdout)
  if len(classes.names) <= show_classes:
    writer.print(class_report.format_classes(classes))
    writer.print(f'{class_report.caption(classes)}:')
    writer.print(class_report.format_confusion(classes))
  else:
    writer.say(f'AP by class and confusions: {path}')
