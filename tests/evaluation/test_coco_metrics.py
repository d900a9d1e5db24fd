"""COCO metrics against recorded numbers; errors of bad input."""

import json
import os
import pathlib

import numpy as np
import pytest
from plain_evaluation import crop_mask, encode_box, to_results, write_truth
from pycocotools import coco as coco_api

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import coco_metrics
from maskrcnn_jax.ops import masks as mask_ops
from maskrcnn_jax.structures import Detections

DATA = pathlib.Path(os.environ.get('MASKRCNN_TEST_DATA', 'missing'))
needs_data = pytest.mark.skipif(
  not DATA.is_dir(), reason='MASKRCNN_TEST_DATA is not set.'
)


@pytest.fixture
def truth():
  """Two images with three objects, one of them a crowd, and 64-bit ids."""
  return {
    'images': [
      {'id': 1, 'height': 40, 'width': 50},
      {'id': 908400386912, 'height': 40, 'width': 50},
    ],
    'categories': [{'id': 3, 'name': 'car'}, {'id': 90, 'name': 'brush'}],
    'annotations': [
      _annotation(0, 1, 3, [5, 5, 20, 10]),
      _annotation(7, 908400386912, 90, [10, 10, 20, 20]),
      _annotation(8, 908400386912, 90, [30, 10, 20, 20], iscrowd=1),
    ],
  }


def _annotation(number, image_id, category_id, bbox, **fields):
  return {
    'id': number,
    'image_id': image_id,
    'category_id': category_id,
    'bbox': bbox,
    'segmentation': encode_box(bbox, (40, 50)),
    'area': bbox[2] * bbox[3],
    'iscrowd': 0,
    **fields,
  }


def _perfect(truth):
  """A result for every object that is no crowd."""
  keys = ('image_id', 'category_id', 'bbox', 'segmentation')
  return [
    {**{key: annotation[key] for key in keys}, 'score': 0.9}
    for annotation in truth['annotations']
    if not annotation.get('iscrowd')
  ]


def test_perfect_results(truth, tmp_path, capsys):
  path = write_truth(tmp_path, truth)
  metrics = coco_metrics.evaluate(_perfect(truth), path)
  assert list(metrics)[:2] == ['eval/AP', 'eval/AP50']
  assert list(metrics)[12:] == [
    name.replace('eval/', 'eval/mask_') for name in list(metrics)[:12]
  ]
  # An object of id 0 counts like any other.
  assert metrics['eval/AP'] == metrics['eval/mask_AP'] == pytest.approx(1.0)
  assert metrics['eval/APm'] == metrics['eval/mask_ARl'] == -1
  assert capsys.readouterr().out == ''


def test_no_results_score_zero(truth, tmp_path):
  metrics = coco_metrics.evaluate([], write_truth(tmp_path, truth))
  assert metrics['eval/AP'] == metrics['eval/mask_AP'] == 0
  assert metrics['eval/ARmax100'] == metrics['eval/mask_ARs'] == 0


def test_only_evaluated_images_count(truth, tmp_path):
  path = write_truth(tmp_path, truth)
  results = _perfect(truth)[:1]
  whole = coco_metrics.evaluate(results, path, kinds=('bbox',))
  part = coco_metrics.evaluate(results, path, {np.int64(1)}, kinds=('bbox',))
  assert whole['eval/AP'] == pytest.approx(0.5)
  assert part['eval/AP'] == pytest.approx(1.0)
  assert len(part) == 12


def test_results_are_not_changed(truth, tmp_path):
  results = _perfect(truth)
  before = json.dumps(results)
  coco_metrics.evaluate(results, write_truth(tmp_path, truth))
  assert json.dumps(results) == before


def test_fields_that_files_lack(truth, tmp_path):
  for annotation in truth['annotations'][:2]:
    del annotation['iscrowd'], annotation['area']
  metrics = coco_metrics.evaluate(_perfect(truth), write_truth(tmp_path, truth))
  assert metrics['eval/AP'] == metrics['eval/mask_AP'] == pytest.approx(1.0)


