"""The benchmark of the evaluation measures what it says."""

import json
import os
import pathlib

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskrcnn_jax.benchmarks import detections, evaluation

DATA = pathlib.Path(os.environ.get('MASKRCNN_TEST_DATA', 'missing'))
needs_data = pytest.mark.skipif(
  not DATA.is_dir(), reason='MASKRCNN_TEST_DATA is not set.'
)


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
  workload = detections.make_workload(annotations_file, 7, 20)
  found, batches = zip(*workload.batches(3))
  assert [len(batch['valid']) for batch in batches] == [3, 3, 1]
  ids = np.concatenate([batch['image_ids'] for batch in batches])
  assert ids.tolist() == [1, 2, 3, 4, 5, 6, 7]
  again = [one for one, _ in workload.batches(1)]
  for name in vars(found[0]):
    np.testing.assert_array_equal(
      np.concatenate([getattr(each, name) for each in found]),
      np.concatenate([getattr(each, name) for each in again]),
    )


def test_detections_are_like_those_of_a_model(annotations_file):
  workload = detections.make_workload(annotations_file, 6, 20)
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
def test_run(annotations_file, num_processes, capsys):
  figures = evaluation.run(
    annotations_file,
    num_images=6,
    num_detections=20,
    batch_size=4,
    num_processes=num_processes,
    num_plain_images=3,
  )
  seconds, plain = figures['seconds'], figures['plain']
  assert {*seconds} == {'encode', 'write', 'score', 'total'}
  assert min(seconds.values()) > 0
  parts = seconds['encode'] + seconds['write'] + seconds['score']
  assert seconds['total'] == pytest.approx(parts)
  assert figures['cpu_seconds'] > 0
  assert 0.1 < figures['metrics']['eval/AP'] < 1
  assert len(figures['metrics']) == 24
  assert plain['masks_equal'] == plain['num_masks'] == 3 * 20
  assert plain['numbers_equal']
  assert json.loads(json.dumps(figures)) == figures
  printed = capsys.readouterr().out
  assert '60 of 60 masks are the same, the 24 numbers are' in printed


def test_a_file_without_objects(tmp_path):
  path = tmp_path / 'truth.json'
  path.write_text('{"images": [], "annotations": [], "categories": []}')
  with pytest.raises(ValueError, match=r'truth\.json has no object'):
    evaluation.run(path)


@needs_data
@pytest.mark.slow
def test_sizes_and_shapes_of_coco_are_scored_as_the_plain_way_does():
  path = DATA / 'coco-mini' / 'annotations' / 'instances_val2017.json'
  workload = detections.make_workload(path, 60, 100)
  plain = evaluation.compare_with_plain(workload)
  assert plain['masks_equal'] == plain['num_masks'] == 6000
  assert plain['numbers_equal']
