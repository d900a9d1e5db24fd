"""The benchmark of the evaluation, and detections like those of a model."""

import json
import os
import pathlib

import numpy as np
import plain_evaluation
import pytest
from pycocotools import mask as coco_mask

from maskrcnn_jax.benchmarks import evaluation
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import coco_metrics, coco_results

DATA = pathlib.Path(os.environ.get('MASKRCNN_TEST_DATA', 'missing'))


@pytest.fixture
def annotations_file(tmp_path):
  """Three images with discs, a crowd in one of them, none in another."""
  images, annotations = [], []
  for image_id, (height, width) in enumerate([(90, 120), (64, 48), (50, 50)]):
    images.append({'id': image_id, 'height': height, 'width': width})
    for number in range((3, 2, 0)[image_id]):
      y, x, radius = 20 + 10 * number, 25 + 5 * number, 8 + 4 * number
      rows, columns = np.ogrid[:height, :width]
      disc = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
      rle = coco_mask.encode(np.asfortranarray(disc, np.uint8))
      annotations.append(
        {
          'id': len(annotations) + 1,
          'image_id': image_id,
          'category_id': number + 1,
          'bbox': coco_mask.toBbox(rle).tolist(),
          'area': float(disc.sum()),
          'iscrowd': int(number == 2),
          'segmentation': {**rle, 'counts': rle['counts'].decode()},
        }
      )
  categories = [{'id': i, 'name': f'c{i}'} for i in (1, 2, 3)]
  path = tmp_path / 'truth.json'
  path.write_text(
    json.dumps(
      {'images': images, 'annotations': annotations, 'categories': categories}
    )
  )
  return path


def test_detections_do_not_depend_on_the_batches(annotations_file):
  workload = evaluation.Workload(annotations_file, 7, 20)
  found, batches = zip(*workload.batches(3))
  assert [len(batch['valid']) for batch in batches] == [3, 3, 1]
  ids = np.concatenate([batch['image_ids'] for batch in batches])
  assert ids.tolist() == [1, 2, 3, 4, 5, 6, 7]
  again = [one for one, _ in workload.batches(1)]
  for name in ('boxes', 'scores', 'classes', 'masks', 'valid'):
    np.testing.assert_array_equal(
      np.concatenate([getattr(each, name) for each in found]),
      np.concatenate([getattr(each, name) for each in again]),
    )


def test_detections_are_like_those_of_a_model(annotations_file):
  workload = evaluation.Workload(annotations_file, 6, 20)
  for found, batch in workload.batches(4):
    assert found.boxes.shape[1:] == (20, 4)
    assert found.masks.shape[1:] == (20, 28, 28)
    sizes = batch['original_sizes'] * batch['scales']
    assert (found.boxes >= 0).all()
    assert (found.boxes <= np.tile(sizes, 2)[:, None] + 1e-2).all()
    assert (found.boxes[..., 2:] >= found.boxes[..., :2]).all()
    assert (np.diff(found.scores, axis=1) <= 0).all()
    # Discs: the middle is inside, the corners are not.
    middle = found.masks[..., 12:16, 12:16].mean(axis=(-1, -2))
    corners = found.masks[..., ::27, ::27].mean(axis=(-1, -2))
    assert (middle > corners).mean() > 0.9
    assert {*np.unique(found.classes)} <= {1, 2, 3}


@pytest.mark.parametrize('num_processes', [0, 1])
def test_run(annotations_file, num_processes):
  rows = evaluation.run(
    annotations_file,
    num_images=6,
    num_detections=20,
    batch_size=4,
    num_processes=num_processes,
  )
  assert [x['name'] for x in rows] == ['encode', 'write', 'score', 'total']
  *parts, total = (row['seconds']['median'] for row in rows)
  assert min(parts) > 0 and total == pytest.approx(sum(parts))
  assert rows[0]['images_per_second'] == pytest.approx(6 / parts[0])
  assert rows[-1]['cpu_seconds'] > 0
  assert 0.1 < rows[-1]['metrics']['eval/AP'] < 1
  assert len(rows[-1]['metrics']) == 24
  assert json.loads(json.dumps(rows)) == rows


def test_a_file_without_objects(tmp_path):
  path = tmp_path / 'truth.json'
  path.write_text('{"images": [], "annotations": [], "categories": []}')
  with pytest.raises(UserError) as error:
    evaluation.run(path)
  assert error.value.path == str(path)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason='MASKRCNN_TEST_DATA is not set.')
def test_detections_on_coco_score_as_pasted_masks_do_in_pycocotools(tmp_path):
  path = DATA / 'coco-mini' / 'annotations' / 'instances_val2017.json'
  workload = evaluation.Workload(path, 60, 100)
  ours, plain = [], []
  for found, batch in workload.batches(8):
    counts = []
    for row, size in enumerate(batch['original_sizes'].tolist()):
      image = found.image(row)
      boxes = coco_results.original_boxes(image.boxes, batch['scales'][row])
      counts += plain_evaluation.encode_masks(image.masks, boxes, tuple(size))
    results = plain_evaluation.to_results(found, **batch)
    ours += results
    plain += [
      {**result, 'segmentation': {**result['segmentation'], 'counts': text}}
      for result, text in zip(results, counts, strict=True)
    ]
  assert len(ours) == 6000 and ours == plain
  image_ids = [image['id'] for image in workload.truth['images']]
  truth_file = tmp_path / 'truth.json'
  truth_file.write_text(json.dumps(workload.truth))
  numbers = coco_metrics.evaluate(ours, truth_file, image_ids)
  expected = plain_evaluation.score(workload.truth, plain, image_ids)
  assert list(numbers.values()) == expected
