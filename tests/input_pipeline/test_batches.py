import itertools
import json
import os
import pathlib
import subprocess
import sys

import example_records
import numpy as np
import plain_rows
import pytest
from plain_rows import assert_equal, flatten
from pycocotools import coco

from maskrcnn_jax import input_pipeline
from maskrcnn_jax.datasets import prepare, records
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.input_pipeline import cache as caches
from maskrcnn_jax.input_pipeline import order

SIZES = [(40 + i, 90 - 2 * i) for i in range(5)] + [(90, 40)] * 4
CANVASES = ((64, 96), (96, 64))
SMALL = {'canvases': CANVASES, 'max_instances': 3, 'mask_size': 14}


@pytest.fixture(scope='module')
def pattern(tmp_path_factory):
  folder = tmp_path_factory.mktemp('records')
  example_records.write(folder / 'a.tfrecord', SIZES[:6])
  example_records.write(folder / 'b.tfrecord', SIZES[6:], first=6)
  return str(folder / '*.tfrecord')


def train(pattern, **options):
  options = {'batch_size': 2, **SMALL, **options}
  return input_pipeline.train_batches(pattern, **options)


def take(iterator, count):
  return list(itertools.islice(iterator, count))


@pytest.fixture(scope='module')
def run(pattern):
  """Positions and batches at the start of a run."""
  iterator = train(pattern)
  return [(iterator.position, next(iterator)) for _ in range(9)]


def rows_of(batch, rows):
  return {
    key: rows_of(value, rows) if isinstance(value, dict) else value[rows]
    for key, value in batch.items()
  }


def test_element_spec_is_the_table_of_the_readme(pattern):
  iterator = input_pipeline.train_batches(pattern, ((64, 96),), batch_size=2)
  expected = {
    'images': ((2, 64, 96, 3), 'uint8'),
    'image_sizes': ((2, 2), 'float32'),
    'instances/boxes': ((2, 100, 4), 'float32'),
    'instances/classes': ((2, 100), 'int32'),
    'instances/masks': ((2, 100, 112, 112), 'uint8'),
    'instances/valid': ((2, 100), 'bool'),
    'valid': ((2,), 'bool'),
    'image_ids': ((2,), 'int64'),
    'original_sizes': ((2, 2), 'int32'),
    'scales': ((2, 2), 'float32'),
  }

  spec = flatten(iterator.element_spec)
  batch = flatten(next(iterator))
  for found in (spec, batch):
    shown = {k: (tuple(x.shape), x.dtype.name) for k, x in found.items()}
    assert shown == expected
  assert input_pipeline.batch_spec((64, 96), 2) == iterator.element_spec


def test_batches_follow_the_order(pattern, run):
  found = [batch for _, batch in run]
  index = records.index_records(pattern)
  choices = order.assign_canvases(index.heights, index.widths, CANVASES)
  sequence = order.TrainOrder(choices, 2)
  for number, batch in enumerate(found):
    plan = sequence.batch(2 * number)
    rows = plan.rows
    np.testing.assert_array_equal(batch['image_ids'], index.image_ids[rows])
    assert batch['images'].shape[1:3] == CANVASES[plan.canvas]
    sizes = np.stack([index.heights[rows], index.widths[rows]], -1)
    np.testing.assert_array_equal(batch['original_sizes'], sizes)
    np.testing.assert_array_equal(
      np.sum(batch['instances']['valid'], -1), (batch['image_ids'] - 2**24) % 3
    )
    assert np.all(batch['valid'])
  assert {batch['images'].shape[1:3] for batch in found} == set(CANVASES)


def test_resume_at_any_position(pattern, run):
  assert run[3][0] == {'examples': 6, 'salt': 0}
  for position, expected in (run[3], run[6]):
    start = {'start_examples': position['examples']}
    resumed = train(pattern, salt=position['salt'], **start)
    assert resumed.position == position
    assert_equal(next(resumed), expected)


def test_salt_and_seed_change_the_data(pattern, run):
  def ids(batches):
    return tuple(np.concatenate([x['image_ids'] for x in batches]).tolist())

  salted, seeded = (take(train(pattern, **{k: 1}), 4) for k in ('salt', 'seed'))
  plain = [batch for _, batch in run[:4]]
  assert len({ids(plain), ids(salted), ids(seeded)}) == 3


def test_flips_differ_between_epochs(pattern):
  iterator = train(pattern, batch_size=3)
  seen = {}
  for batch in take(iterator, 24):
    for image_id, image in zip(batch['image_ids'], batch['images']):
      seen.setdefault(int(image_id), set()).add(image.tobytes())
  assert len(seen) == len(SIZES)
  assert all(len(pictures) <= 2 for pictures in seen.values())
  assert np.mean([len(pictures) for pictures in seen.values()]) > 1.6


