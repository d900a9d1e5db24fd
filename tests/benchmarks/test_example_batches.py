"""Drawn batches, and masks of boxes as masks of images."""

import numpy as np
import pytest

from maskrcnn_jax import input_pipeline
from maskrcnn_jax.benchmarks import example_batches


def _draw(**options):
  arguments = {'canvas': (96, 64), 'batch_size': 2, 'num_batches': 2}
  return example_batches.synthetic_batches(**arguments | options)


def test_they_are_like_those_of_the_input_pipeline():
  batch = _draw(max_instances=20, mask_size=28)[0]
  spec = input_pipeline.batch_spec(
    (96, 64), 2, max_instances=20, mask_size=28, image_dtype='uint8'
  )
  for key, value in batch.items():
    parts = value.items() if isinstance(value, dict) else [(None, value)]
    for name, array in parts:
      wanted = spec[key][name] if name else spec[key]
      assert array.shape == tuple(wanted.shape)
      assert array.dtype == wanted.dtype.as_numpy_dtype


def test_they_differ_but_come_again():
  first, second = _draw()
  again = _draw()[0]
  np.testing.assert_array_equal(first['images'], again['images'])
  assert np.any(first['images'] != second['images'])


def test_objects_lie_in_the_image_and_fill_their_boxes():
  batch = _draw(num_objects=9, num_classes=4)[0]
  instances = batch['instances']
  np.testing.assert_array_equal(instances['valid'].sum(axis=1), [9, 9])
  boxes = instances['boxes'][instances['valid']]
  assert np.all(boxes[:, :2] >= 0) and np.all(boxes[:, 2:] <= [96, 64])
  assert np.all(boxes[:, 2:] - boxes[:, :2] >= 2 - 1e-4)
  assert set(np.unique(instances['classes'][instances['valid']])) <= {1, 2, 3}
  masks = instances['masks'][instances['valid']]
  assert set(np.unique(masks)) == {0, 255}
  for axis in (1, 2):  # Every polygon reaches all four sides of its box.
    filled = masks.any(axis=axis)
    assert np.all(filled[:, 0]) and np.all(filled[:, -1])
  padding = ~instances['valid']
  assert not instances['boxes'][padding].any()
  assert not instances['masks'][padding].any()


def test_there_are_as_many_objects_as_in_coco():
  batches = _draw(canvas=(32, 32), batch_size=100, num_batches=4, mask_size=4)
  counts = [x['instances']['valid'].sum(axis=1) for x in batches]
  counts = np.concatenate(counts)
  assert counts.min() >= 1
  # 7.3, the standard error of 400 images is 0.4.
  assert 6.0 < counts.mean() < 9.0
  assert np.mean(counts > 17) == pytest.approx(0.1, abs=0.05)


def test_more_objects_than_rows():
  with pytest.raises(ValueError, match='1 to max_instances, 5, got 6'):
    _draw(max_instances=5, num_objects=6)


def test_a_full_mask_by_hand():
  mask = np.uint8([[255, 0], [127, 128]])
  # Two pixels to a cell, from row 1 and column 2 on.
  found = example_batches.full_masks(
    mask[None], np.float32([[1, 2, 5, 6]]), (6, 8)
  )
  expected = np.zeros((6, 8), bool)
  expected[1:3, 2:4] = True
  expected[3:5, 4:6] = True
  np.testing.assert_array_equal(found[0], expected)


def test_a_mask_smaller_than_a_pixel_has_the_pixel_of_its_middle():
  found = example_batches.full_masks(
    np.full((1, 2, 2), 255, np.uint8),
    np.float32([[1.1, 2.1, 1.3, 2.3]]),
    (4, 4),
  )
  assert np.argwhere(found[0]).tolist() == [[1, 2]]
