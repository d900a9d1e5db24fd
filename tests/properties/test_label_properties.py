"""Objects of a COCO JSON: the same for check, prepare, training, evaluation."""

import collections
import itertools
import json
import random

import numpy as np
import pytest
from PIL import Image

from maskrcnn_jax.datasets import coco_json, ground_truth, prepare, records
from maskrcnn_jax.datasets.doctor import check
from maskrcnn_jax.datasets.formats import writers
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import coco_metrics
from maskrcnn_jax.input_pipeline import batches

HEIGHT, WIDTH = 40, 60
RUNS = {'size': [HEIGHT, WIDTH], 'counts': [130, 9, 2261]}
# Values of a field, sound ones and others.
QUIRKS = {
  'bbox': [
    *(None, [], 'all', ['4', '5', '8', '6'], [-3, 2, 20, 9], [50, 30, 20, 20]),
    *([70, 5, 5, 5], [4, 5, 0, 6], [4, 5, -2, 6], [4.5, 5, 8, 6.25], [1, 2, 3]),
    *([float('nan'), 1, 2, 3], [1e30, 1, 2, 3], [True, 1, 2, 3], {}),
  ],
  'segmentation': [
    *(
      None,
      [],
      [[]],
      {},
      'x',
      [4, 5, 12, 5, 12, 11],
      [[4, 5, 12, 5, 12]],
      RUNS,
    ),
    *([[4, 5], [12, 5], [12, 11]], [[[4, 5], [12, 5], [12, 11]]], [1, 2, 3, 4]),
    *([['4', '5', '12', 5, 12, 11.0]], [[-9, -9, -5, -9, -5, -5]], [None]),
    *(
      {**RUNS, 'counts': [1, 2]},
      {'size': ['40', 60.0], 'counts': [130, 2270]},
    ),
    *([[4, 5, 12, 5, 12, 11], RUNS], [[4, 5, 90, 5, 90, 80]], [[1e99] * 6]),
  ],
  'iscrowd': [None, 0, 1, '0', '1', 1.0, True, 'false', 'yes', 2, [0], -1],
  'ignore': [None, 0, 1, '1', True, 'no', {}],
  'area': [None, 48, '48', 48.5, 'large', float('nan'), [1], -5, '1e1'],
  'category_id': [1, 2, '1', 2.0],
  'image_id': [1, '2', 3.0, 99, 'b', None, [1]],
  'id': [None, '7001', 7002.0],
}


def _content(rng):
  """Lists of a COCO JSON whose annotations have up to three odd values."""
  annotations = []
  for number in range(1, 41):
    x, y = rng.randrange(40), rng.randrange(25)
    right, bottom = x + 9, y + 7
    entry = {
      'id': number,
      'image_id': rng.randrange(1, 4),
      'category_id': rng.randrange(1, 3),
      'bbox': [x, y, 9, 7],
      'segmentation': [[x, y, right, y, right, bottom, x, bottom]],
      'area': 63,
      'iscrowd': 0,
    }
    for key in rng.sample(sorted(QUIRKS), rng.randrange(4)):
      entry[key] = rng.choice(QUIRKS[key])
      if rng.random() < 0.1 and key != 'category_id':
        del entry[key]
    annotations.append(entry)
    if rng.random() < 0.1:  # The same object twice.
      annotations.append({**entry, 'id': number + 100})
  names = ('{}.png', 'C:\\photos\\{}.png', '/data/?d=x/{}.png', 'a/b/{}.PNG')
  name = rng.choice(names)
  images = [
    {
      'id': rng.choice([i, str(i)]),
      'file_name': name.format(i),
      'height': rng.choice([HEIGHT, '40', 40.0]),
      'width': WIDTH,
    }
    for i in (1, 2, 3)
  ]
  categories = [{'id': '1', 'name': None}, {'id': 2.0, 'name': 'dog'}]
  if rng.random() < 0.3:  # Then classes are one more than categories.
    categories.append({'id': 0, 'name': 7})
  return {
    'images': images,
    'annotations': annotations,
    'categories': categories,
  }


def _count_instances(found, offset):
  """Number of objects in batches of one image, by image and category."""
  counts = collections.Counter()
  for batch in found:
    instances, image_id = batch['instances'], int(batch['image_ids'][0])
    classes = instances['classes'][instances['valid']]
    counts.update((image_id, x - offset) for x in classes.tolist())
  return counts


