"""The picture of precision-recall curves."""

import json
import warnings

import numpy as np
from plain_evaluation import write_truth
from test_class_report import make_case

from maskrcnn_jax import charts
from maskrcnn_jax.evaluation import coco_metrics, precision_recall


def make_report(tmp_path, **options):
  truth, results = make_case()
  for category, name in zip(truth['categories'], ('$x_{', '_犬\n', 'cow')):
    category['name'] = name
  path = write_truth(tmp_path, json.loads(json.dumps(truth)))
  return coco_metrics.evaluate_classes(results, path, **options)


def axes_of(figure):
  return {axis.get_title(loc='left'): axis for axis in figure.axes}


def test_lines_are_cocos_precision(tmp_path):
  numbers, report = make_report(tmp_path)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    figure = precision_recall.chart(report)
    pixels = charts.to_pixels(figure)
  assert pixels.shape[2] == 3 and pixels.dtype == np.uint8
  assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
  boxes, masks, classes = axes_of(figure).values()
  for axis, prefix in ((boxes, 'eval/'), (masks, 'eval/mask_')):
    means = [np.mean(line.get_ydata()) for line in axis.get_lines()]
    names = ('AP50', 'AP75', 'AP')
    np.testing.assert_allclose(means, [numbers[prefix + x] for x in names])
  # A line and a dot for each class with objects, most objects first.
  lines = classes.get_lines()
  assert [len(line.get_xdata()) for line in lines] == [101, 1, 101, 1]
  best = report.thresholds[1]
  assert lines[1].get_xydata().tolist() == [[best.recall, best.precision]]
  texts = [x.get_text() for x in classes.get_legend().get_texts()]
  assert '$x_{' in texts[0] and 'class 1' in texts[1]


def test_boxes_alone_and_nothing_to_draw(tmp_path):
  _, report = make_report(tmp_path, kinds=('bbox',))
  assert len(precision_recall.chart(report).axes) == 2
  truth, _ = make_case()
  path = write_truth(tmp_path, {**truth, 'annotations': []})
  _, report = coco_metrics.evaluate_classes([], path)
  charts.save(precision_recall.chart(report), tmp_path / 'empty.png')
  assert (tmp_path / 'empty.png').stat().st_size > 0