def test_mask_area_decides_the_area_range_of_an_unmatched_mask(truth, tmp_path):
  # A box of medium size with a small mask: a false positive among the small.
  path = write_truth(tmp_path, truth)
  wrong = {
    'image_id': 1,
    'category_id': 3,
    'bbox': [0, 0, 40, 40],
    'segmentation': encode_box([30, 25, 5, 5], (40, 50)),
    'score': 1.0,
  }
  metrics = coco_metrics.evaluate([wrong, *_perfect(truth)], path)
  assert metrics['eval/APs'] == pytest.approx(1.0)
  assert metrics['eval/mask_APs'] == pytest.approx(0.75)


@pytest.mark.parametrize(
  'content, field, value',
  [
    (None, 'item', None),
    ('{"images": [', 'item', None),
    ('[]', 'item', 'images'),
    ('{"images": [], "categories": []}', 'item', 'annotations'),
    (
      '{"images": [{"id": "a"}], "categories": [], "annotations": []}',
      *('item', 'a'),
    ),
  ],
)
def test_files_without_coco_annotations(content, field, value, tmp_path):
  path = tmp_path / 'truth.json'
  if content is not None:
    path.write_text(content)
  with pytest.raises(UserError) as error:
    coco_metrics.evaluate([], path)
  assert error.value.path == str(path)
  assert getattr(error.value, field) == value


@pytest.mark.parametrize(
  'field, value, kind',
  [
    ('segmentation', [], 'unusable_mask'),
    ('segmentation', None, 'unusable_mask'),
    ('segmentation', [[]], 'unusable_mask'),
    ('segmentation', [[5, 6, 7, 8, 9]], 'unusable_mask'),
    ('segmentation', [[1e9, 1, 2, 3, 4, 5]], 'unusable_mask'),
    ('segmentation', {'size': [40, 50], 'counts': 'oooo'}, 'unusable_mask'),
    ('segmentation', {'size': [2**31] * 2, 'counts': [1]}, 'unusable_mask'),
    (
      *('segmentation', [[-9, -9, -5, -9, -5, -5]]),
      'empty_mask',
    ),
    ('bbox', ['/etc', 1, 2, 3], 'unusable_box'),
    ('bbox', [1, 1, 0, 3], 'zero_area_box'),
    ('bbox', [60, 1, 5, 3], 'box_outside_image'),
    ('image_id', [1], 'unknown_image'),
  ],
)
def test_objects_that_prepare_skips_are_not_scored(
  field, value, kind, truth, tmp_path, caplog
):
  results = _perfect(truth)[:1]
  truth['annotations'][1][field] = value
  path = write_truth(tmp_path, truth)
  metrics = coco_metrics.evaluate(results, path)
  assert metrics['eval/AP'] == metrics['eval/mask_AP'] == pytest.approx(1.0)
  (record,) = caplog.records
  assert f'1 {kind}' in record.getMessage() and str(path) in record.getMessage()


@pytest.mark.parametrize(
  'field, value',
  [
    ('area', None),
    ('area', 'large'),
    ('area', '400.0'),
    ('iscrowd', None),
    ('iscrowd', '0'),
    ('iscrowd', 0.0),
    ('bbox', None),
    ('bbox', ['10', 10.0, '20', '20']),
    ('category_id', '90'),
    ('image_id', '908400386912'),
    ('segmentation', [10, 10, 30, 10, 30, 30, 10, 30]),
    ('segmentation', [[10, 10], [30, 10], [30, 30], [10, 30]]),
  ],
)
def test_values_that_are_written_in_other_ways(
  field, value, truth, tmp_path, caplog
):
  results = _perfect(truth)
  truth['annotations'][1][field] = value
  path = write_truth(tmp_path, truth)
  metrics = coco_metrics.evaluate(results, path)
  assert metrics['eval/AP'] == metrics['eval/mask_AP'] == pytest.approx(1.0)
  assert not caplog.records


