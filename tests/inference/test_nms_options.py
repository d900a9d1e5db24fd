"""NMS, limits and thresholds chosen at predict time."""

import json

import drawn_checkpoint
import numpy as np
import pytest
import slow_boxes
import tiny_run
from PIL import Image
from tiny_checkpoint import assert_same

from maskrcnn_jax.cli import main as command
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import mask_pasting
from maskrcnn_jax.export import exporter
from maskrcnn_jax.inference.predictor import Predictor

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)


@pytest.fixture(scope='module')
def config():
  config = tiny_run.make_config('none', 'none')
  config.input.canvases = ((64, 96),)
  config.input.image_dtype = 'uint8'
  config.model.detections.max_detections = 30
  config.model.test_proposals.post_nms_top_k = 60
  return config


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, config):
  folder = tmp_path_factory.mktemp('run') / 'run'
  return drawn_checkpoint.write(folder, config)


@pytest.fixture(scope='module')
def plain(workdir):
  return Predictor(workdir)(IMAGE)


def detect(workdir, **detections):
  return Predictor(workdir, detections=detections)(IMAGE)


def pairs_of(found):
  """Pairs of rows."""
  rows = range(len(found.scores))
  return [(i, j) for i in rows for j in rows if i < j]


def test_boxes_within_each_class_are_the_default(workdir, plain):
  assert_same(detect(workdir, nms='class'), plain)
  overlapping = [
    (i, j)
    for i, j in pairs_of(plain)
    if slow_boxes.overlap(plain.boxes[i], plain.boxes[j]) > 0.5
  ]
  assert overlapping
  assert all(plain.classes[i] != plain.classes[j] for i, j in overlapping)


def test_boxes_whatever_the_class(workdir, plain):
  found = detect(workdir, nms='all')
  for i, j in pairs_of(found):
    assert slow_boxes.overlap(found.boxes[i], found.boxes[j]) <= 0.5 + 1e-6
  assert found.scores[0] == plain.scores[0]
  assert len({*found.classes.tolist()}) == 2


def test_masks_within_each_class(workdir, plain):
  found = detect(workdir, nms='mask', iou_threshold=0.3)
  pictures = mask_pasting.paste_masks(found.masks, found.boxes, (60, 80))
  boxes_overlap = 0
  for i, j in pairs_of(found):
    if found.classes[i] == found.classes[j]:
      either = np.sum(pictures[i] | pictures[j])
      assert np.sum(pictures[i] & pictures[j]) <= 0.3 * either
      boxes_overlap += slow_boxes.overlap(found.boxes[i], found.boxes[j]) > 0.3
  assert boxes_overlap
  assert np.all(np.diff(found.scores) <= 0)


def test_scales_are_merged_alike(workdir):
  options = {'scales': (1.0, 0.8), 'mirror': True}
  for nms in ('all', 'mask'):
    found = Predictor(workdir, detections={'nms': nms}, **options)(IMAGE)
    pictures = mask_pasting.paste_masks(found.masks, found.boxes, (60, 80))
    for i, j in pairs_of(found):
      if nms == 'all':
        assert slow_boxes.overlap(found.boxes[i], found.boxes[j]) <= 0.5 + 1e-6
      elif found.classes[i] == found.classes[j]:
        either = np.sum(pictures[i] | pictures[j])
        assert np.sum(pictures[i] & pictures[j]) <= 0.5 * either


def test_limit_and_threshold(workdir, plain):
  few = detect(workdir, max_detections=3)
  np.testing.assert_array_equal(few.scores, plain.scores[:3])
  middle = float(np.sort(plain.scores)[len(plain.scores) // 2])
  found = detect(workdir, score_threshold=middle)
  assert_same(found.scores, plain.scores[plain.scores > middle])
  assert 0 < len(found.scores) < len(plain.scores)


def test_flags_reach_the_predictor(workdir, tmp_path):
  Image.fromarray(IMAGE).save(tmp_path / 'a.png')
  argv = ['predict', f'--workdir={workdir}', f'--output={tmp_path / "out"}']
  flags = ['--nms=all', '--max_detections=3', '--score_threshold=0.01']
  flags += ['--iou_threshold=0.4', '--images', str(tmp_path / 'a.png')]
  assert command.main([*argv, *flags]) == 0
  summary = json.loads((tmp_path / 'out' / 'predict.json').read_text())
  assert summary['detections'] == {
    'nms': 'all',
    'max_detections': 3,
    'score_threshold': 0.01,
    'iou_threshold': 0.4,
  }
  results = json.loads((tmp_path / 'out' / 'detections.json').read_text())
  assert len(results) == 3


def test_unknown_values_and_an_export_by_masks(workdir, config, tmp_path):
  for detections, argument in (
    ({'nms': 'box'}, 'model.detections.nms'),
    ({'num': 3}, 'model.detections.num'),
  ):
    with pytest.raises(UserError) as error:
      Predictor(workdir, detections=detections)
    assert error.value.argument == argument
  config = config.copy_and_resolve_references()
  config.model.detections.nms = 'mask'
  folder = drawn_checkpoint.write(tmp_path / 'run', config)
  with pytest.raises(UserError) as error:
    exporter.export(folder, tmp_path / 'out')
  assert error.value.argument == 'model.detections.nms'
  assert not (tmp_path / 'out').exists()