def test_hosts_read_their_rows_of_the_same_batch(pattern):
  whole = take(train(pattern, batch_size=4), 3)
  for host in range(2):
    part = train(pattern, batch_size=4, host_index=host, host_count=2)
    rows = slice(2 * host, 2 * host + 2)
    for batch, expected in zip(take(part, 3), whole):
      assert_equal(batch, rows_of(expected, rows))
    assert part.position['examples'] == 12


@pytest.mark.slow
def test_number_of_threads_changes_nothing(pattern):
  one, four = (train(pattern, batch_size=4, num_threads=n) for n in (1, 4))
  for _ in range(4):
    assert_equal(next(one), next(four))


@pytest.mark.parametrize('cache', caches.MODES)
def test_cached_records_are_not_read_again(tmp_path, cache):
  path = tmp_path / 'a.tfrecord'
  example_records.write(path, SIZES[:4])
  options = {'batch_size': 4, 'max_unreadable_share': 1.0, 'flip': False}
  iterator = train(str(path), cache=cache, num_threads=1, **options)
  assert next(iterator)['valid'].all()
  path.unlink()
  # Some batches may have been read ahead; none from beyond the tenth.
  later = [next(iterator)['valid'].all() for _ in range(12)]
  assert later[-1] == (cache != 'nothing')


def test_the_first_batch_of_the_run_is_repeated(pattern, run):
  iterator = train(pattern, repeat_first=True, start_examples=6)
  for batch in take(iterator, 3):
    assert_equal(batch, run[0][1])
  assert iterator.position['examples'] == 12


def test_evaluation_sees_every_image_once(pattern):
  found = list(input_pipeline.eval_batches(pattern, CANVASES, batch_size=4))
  valid = np.concatenate([batch['valid'] for batch in found])
  ids = np.concatenate([batch['image_ids'] for batch in found])
  assert len(valid) == 12
  np.testing.assert_array_equal(np.sort(ids[valid]), 2**24 + np.arange(9))
  (last,) = [batch for batch in found if not batch['valid'].all()]
  for key in ('images', 'image_sizes', 'original_sizes', 'scales', 'image_ids'):
    assert not np.any(last[key][~last['valid']])
  assert 'instances' not in last


@pytest.mark.slow
def test_evaluation_on_hosts_and_with_fewer_images(pattern):
  options = {'batch_size': 4, 'max_images': 5, 'with_instances': True}
  (whole, rest) = input_pipeline.eval_batches(pattern, CANVASES, **options)
  assert rest['valid'].sum() + whole['valid'].sum() == 5
  for host in range(2):
    part = input_pipeline.eval_batches(
      pattern, CANVASES, host_index=host, host_count=2, **options
    )
    rows = slice(2 * host, 2 * host + 2)
    for batch, expected in zip(part, (whole, rest)):
      assert_equal(batch, rows_of(expected, rows))


@pytest.mark.parametrize(
  'argument, given',
  [
    ('batch_size', 0),
    ('canvases', ((64, 100),)),
    ('canvases', ()),
    ('image_dtype', 'int8'),
    ('mask_size', 0),
    ('max_instances', 0),
    ('num_threads', 0),
    ('seed', -1),
    ('cache', 'record'),
    ('cache', True),
    ('max_unreadable_share', 5),
  ],
)
def test_bad_arguments(pattern, argument, given):
  with pytest.raises(UserError) as error:
    input_pipeline.train_batches(pattern, **{argument: given})
  assert error.value.argument == f'input.{argument}'
  assert error.value.given == given


@pytest.mark.parametrize(
  'make, section', [('train_batches', 'input'), ('eval_batches', 'evaluation')]
)
def test_batch_size_must_be_shared_by_the_hosts(pattern, make, section):
  with pytest.raises(UserError) as error:
    getattr(input_pipeline, make)(pattern, batch_size=3, host_count=2)
  assert error.value.argument == f'{section}.batch_size'
  assert error.value.given == 3


@pytest.mark.parametrize('options', [{'host_index': 1}, {'start_examples': -4}])
def test_misuse(pattern, options):
  with pytest.raises(ValueError):
    input_pipeline.train_batches(pattern, **options)


def test_empty_pattern(tmp_path):
  with pytest.raises(UserError, match='none'):
    input_pipeline.train_batches(str(tmp_path / 'none*'))