@pytest.mark.parametrize(
  'seed',
  [*range(3), *(pytest.param(x, marks=pytest.mark.long) for x in range(3, 12))],
)
def test_what_one_skips_all_skip(seed, tmp_path):
  """The first six draws have every encoding and both forms of categories."""
  rng = random.Random(seed)
  content = _content(rng)
  ids = [str(x.get('id')) for x in content['annotations']]
  for entry in content['annotations']:  # Used twice, an id is an error.
    if ids.count(str(entry.get('id'))) > 1:
      entry.pop('id', None)
  path = tmp_path / 'a.json'
  encoding = rng.choice(['utf-8', 'utf-8-sig', 'utf-16'])
  path.write_text(json.dumps(content), encoding=encoding)
  for i in (1, 2, 3):
    pixels = np.random.default_rng(i).integers(0, 255, (HEIGHT, WIDTH, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f'{i}.png')
  summary = prepare.prepare(tmp_path, path, tmp_path / 'val', num_workers=1)
  recorded = ground_truth.coco_from_records(
    records.index_records(list(summary.files))
  )
  scored = coco_metrics.load_truth(path)
  report = check.check((tmp_path, path), num_workers=1)
  (split,) = report.splits
  offset = int(len(content['categories']) > 2)

  assert len(recorded['annotations']) == len(scored['annotations'])
  for image_id in (1, 2, 3):  # Both are in the order of the file.
    ours, theirs = (
      [x for x in each['annotations'] if x['image_id'] == image_id]
      for each in (recorded, scored)
    )
    for one, other in zip(ours, theirs, strict=True):
      for key in ('category_id', 'iscrowd', 'segmentation'):
        assert one[key] == other[key]
      numbers = ([*x['bbox'], x['area']] for x in (one, other))
      np.testing.assert_allclose(*numbers, atol=1e-4)
  checked = sorted(
    [x.image_id, x.class_id - offset, int(x.is_crowd), x.area]
    for x in split.objects
  )
  of_truth = sorted(
    [x[k] for k in ('image_id', 'category_id', 'iscrowd', 'area')]
    for x in scored['annotations']
  )
  assert checked == of_truth
  assert 0 < len(checked) < len(content['annotations'])
  doubles = [len(report.by_kind().get('duplicate_object', []))]
  assert doubles == [summary.counts()['duplicate_object']]

  # What training learns from, and a clean JSON.
  found = batches.eval_batches(
    list(summary.files), ((64, 64),), 1, with_instances=True
  )
  learnt = _count_instances(found, offset)
  epoch = itertools.islice(
    batches.train_batches(list(summary.files), ((64, 64),), 1), 3
  )
  assert _count_instances(epoch, offset) == learnt
  wanted = collections.Counter(
    (x['image_id'], x['category_id'])
    for x in scored['annotations']
    if not x['iscrowd']
  )
  # Also skipped is a mask without a pixel in its box, which `check` reports.
  assert learnt <= wanted
  assert found.counts.keys() <= {'empty_mask'}
  skipped = wanted.total() - learnt.total()
  assert found.counts.get('empty_mask', 0) == skipped
  assert skipped <= len(report.by_kind().get('box_mask_mismatch', ()))
  writers.write(tmp_path, path, tmp_path / 'clean.json')
  clean = coco_json.load(tmp_path / 'clean.json')
  assert {x.kind for x in clean.findings} <= {'ids_from_0'}
  for one, other in zip(
    coco_metrics.load_truth(tmp_path / 'clean.json')['annotations'],
    scored['annotations'],
    strict=True,
  ):
    assert one == other


@pytest.mark.parametrize('seed', range(30))
def test_no_value_is_a_bug(seed, tmp_path):
  """Any value in any list: a result or a `UserError`, the same from all."""
  rng = random.Random(seed)
  content = _content(rng)
  values = [None, [], {}, 'x', -1, 1e400, 10**400, True, [[1]], '7', 7.0]
  for _ in range(2):
    entry = rng.choice(content[rng.choice(['images', 'categories'])])
    entry[rng.choice(sorted(entry))] = rng.choice(values)
  path = tmp_path / 'a.json'
  path.write_text(json.dumps(content))
  for i in (1, 2, 3):
    Image.new('RGB', (WIDTH, HEIGHT)).save(tmp_path / f'{i}.png')
  report = check.check((tmp_path, path), num_workers=1)
  refused = []
  for read in (
    lambda: prepare.prepare(tmp_path, path, tmp_path / 'r', num_workers=1),
    lambda: coco_metrics.load_truth(path),
  ):
    try:
      read()
      refused.append(False)
    except UserError:
      refused.append(True)
  assert report.count('error') or not refused[0]
  assert refused[0] or not refused[1]