def test_ignored_regions_are_no_objects(truth, tmp_path):
  results = _perfect(truth)
  truth['annotations'][1]['ignore'] = 1
  path = write_truth(tmp_path, truth)
  # Found or not, they neither count as hit nor as miss.
  for found in (results, results[:1]):
    assert coco_metrics.evaluate(found, path)['eval/AP'] == pytest.approx(1.0)


def test_boxes_of_the_truth_are_clipped(truth, tmp_path):
  truth['annotations'][0]['bbox'] = [-5, 5, 30, 10]
  first = coco_metrics.load_truth(write_truth(tmp_path, truth))['annotations'][
    0
  ]
  assert first['bbox'] == [0, 5, 25, 10]


def test_masks_are_read_only_where_they_are_scored(truth, tmp_path):
  truth['annotations'][1]['segmentation'] = None
  path = write_truth(tmp_path, truth)
  assert len(coco_metrics.load_truth(path)['annotations']) == 2
  assert (
    len(coco_metrics.load_truth(path, with_masks=False)['annotations']) == 3
  )


def test_classes_without_a_name(truth, tmp_path):
  truth['categories'] = [{'id': 3}, {'id': 90, 'name': 5}]
  path = write_truth(tmp_path, truth)
  found = coco_metrics.load_truth(path)['categories']
  assert found == [{'id': 3, 'name': '3'}, {'id': 90, 'name': '5'}]
  results = _perfect(truth)
  _, report = coco_metrics.evaluate_classes(results, path, [1])
  assert report.names == ('3', '5')


@pytest.mark.parametrize(
  'field, value',
  [('category_id', {}), ('category_id', 4), ('id', 0)],
)
def test_a_truth_with_ambiguous_ids(field, value, truth, tmp_path):
  truth['annotations'][1][field] = value
  path = write_truth(tmp_path, truth)
  with pytest.raises(UserError) as error:
    coco_metrics.evaluate([], path)
  assert error.value.path == str(path)
  assert error.value.item == (value if field == 'id' else 7)


def test_unknown_ids_and_kinds(truth, tmp_path, caplog):
  path = write_truth(tmp_path, truth)
  first, *others = _perfect(truth)
  without_mask = {k: v for k, v in first.items() if k != 'segmentation'}
  for results, options, argument, field, value in (
    ([first], {'image_ids': [1, 4]}, 'image_ids', 'given', [4]),
    ([{**first, 'image_id': 55}], {}, 'results', 'given', [55]),
    ([first], {'kinds': ('mask',)}, 'kinds', 'given', ('mask',)),
    ([without_mask, *others], {}, 'kinds', 'item', 1),
  ):
    with pytest.raises(UserError) as error:
      coco_metrics.evaluate(results, path, **options)
    assert error.value.argument == argument
    assert getattr(error.value, field) == value
  unknown = {**without_mask, 'category_id': 12}
  coco_metrics.evaluate([unknown], path, kinds=('bbox',))
  assert '[12]' in caplog.text


def test_table(truth, tmp_path):
  path = write_truth(tmp_path, truth)
  table = coco_metrics.format_table(coco_metrics.evaluate([], path))
  header, box, mask = table.splitlines()
  assert header.split() == list(coco_metrics.NAMES)
  assert box.split()[:5] == ['box', '0.000', '0.000', '0.000', '0.000']
  assert mask.split()[0] == 'mask' and mask.split()[5:7] == ['n/a', 'n/a']
  assert len(header) == len(box) == len(mask) < 100
  boxes_alone = coco_metrics.evaluate([], path, kinds=('bbox',))
  assert len(coco_metrics.format_table(boxes_alone).splitlines()) == 2


def _recordings():
  """(truth, results, kind, numbers) of every recorded evaluation."""
  fixtures = DATA / 'eval-fixtures'
  for path in sorted(fixtures.glob('*/expected.json')):
    expected = json.loads(path.read_text())
    for key, value in expected.items():
      if not isinstance(value, dict):
        continue
      truth, results, kind = _files_of(path.parent, key, expected)
      yield pytest.param(
        truth, results, kind, value['stats'], id=f'{path.parent.name}-{key}'
      )