@pytest.mark.parametrize('make', ['train_batches', 'eval_batches'])
def test_misspelt_resize_field(pattern, make):
  with pytest.raises(UserError) as error:
    getattr(input_pipeline, make)(pattern, resize={'fit_sise': (800, 1333)})
  assert error.value.argument == 'input.resize.fit_sise'
  assert "'fit_size'" in str(error.value)  # A hint.


DATA = pathlib.Path(os.environ.get('MASKRCNN_TEST_DATA', 'missing'))
COCO = DATA / 'coco-mini'
needs_data = pytest.mark.skipif(
  not DATA.is_dir(), reason='MASKRCNN_TEST_DATA is not set'
)


@needs_data
def test_real_images(tmp_path):
  truth_file = COCO / 'annotations/instances_train2017.json'
  truth = coco.COCO(truth_file)
  # Grayscale, without objects, tiny, wide, many objects, crowd.
  ids = [86, 250, 425989, 357, 472, 404484]
  crowded = [a['image_id'] for a in truth.anns.values() if a['iscrowd']]
  ids = [i for i in [*ids, *crowded[:2]] if i in truth.imgs]
  summary = prepare.prepare(
    *(COCO / 'train2017', truth_file, tmp_path / 'train'),
    num_workers=1,
    image_ids=ids,
    allow_empty_classes=True,
  )
  found = {}
  for batch in input_pipeline.eval_batches(
    summary.files,
    ((416, 672), (672, 416)),
    batch_size=2,
    with_instances=True,
    mask_size=28,
  ):
    for row in np.flatnonzero(batch['valid']):
      found[int(batch['image_ids'][row])] = rows_of(batch, row)
  assert sorted(found) == sorted(set(ids))
  for image_id, row in found.items():
    annotations = truth.loadAnns(truth.getAnnIds(image_id, iscrowd=False))
    instances = rows_of(row['instances'], row['instances']['valid'])
    assert len(instances['boxes']) == len(annotations)
    expected = [a['area'] for a in annotations]
    sides = instances['boxes'][:, 2:] - instances['boxes'][:, :2]
    shares = np.mean(instances['masks'] / 255, axis=(1, 2))
    areas = np.prod(sides, -1) * shares / row['scales'][0] ** 2
    assert np.all(np.abs(areas - expected) < 0.1 * np.array(expected) + 40)


@needs_data
def test_real_batches_equal_the_oracle(tmp_path):
  truth_file = COCO / 'annotations/instances_val2017.json'
  truth = json.loads(truth_file.read_text())
  crowded = {a['image_id'] for a in truth['annotations'] if a['iscrowd']}
  ids = [x['id'] for x in truth['images'] if x['id'] not in crowded][:8]
  summary = prepare.prepare(
    *(COCO / 'val2017', truth_file, tmp_path / 'val'),
    num_workers=1,
    image_ids=ids,
  )
  index = records.index_records(summary.files)
  assert len(index) == 8
  canvas, sizes = (832, 1344), {'mask_size': 112, 'max_instances': 40}
  iterator = input_pipeline.train_batches(
    summary.files, (canvas,), batch_size=1, cache='nothing', **sizes
  )
  expected = plain_rows.train_rows(index, canvas, **sizes)
  for row, batch in zip(itertools.islice(expected, 12), iterator):
    assert row['instances']['valid'].any()
    made = rows_of(batch, 0)
    # In another graph the last digit of a mask may be another, before rounding.
    masks, others = (
      x['instances'].pop('masks').astype(int) for x in (made, row)
    )
    assert np.max(np.abs(masks - others)) <= 1
    assert np.mean(masks != others) < 1e-5
    assert_equal(made, row)


@pytest.mark.slow
def test_threads_are_capped_in_all_pools(pattern):
  code = (
    'import collections, pathlib, sys\n'
    'from maskrcnn_jax import input_pipeline\n'
    'batches = input_pipeline.train_batches(\n'
    '  sys.argv[1], ((64, 96),), 2, num_threads=int(sys.argv[2]))\n'
    'for _ in range(4): next(batches)\n'
    'names = [p.read_text().strip()\n'
    '         for p in pathlib.Path("/proc/self/task").glob("*/comm")]\n'
    'print(names.count("tf_Compute"), len(names))\n'
  )
  counts = []
  for num_threads in ('1', '3'):
    shown = subprocess.run(
      [sys.executable, '-c', code, pattern, num_threads],
      capture_output=True,
      text=True,
      check=True,
    )
    counts.append([int(word) for word in shown.stdout.split()])
  (few_shared, few), (more_shared, more) = counts
  assert (few_shared, more_shared) == (1, 3)
  assert few < more
