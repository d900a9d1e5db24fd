"""Results against recordings and pycocotools' own encoder."""

import json
import os

import golden_files
import numpy as np
import pytest
from plain_evaluation import to_results
from pycocotools import mask as coco_mask

from maskrcnn_jax.evaluation import coco_results
from maskrcnn_jax.evaluation.workers import Workers
from maskrcnn_jax.structures import Detections


def make_detections(boxes, masks=None, seed=0):
  """A batch of valid detections; boxes `[batch, n, 4]`."""
  rng = np.random.default_rng(seed)
  shape = boxes.shape[:2]
  return Detections(
    boxes=np.asarray(boxes, np.float32),
    scores=np.sort(rng.random(shape).astype(np.float32))[:, ::-1],
    classes=rng.integers(1, 91, shape).astype(np.int32),
    masks=masks,
    valid=np.ones(shape, bool),
  )


@pytest.mark.parametrize('path', golden_files.files('14_*.npz'), ids=str)
def test_habana(path):
  recorded = golden_files.load(path)
  info = recorded['image_info']
  batch = len(info)
  detections = make_detections(
    recorded['detection_boxes_yxyx'], recorded['detection_masks']
  )
  results = to_results(
    detections,
    recorded['source_ids'],
    info[:, 3:5].astype(np.int32),
    np.repeat(1 / info[:, 2:3], 2, axis=1),
    np.ones(batch, bool),
  )
  assert len(results) == detections.valid.size
  boxes = np.array([result['bbox'] for result in results]).reshape(batch, -1, 4)
  assert golden_files.relative_error(boxes, recorded['boxes_xywh']) < 1e-5
  for row in range(batch):
    of_image = [
      result
      for result in results
      if result['image_id'] == int(recorded['source_ids'][row])
    ]
    segmentations = [result['segmentation'] for result in of_image]
    masks = np.stack([coco_mask.decode(rle) for rle in segmentations])
    np.testing.assert_array_equal(masks, recorded[f'segms_b{row}'])
    np.testing.assert_array_equal(
      coco_mask.area(segmentations), recorded[f'segm_area_b{row}']
    )


def test_fields():
  boxes = np.array([[[2, 4, 10, 16], [0, 0, 6, 6]]])
  detections = make_detections(boxes)
  (first, _) = to_results(
    detections,
    np.array([908400386912]),
    np.array([[20, 20]]),
    np.array([[2.0, 4.0]]),
    np.array([True]),
  )
  assert first == {
    'image_id': 908400386912,
    'category_id': int(detections.classes[0, 0]),
    'bbox': [1.0, 1.0, 3.0, 4.0],
    'score': float(detections.scores[0, 0]),
  }
  # Plain types, so that json takes them.
  assert json.loads(json.dumps(first)) == first


def test_filler_rows_and_padding_give_nothing():
  detections = make_detections(np.ones((3, 4, 4)))
  detections.valid[1] = False
  detections.valid[2, 2:] = False
  results = to_results(
    detections,
    np.array([5, 6, 7]),
    np.ones((3, 2)),
    np.ones((3, 2)),
    np.array([False, True, True]),
  )
  assert [result['image_id'] for result in results] == [7, 7]


def _batches(count):
  """Detections and batches; the last one has a filler row."""
  rng = np.random.default_rng(1)
  for number in range(count):
    corners = rng.uniform(0, 20, (2, 3, 2))
    boxes = np.concatenate(
      [corners, corners + rng.uniform(1, 20, (2, 3, 2))], 2
    )
    masks = rng.random((2, 3, 28, 28)).astype(np.float32)
    yield (
      make_detections(boxes, masks, seed=number),
      {
        'image_ids': np.array([2 * number, 2 * number + 1]),
        'original_sizes': np.array([[20, 30], [33, 21]]),
        'scales': np.array([[1, 1], [0.5, 2]], np.float32),
        'valid': np.array([True, number != count - 1]),
      },
    )


@pytest.mark.parametrize('num_workers', [0, 1, 3])
def test_results_do_not_depend_on_the_workers(num_workers):
  expected = []
  with Workers(num_workers) as workers:
    encoder = coco_results.ResultEncoder(workers, max_pending=2)
    for number, (detections, batch) in enumerate(_batches(6)):
      encoder.add(detections, {**batch, 'images': None})
      expected += to_results(detections, **batch)
      if number == 2:
        assert encoder.collect() == expected
    results = encoder.collect()
  assert json.dumps(results) == json.dumps(expected)
  assert len(results) == 33


def test_encoder_raises_the_error_of_a_batch():
  (detections, batch), *_ = _batches(2)
  detections = detections.replace(masks=detections.masks[..., :9])
  with Workers(1) as workers:
    encoder = coco_results.ResultEncoder(workers)
    encoder.add(detections, batch)
    with pytest.raises(ValueError):  # Masks of 28x9 cells.
      encoder.collect()


def test_no_detections_and_no_masks():
  (detections, batch), *_ = _batches(2)
  nothing = detections.replace(valid=np.zeros((2, 3), bool))
  assert to_results(nothing, **batch) == []
  boxes = to_results(detections.replace(masks=None), **batch)
  whole = to_results(detections, **batch)
  for with_mask in whole:
    del with_mask['segmentation']
  assert boxes == whole


def test_write_results(tmp_path):
  path = tmp_path / 'new' / 'results.json'
  results = [{'image_id': 1, 'score': 0.5}]
  coco_results.write_results(results, path)
  coco_results.write_results(results * 2, path)
  assert path.read_text() == json.dumps(results * 2)
  assert os.listdir(path.parent) == ['results.json']


def test_write_results_keeps_the_old_file_when_it_fails(tmp_path):
  path = tmp_path / 'results.json'
  coco_results.write_results([], path)
  with pytest.raises(TypeError):
    coco_results.write_results([{'score': np.float32(1)}], path)
  assert path.read_text() == '[]'
  assert os.listdir(tmp_path) == ['results.json']
