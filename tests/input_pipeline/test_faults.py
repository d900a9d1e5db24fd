"""Bad records are masked, counted and logged, and too many stop the run."""

import itertools
import os
import re

import example_records
import hostile_images
import numpy as np
import pytest

from maskrcnn_jax import input_pipeline
from maskrcnn_jax.datasets import records
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.input_pipeline import faults

SIZE = (60, 80)
CANVAS = ((64, 96),)
SMALL = {'canvases': CANVAS, 'mask_size': 14, 'num_threads': 2}
NAN, INF = float('nan'), float('inf')


def contents(index, count=3, change=None):
  """A record with the id 70 + index.

  Args:
    index: of the record; draws it.
    count: of its objects.
    change: called with the keyword arguments of `example_records.record`.
  """
  image, boxes, masks = example_records.rectangles(*SIZE, count, index)
  values = {
    'encoded': example_records.jpeg(image),
    'image_id': 70 + index,
    'size': SIZE,
    'boxes': boxes,
    'masks': list(masks),
    'classes': list(range(1, count + 1)),
  }
  if change:
    change(values)
  return example_records.record(**values)


def half_image(values):
  values['encoded'] = values['encoded'][: len(values['encoded']) // 2]


def image_file(encoded):
  return lambda values: values.update(encoded=encoded)


def write(path, changes):
  """A file of records, each with its change."""
  records.write_records(
    path, [contents(i, change=change) for i, change in enumerate(changes)]
  )
  return str(path)


def evaluate(path, **options):
  """The iterator of an evaluation, and its only batch."""
  options = {'with_instances': True, **SMALL, **options}
  iterator = input_pipeline.eval_batches(str(path), **options)
  (batch,) = iterator
  return iterator, batch


def train(path, **options):
  options = {'batch_size': 4, 'max_unreadable_share': 1.0, **SMALL, **options}
  return input_pipeline.train_batches(path, **options)


def change_byte(path, index, row, offset):
  """Flips a byte of a record's frame; from the end if the offset is below 0."""
  size = 12 + int(index.lengths[row]) + 4
  data = bytearray(path.read_bytes())
  data[int(index.offsets[row]) + offset % size] ^= 1
  path.write_bytes(data)


RECORDS = [
  (half_image, 'unusable_image', 'JPEG'),
  (image_file(hostile_images.png(20_000, 20_000)), 'unusable_image', '20000'),
  # Within the budget, but not what the record says.
  (image_file(hostile_images.png(61, 80)), 'unusable_image', '61 x 80'),
  (image_file(hostile_images.many_scans()), 'unusable_image', 'scans'),
  (image_file(b'\xff\x0a' + bytes(99)), 'unusable_image', 'no JPEG'),
  # Another schema.
  (lambda values: values['masks'].pop(), 'unusable_record', ''),
]


def test_unusable_records_empty_their_rows(tmp_path, caplog):
  changes = [change for change, _, _ in RECORDS]
  path = write(tmp_path / 'x.tfrecord', [None, *changes, None, None])
  iterator, batch = evaluate(path, batch_size=9)
  expected = np.array([True] + [False] * 6 + [True] * 2)
  np.testing.assert_array_equal(batch['valid'], expected)
  np.testing.assert_array_equal(batch['image_ids'], 70 + np.arange(9))
  assert not np.any(batch['images'][~expected])
  # The other rows are as ever.
  assert np.all(batch['instances']['valid'][expected, :3])
  for value in batch['instances'].values():
    assert not np.any(value[~expected])
  kinds = [kind for _, kind, _ in RECORDS]
  assert iterator.counts == {kind: kinds.count(kind) for kind in {*kinds}}
  messages = [m for m in caplog.messages if 'skipped' in m]
  assert len(messages) == len(RECORDS)
  for number, (_, _, reason) in enumerate(RECORDS, start=71):
    (message,) = [m for m in messages if f'image {number} is skipped' in m]
    assert f'{path} at byte' in message
    assert reason in message
    assert '{{' not in message


def test_corrupt_records_empty_their_rows(tmp_path, caplog):
  # Length, its checksum, the first and the last byte of the record, its
  # checksum.
  offsets = [0, 8, 12, -5, -1]
  path = tmp_path / 'x.tfrecord'
  write(path, [None] * 6)
  index = records.index_records(str(path))
  iterator = input_pipeline.eval_batches(str(path), batch_size=6, **SMALL)
  # After indexing, so that only reading can find it.
  for row, offset in enumerate(offsets):
    change_byte(path, index, row, offset)
  (batch,) = iterator
  np.testing.assert_array_equal(batch['valid'], np.arange(6) == 5)
  np.testing.assert_array_equal(batch['image_ids'], 70 + np.arange(6))
  assert iterator.counts == {'corrupt_record': 5}
  messages = [m for m in caplog.messages if 'skipped' in m]
  for row, message in enumerate(messages):
    assert f'{index.place(row)} is skipped' in message
    assert f'image {70 + row} ' in message
    assert message.count(str(path)) == 1


def test_missing_records_empty_their_rows(tmp_path):
  cut, removed = tmp_path / 'cut.tfrecord', tmp_path / 'removed.tfrecord'
  write(cut, [None] * 4)
  write(removed, [None] * 4)
  index = records.index_records(str(cut))
  iterator = input_pipeline.eval_batches(
    f'{tmp_path}/*.tfrecord', batch_size=8, with_instances=True, **SMALL
  )
  removed.unlink()
  cut.write_bytes(cut.read_bytes()[: index.offsets[3]])
  (batch,) = iterator
  np.testing.assert_array_equal(batch['valid'], np.arange(8) < 3)
  assert iterator.counts == {'unreadable_record': 5}


def put(name, value):
  """A change of the second object; `value` may be made of the former one."""

  def change(values):
    former = values[name][1]
    values[name][1] = value(former) if callable(value) else value

  return change


def half_of_png(mask):
  png = example_records.png(mask)
  return png[: len(png) // 2]


def surplus_data(mask):
  return hostile_images.png(*mask.shape, data=os.urandom(2**17))


OBJECTS = [
  (put('boxes', (NAN, 1, 20, 20)), 'unusable_box', r'box \(nan, .* not finite'),
  (put('boxes', (1, 1, 20, NAN)), 'unusable_box', 'not finite'),
  (put('boxes', (1, 1, INF, 20)), 'unusable_box', 'not finite'),
  (put('boxes', (-INF, 1, INF, 20)), 'unusable_box', 'not finite'),
  (put('boxes', (20, 1, 10, 20)), 'zero_area_box', 'has no area'),
  (put('boxes', (1, 20, 10, 20)), 'zero_area_box', 'has no area'),
  (put('classes', 0), 'unusable_class', 'class is 0, wanted 1 or more'),
  (put('classes', -3), 'unusable_class', 'class is -3'),
  (put('masks', np.zeros_like), 'empty_mask', 'no pixel in its box'),
  # A corner that the mask does not reach.
  (put('boxes', (0, 0, 0.5, 0.5)), 'empty_mask', 'no pixel in its box'),
  (put('boxes', (1e5, 1e5, 2e5, 2e5)), 'empty_mask', 'no pixel in its box'),
  (
    put('masks', lambda mask: mask[:-1]),
    'other_size_mask',
    'image.s size',
  ),
  (
    put('masks', lambda mask: mask.T),
    'other_size_mask',
    'image.s size',
  ),
  (
    put('masks', lambda mask: hostile_images.png(2**15, 2**15)),
    'other_size_mask',
    'image.s size',
  ),
  (put('masks', surplus_data), 'unusable_mask', 'no PNG file'),
  (put('masks', half_of_png), 'unusable_mask', 'no PNG file'),
  (put('masks', lambda mask: b''), 'unusable_mask', 'no PNG file'),
]


@pytest.mark.slow
def test_only_the_unusable_object_is_skipped(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(faults, 'LOGGED_PER_KIND', len(OBJECTS))
  good = write(tmp_path / 'good.tfrecord', [None] * len(OBJECTS))
  bad = write(tmp_path / 'bad.tfrecord', [change for change, _, _ in OBJECTS])
  _, expected = evaluate(good, batch_size=len(OBJECTS))
  iterator, batch = evaluate(bad, batch_size=len(OBJECTS))
  kinds = [kind for _, kind, _ in OBJECTS]
  assert iterator.counts == {kind: kinds.count(kind) for kind in {*kinds}}
  # The images and their other objects stay, without a gap.
  assert np.all(batch['valid'])
  np.testing.assert_array_equal(batch['images'], expected['images'])
  valid = batch['instances']['valid']
  assert np.all(valid == (np.arange(100) < 2))
  for key, value in batch['instances'].items():
    np.testing.assert_array_equal(
      value[:, :2], expected['instances'][key][:, [0, 2]], err_msg=key
    )
    assert not np.any(value[:, 2:]), key
  texts = [m for m in caplog.messages if 'skipped' in m]
  assert len(texts) == len(OBJECTS)
  index = records.index_records(bad)
  for row, (text, (_, _, message)) in enumerate(zip(texts, OBJECTS)):
    assert f'{index.place(row)}, object 1 (from 0)' in text
    assert f'image {70 + row},' in text
    assert re.search(message, text)


def test_training_sees_what_evaluation_sees(tmp_path):
  changes = [change for change, _, _ in OBJECTS] + [half_image]
  path = write(tmp_path / 'x.tfrecord', changes)
  iterator = train(path, batch_size=3)
  batches = list(itertools.islice(iterator, len(changes) // 3))
  for batch in batches:
    instances = batch['instances']
    valid = instances['valid']
    np.testing.assert_array_equal(np.sum(valid, -1), 2 * batch['valid'])
    assert np.all(np.isfinite(instances['boxes']))
    boxes = instances['boxes'][valid]
    assert np.all(boxes[:, 2:] > boxes[:, :2])
    assert np.all(instances['classes'][valid] >= 1)
    assert np.all(np.any(instances['masks'][valid], axis=(1, 2)))
  counted = iterator.counts
  expected = [kind for _, kind, _ in OBJECTS] + ['unusable_image']
  assert counted == {kind: expected.count(kind) for kind in {*expected}}


def test_crowds_have_no_faults(tmp_path):
  def change(values):
    values['crowd'] = [0, 1, 0]
    values['boxes'][1] = NAN
    values['masks'][1] = b''
    values['classes'][1] = 0

  path = write(tmp_path / 'x.tfrecord', [change])
  iterator, batch = evaluate(path, batch_size=1)
  assert iterator.counts == {}
  np.testing.assert_array_equal(batch['instances']['classes'][0, :3], [1, 3, 0])


def test_objects_with_faults_are_not_among_the_largest(tmp_path):
  path = write(tmp_path / 'x.tfrecord', [put('boxes', (0, 0, INF, 80))])
  _, batch = evaluate(path, batch_size=1, max_instances=2)
  np.testing.assert_array_equal(batch['instances']['classes'], [[1, 3]])


def test_only_the_first_of_a_kind_are_logged(tmp_path, caplog):
  num = faults.LOGGED_PER_KIND + 3
  changes = [half_image] * num + [put('classes', 0)]
  path = write(tmp_path / 'x.tfrecord', changes)
  iterator = input_pipeline.eval_batches(path, with_instances=True, **SMALL)
  list(iterator)
  assert iterator.counts == {'unusable_image': num, 'unusable_class': 1}
  named = [m for m in caplog.messages if 'skipped' in m]
  assert len(named) == faults.LOGGED_PER_KIND + 1
  (more,) = [m for m in caplog.messages if 'only counted' in m]
  assert 'unusable_image' in more


@pytest.mark.slow
def test_faults_do_not_move_other_rows(tmp_path):
  good = write(tmp_path / 'good.tfrecord', [None] * 6)
  bad = write(
    tmp_path / 'bad.tfrecord',
    [None, half_image, put('boxes', (NAN, 0, 1, 1)), None, half_image, None],
  )
  whole, with_faults = (train(path, batch_size=2) for path in (good, bad))
  for _ in range(7):
    expected, batch = next(whole), next(with_faults)
    ids = batch['image_ids']
    np.testing.assert_array_equal(ids, expected['image_ids'])
    np.testing.assert_array_equal(batch['valid'], ~np.isin(ids, [71, 74]))
    assert with_faults.position == whole.position
    np.testing.assert_array_equal(
      batch['images'][batch['valid']], expected['images'][batch['valid']]
    )
  # Again from the middle.
  resumed = next(train(bad, batch_size=2, start_examples=12))
  for key in ('image_ids', 'images', 'valid'):
    np.testing.assert_array_equal(resumed[key], batch[key])


def rows_until_it_stops(iterator, limit):
  """Number of rows that were delivered before the error, and the error."""
  rows = 0
  with pytest.raises(UserError) as error:
    while rows < limit:
      rows += len(next(iterator)['valid'])
  assert error.value.argument == 'input.max_unreadable_share'
  return rows, error.value


@pytest.mark.parametrize(
  'options, rows',
  [
    # 12 lost rows are less than 0.05 of 256, 13 are more; every fourth is lost.
    ({}, 48),
    ({'max_unreadable_share': 0.0}, 0),
    ({'max_unreadable_share': 0.1}, 100),
  ],
)
def test_training_stops_above_the_share(tmp_path, options, rows):
  path = write(tmp_path / 'x.tfrecord', [half_image] + [None] * 3)
  options = {'batch_size': 4, **SMALL, **options}
  iterator = input_pipeline.train_batches(path, **options)
  stopped, error = rows_until_it_stops(iterator, faults.MIN_ROWS)
  assert stopped == rows
  lost = rows // 4 + 1
  assert (error.given, error.item) == ((lost, rows + 4), 70)
  assert error.wanted == options.get('max_unreadable_share', 0.05)
  assert f'{lost} unusable_image' in str(error)
  assert iterator.position['examples'] == rows


def test_a_set_whose_objects_are_all_unusable_stops_too(tmp_path):
  def change(values):
    values['masks'] = [mask[:-1] for mask in values['masks']]

  path = write(tmp_path / 'x.tfrecord', [change] * 4)
  iterator = input_pipeline.train_batches(path, batch_size=4, **SMALL)
  rows, error = rows_until_it_stops(iterator, faults.MIN_ROWS)
  assert rows == 12
  assert '48 other_size_mask' in str(error)


def tally_of(*lost):
  """A tally of single rows, lost or not."""
  tally = faults.Tally()
  text = faults.encode([(faults.ImageFault.UNUSABLE_IMAGE, 'x')])
  for number, is_lost in enumerate(lost):
    batch = {'valid': np.array([not is_lost]), 'image_ids': np.array([number])}
    tally.add(batch, np.array([text if is_lost else b''], object))
  return tally


def test_the_share_is_of_all_rows_so_far():
  rare = [number % 25 == 0 for number in range(1000)]
  tally_of(*rare).check(0.05)
  with pytest.raises(UserError) as error:
    tally_of(*rare).check(0.03)
  assert error.value.given == (40, 1000)
  # Later rows make up for many lost ones at first.
  tally_of(*[True] * 20, *[False] * 400).check(0.05)


def test_rows_lost_without_a_break_stop_at_any_share():
  good = [False] * 10_000
  last = faults.MAX_LOST_IN_A_ROW
  tally_of(*good, *[True] * (last - 1)).check(1.0)
  tally_of(*[True] * (last - 1), False, True).check(1.0)
  with pytest.raises(UserError) as error:
    tally_of(*good, *[True] * last).check(0.05)
  assert error.value.given == (64, 10_064)


def test_fillers_are_neither_rows_nor_lost(tmp_path):
  path = write(tmp_path / 'x.tfrecord', [None, half_image, None])
  iterator = input_pipeline.eval_batches(path, batch_size=8, **SMALL)
  list(iterator)
  assert (iterator.tally.rows, iterator.tally.lost) == (3, 1)


def test_evaluation_never_stops(tmp_path):
  num = faults.MAX_LOST_IN_A_ROW + 4
  path = tmp_path / 'x.tfrecord'
  records.write_records(
    path, [example_records.record(b'none', i, SIZE) for i in range(num)]
  )
  iterator = input_pipeline.eval_batches(str(path), batch_size=4, **SMALL)
  assert not any(np.any(batch['valid']) for batch in iterator)
  assert iterator.counts == {'unusable_image': num}
