"""Ground truth of records against the JSON that they were made from."""

import json

import data_sets
import example_records
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskrcnn_jax.datasets import ground_truth, prepare, records
from maskrcnn_jax.errors import UserError


@pytest.fixture
def pattern(tmp_path):
  path = tmp_path / 'a.tfrecord'
  image, boxes, masks = example_records.rectangles(40, 60, 2)
  encoded = example_records.png(image)
  contents = [
    example_records.record(
      encoded, 7, (40, 60), boxes, masks, classes=[3, 1], crowd=[0, 1]
    ),
    example_records.record(encoded, 8, (40, 60)),
  ]
  records.write_records(path, contents)
  return str(path), boxes, masks


def test_boxes_masks_classes_and_crowds(pattern):
  path, boxes, masks = pattern
  truth = ground_truth.coco_from_records(records.index_records(path))
  assert [image['id'] for image in truth['images']] == [7, 8]
  # Records of others may have no class names.
  assert truth['categories'] == [{'id': 1, 'name': '1'}, {'id': 3, 'name': '3'}]
  first, second = truth['annotations']
  assert (first['category_id'], second['category_id']) == (3, 1)
  assert (first['iscrowd'], second['iscrowd']) == (0, 1)
  for annotation, box, mask in zip(truth['annotations'], boxes, masks):
    x, y, width, height = annotation['bbox']
    np.testing.assert_allclose([y, x, y + height, x + width], box, atol=1e-4)
    decoded = coco_mask.decode(annotation['segmentation'])
    np.testing.assert_array_equal(decoded, mask)
  json.dumps(truth)


def test_the_first_images_only(pattern):
  index = records.index_records(pattern[0])
  truth = ground_truth.coco_from_records(index, num_images=1)
  assert [image['id'] for image in truth['images']] == [7]


def test_a_mask_of_another_size_names_the_image(tmp_path):
  image, boxes, _ = example_records.rectangles(40, 60, 1)
  small = [np.ones((4, 6), np.uint8)]
  path = tmp_path / 'a.tfrecord'
  record = example_records.record(
    example_records.png(image), 9, (40, 60), boxes, small
  )
  records.write_records(path, [record])
  with pytest.raises(UserError) as error:
    ground_truth.coco_from_records(records.index_records(str(path)))
  assert error.value.item == 9
  assert (error.value.given, error.value.wanted) == ((4, 6), (40, 60))


def test_real_objects_keep_their_pixels(tmp_path):
  coco = data_sets.real('coco-mini')
  original = coco / 'annotations' / 'instances_val2017.json'
  content = json.loads(original.read_text())
  image_ids = [image['id'] for image in content['images'][:6]]
  prepare.prepare(
    *(coco / 'val2017', original, tmp_path / 'val', 1),
    num_workers=1,
    image_ids=image_ids,
  )
  index = records.index_records(str(tmp_path / 'val*'))
  truth = ground_truth.coco_from_records(index)
  sizes = {x['id']: (x['height'], x['width']) for x in content['images']}
  expected = [x for x in content['annotations'] if x['image_id'] in image_ids]
  expected.sort(key=lambda x: image_ids.index(x['image_id']))
  assert len(truth['annotations']) == len(expected) > 20
  names = {x['id']: x['name'] for x in content['categories']}
  for category in truth['categories']:
    assert category['name'] == names[category['id']]
  for ours, theirs in zip(truth['annotations'], expected):
    assert ours['category_id'] == theirs['category_id']
    assert ours['iscrowd'] == theirs['iscrowd']
    assert ours['area'] == pytest.approx(theirs['area'], rel=1e-6)
    np.testing.assert_allclose(ours['bbox'], theirs['bbox'], atol=1e-3)
    segmentation, size = theirs['segmentation'], sizes[theirs['image_id']]
    rles = coco_mask.frPyObjects(segmentation, *size)
    merged = coco_mask.merge(rles) if isinstance(rles, list) else rles
    np.testing.assert_array_equal(
      coco_mask.decode(ours['segmentation']), coco_mask.decode(merged)
    )
