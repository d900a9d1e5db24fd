"""Checks of one object: box, mask, area and crowd flag."""

import numpy as np
import pytest

from maskrcnn_jax.datasets.coco_json import CocoImage
from maskrcnn_jax.datasets.doctor import objects

IMAGE = CocoImage(7, 'a.jpg', height=100, width=200)
# 80 wide and 30 high from x 60, y 20.
POLYGON = [60, 20, 140, 20, 140, 50, 60, 50]


def _entry(**changes):
  entry = {'id': 3, 'image_id': 7, 'category_id': 1, 'iscrowd': 0}
  entry |= {'bbox': [60, 20, 80, 30], 'segmentation': [POLYGON], 'area': 2400}
  return entry | changes


def _kinds(**changes):
  _, found = objects.check_object(_entry(**changes), IMAGE, 'a.jpg')
  return [each.kind for each in found]


def test_a_sound_object_is_counted():
  checked, found = objects.check_object(_entry(), IMAGE, 'a.jpg')
  assert not found
  assert (checked.image_id, checked.class_id, checked.is_crowd) == (7, 1, False)
  assert checked.area == 2400
  np.testing.assert_allclose(checked.side, (80 * 30) ** 0.5)


def test_without_area_the_box_counts_as_in_the_evaluation():
  entry = _entry(bbox=[60, 20, 81, 30])
  del entry['area']
  checked, found = objects.check_object(entry, IMAGE, 'a.jpg')
  assert checked.area == 81 * 30
  assert [each.kind for each in found] == ['missing_area']


def test_a_class_may_differ_from_the_category():
  checked, _ = objects.check_object(_entry(class_id=5), IMAGE, 'a.jpg')
  assert checked.class_id == 5


@pytest.mark.parametrize(
  'box, words',
  [
    ([60, 20, 140, 50], 'corners x1, y1, x2, y2'),
    ([20, 60, 30, 80], 'y, x, height, width'),
    ([100, 35, 80, 30], 'centre, width and height'),
    ([0.3, 0.2, 0.4, 0.3], 'normalized coordinates'),
  ],
)
def test_boxes_in_other_formats(box, words):
  _, found = objects.check_object(_entry(bbox=box), IMAGE, 'a.jpg')
  (finding,) = [each for each in found if each.kind == 'box_mask_mismatch']
  assert words in finding.message
  assert '[60.0, 20.0, 80.0, 30.0]' in finding.message


@pytest.mark.parametrize(
  'box, fits',
  [
    ([60, 20, 80, 30], True),
    ([58, 18, 84, 34], True),  # Two pixels around it.
    ([60, 20, 50, 30], True),  # IoU 0.625.
    ([60, 20, 45, 30], False),  # IoU 0.5625.
    ([100, 20, 80, 30], False),
  ],
)
def test_how_well_a_box_must_fit(box, fits):
  assert ('box_mask_mismatch' not in _kinds(bbox=box)) == fits


def test_boxes_of_few_pixels_may_be_off_by_two():
  polygon = [[10, 10, 13, 10, 13, 13, 10, 13]]
  assert not _kinds(segmentation=polygon, bbox=[9, 9, 2, 2], area=9)
  assert _kinds(segmentation=polygon, bbox=[6, 9, 2, 2], area=9)


@pytest.mark.parametrize(
  'area, kinds',
  [
    (2400, []),
    (1200, []),
    (1199, ['area_mismatch']),
    (4800, []),
    (4801, ['area_mismatch']),
    (0, ['area_mismatch']),
    (-5, ['area_mismatch']),
    ('2400', ['unusable_area']),
    (float('nan'), ['unusable_area']),
    (None, ['missing_area']),
  ],
)
def test_areas(area, kinds):
  assert _kinds(area=area) == kinds


@pytest.mark.parametrize(
  'flag, kinds',
  [(0, []), (1, []), (True, []), (2, ['crowd_flag']), ('1', ['crowd_flag'])],
)
def test_crowd_flags(flag, kinds):
  assert _kinds(iscrowd=flag) == kinds


def test_box_and_mask_are_both_checked():
  kinds = _kinds(bbox=[60, 20, 0, 30], segmentation=[[1, 2, 3]])
  assert kinds == ['zero_area_box', 'unusable_mask']
  kinds = _kinds(bbox=[60, 20, 141, 50])
  assert kinds == ['box_clipped', 'box_mask_mismatch']


def test_run_lengths_have_no_polygons():
  runs = {'size': [100, 200], 'counts': [6020, *[30, 70] * 79, 30, 6050]}
  assert not _kinds(segmentation=runs)


@pytest.mark.parametrize(
  'changes',
  [
    {'bbox': 'all'},
    {'bbox': {}},
    {'bbox': [None] * 4},
    {'bbox': [1e300, 0, 1e300, 1]},
    {'segmentation': 'all'},
    {'segmentation': [None]},
    {'segmentation': [[None] * 6]},
    {'segmentation': [{}]},
    {'segmentation': {'size': 5, 'counts': 'x'}},
    {'segmentation': {'counts': None}},
    {'segmentation': [['1'] * 6]},
    {'segmentation': [[10**400] * 6]},
    {'segmentation': [[0, 0, 1e9, 0, 1e9, 1e9]]},
    {'segmentation': [[0, 0, 100, 100] * 2000]},
    {'bbox': [-(10**300), 0, 10**300, 1]},
    {'area': [1]},
    {'area': 10**400},
    {'iscrowd': None},
    {'iscrowd': [0]},
  ],
)
def test_anything_may_be_in_a_json(changes):
  _, found = objects.check_object(_entry(**changes), IMAGE, 'a.jpg')
  assert found
  assert all(each.annotation_id == 3 for each in found)