def _files_of(folder, key, expected):
  """Ground truth, results and kind of a recording."""
  if '/' in key:
    pair, kind = key.split()
    truth, results = pair.split('/')
    return folder / f'{truth}.json', folder / f'{results}.json', kind
  if 'gt' in expected:
    return DATA / expected['gt'], folder / 'detections.json', key
  (truth,) = folder.glob('instances_*_100.json')
  (results,) = folder.glob(f'*fake{key.split("_")[0]}*.json')
  return truth, results, 'segm' if key == 'segm' else 'bbox'


@needs_data
@pytest.mark.parametrize('truth, results, kind, expected', list(_recordings()))
def test_recorded_numbers(truth, results, kind, expected, scorer):
  metrics = coco_metrics.evaluate(
    json.loads(results.read_text()), truth, kinds=(kind,), scorer=scorer
  )
  # The recordings say AR1 where Habana says ARmax1.
  np.testing.assert_allclose(
    list(metrics.values()), list(expected.values()), rtol=0, atol=1e-6
  )


def _truth_as_detections(truth, size):
  """One batch of a row per image: exact boxes, masks as mask targets are."""
  annotations = [
    truth.loadAnns(truth.getAnnIds(image_id, iscrowd=False))
    for image_id in truth.imgs
  ]
  rows = [row for row, of_image in enumerate(annotations) for _ in of_image]
  columns = [i for of_image in annotations for i, _ in enumerate(of_image)]
  annotations = [a for of_image in annotations for a in of_image]
  x, y, width, height = np.array([a['bbox'] for a in annotations]).T
  boxes = np.stack([y, x, y + height, x + width], -1).astype(np.float32)
  whole = map(truth.annToMask, annotations)
  crops = [crop_mask(mask, box) for mask, box in zip(whole, boxes)]
  masks = mask_ops.crop_masks(
    np.stack(crops), boxes, boxes, np.arange(len(boxes)), size
  )

  def spread(values, dtype):
    values = np.asarray(values)
    shape = (len(truth.imgs), max(columns) + 1, *values.shape[1:])
    array = np.zeros(shape, dtype)
    array[rows, columns] = values
    return array

  return Detections(
    boxes=spread(boxes, np.float32),
    scores=spread(np.ones(len(boxes)), np.float32),
    classes=spread([a['category_id'] for a in annotations], np.int32),
    masks=spread(masks, np.float32),
    valid=spread(np.ones(len(boxes)), bool),
  )


@needs_data
@pytest.mark.parametrize(
  'split, size, rule, sharp_ap, soft_ap',
  [
    ('train2017', 28, 'whole_pixels', 0.87295, 0.89276),
    ('val2017', 28, 'whole_pixels', 0.85493, 0.87979),
    ('val2017', 28, 'continuous', 0.9364, 0.9601),
    ('val2017', 56, 'whole_pixels', 0.8812, None),
    ('val2017', 56, 'continuous', 0.9703, None),
  ],
)
def test_ceiling_of_the_representation(split, size, rule, sharp_ap, soft_ap):
  path = DATA / 'coco-mini' / 'annotations' / f'instances_{split}.json'
  truth = coco_api.COCO(path)
  detections = _truth_as_detections(truth, size)
  detections = detections.replace(mask_pasting=rule)
  sizes = [(i['height'], i['width']) for i in truth.imgs.values()]
  # A head that predicts its targets exactly, 0 or 1; and one that predicts the
  # covered share of each cell.
  for masks, mask_ap in (
    (detections.masks >= 0.5, sharp_ap),
    (detections.masks, soft_ap),
  ):
    if mask_ap is None:
      continue
    results = to_results(
      detections.replace(masks=masks),
      np.array(list(truth.imgs)),
      np.array(sizes),
      np.ones((len(sizes), 2)),
      np.ones(len(sizes), bool),
    )
    metrics = coco_metrics.evaluate(results, path)
    assert metrics['eval/AP'] >= 0.99
    assert metrics['eval/mask_AP'] == pytest.approx(mask_ap, abs=0.001)
