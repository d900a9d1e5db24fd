"""The cache: its limits, and batches that do not depend on it."""

import itertools

import example_records
import numpy as np
import plain_rows
import pytest
import tensorflow as tf

from maskrcnn_jax import input_pipeline
from maskrcnn_jax.datasets import records
from maskrcnn_jax.input_pipeline import cache as caches
from maskrcnn_jax.input_pipeline import transforms

GIB = 2**30
SIZES = [(40, 60), (60, 40), (64, 96), (33, 77), (90, 90)]
CANVAS = (64, 96)


def test_a_cache_stores_and_returns_copies():
  cache = caches.Cache()
  assert cache.get((3, 1)) is None
  value = np.arange(3.0)
  cache.put((3, 1), [value, b'ends with \0'])
  value[:] = 0
  found, text = cache.get((3, 1))
  np.testing.assert_array_equal(found, [0, 1, 2])
  found[:] = 0
  np.testing.assert_array_equal(cache.get((3, 1))[0], [0, 1, 2])
  assert text == b'ends with \0'
  assert cache.num_bytes == 24 + 11
  # A second value for a key is ignored.
  cache.put((3, 1), [np.zeros(100)])
  assert cache.num_bytes == 24 + 11


def test_a_full_cache_takes_what_fits():
  cache = caches.Cache(100)
  for key, size in enumerate([60, 50, 40, 1]):
    cache.put((key,), [np.zeros(size, np.uint8)])
  assert [cache.get((key,)) is not None for key in range(4)] == [1, 0, 1, 0]
  assert cache.num_bytes == 100


def test_an_element_is_made_once_for_a_key():
  made = []

  def make(key):
    made.append(int(key))
    if key == 2:
      raise ValueError('never')
    return np.full([int(key)], 7, np.int32), b'x' * int(key)

  cache = caches.Cache()

  def element(key, flag):
    values = tf.data.Dataset.from_tensors(key)
    values = values.map(
      lambda k: tf.numpy_function(make, [k], [tf.int32, tf.string])
    )
    values = values.map(
      lambda x, y: {
        'x': tf.ensure_shape(x, [None]),
        'y': tf.ensure_shape(y, []),
      }
    )
    values = values.ignore_errors().filter(lambda v: tf.size(v['x']) != 1)
    return caches.cached(cache, values, [key, flag])

  keys = tf.data.Dataset.from_tensor_slices(
    (tf.constant([3, 1, 3, 3, 2, 2, 1], tf.int64), [0, 0, 0, 1, 0, 0, 0])
  )
  found = list(keys.flat_map(element).as_numpy_iterator())
  # A missing element, or one that cannot be made, is tried again.
  assert made == [3, 1, 3, 2, 2, 1]
  assert [each['y'] for each in found] == [b'xxx'] * 3
  for each in found:
    np.testing.assert_array_equal(each['x'], [7, 7, 7])


@pytest.fixture
def path(tmp_path):
  """A file of good records, one with a bad mask and one without an image."""
  path = example_records.write(tmp_path / 'a.tfrecord', SIZES)
  contents = [
    records.read_record(records.index_records(path), row)
    for row in range(len(SIZES))
  ]
  image, boxes, masks = example_records.rectangles(50, 50, 3)
  bad_masks = [masks[0], b'none', masks[2]]
  jpeg = example_records.jpeg(image)
  contents += [
    example_records.record(jpeg, 1, (50, 50), boxes, bad_masks),
    example_records.record(b'none', 2, (50, 50), boxes, masks),
  ]
  path = str(tmp_path / 'b.tfrecord')
  records.write_records(path, contents)
  return path


@pytest.mark.slow
def test_batches_do_not_depend_on_the_cache(path):
  iterators = {
    cache: input_pipeline.train_batches(
      path,
      (CANVAS,),
      batch_size=2,
      mask_size=14,
      max_instances=4,
      num_threads=2,
      max_unreadable_share=1.0,
      cache=cache,
    )
    for cache in caches.MODES
  }
  # Six epochs, so that the cache is used.
  for _ in range(21):
    first, *others = (next(iterator) for iterator in iterators.values())
    for batch in others:
      plain_rows.assert_equal(batch, first)
  first, *others = iterators.values()
  assert set(first.counts) == {'unusable_mask', 'unusable_image'}
  for iterator in others:
    assert iterator.counts == first.counts
    assert iterator.position == first.position


def test_cached_batches_equal_the_oracle(tmp_path):
  path = example_records.write(tmp_path / 'a.tfrecord', SIZES)
  sizes = {'mask_size': 28, 'max_instances': 3}
  iterator = input_pipeline.train_batches(
    path, (CANVAS,), batch_size=1, seed=3, cache='rows', **sizes
  )
  index = records.index_records(path)
  expected = plain_rows.train_rows(index, CANVAS, seed=3, **sizes)
  for row, batch in zip(itertools.islice(expected, 20), iterator):
    plain_rows.assert_equal(tf.nest.map_structure(lambda x: x[0], batch), row)


@pytest.mark.parametrize(
  'gib, dtype, flip, expected',
  [
    # 100,000 images of 832x1344 are 312 GiB, their records 15 GiB.
    (640, 'uint8', False, 'rows'),
    (640, 'uint8', True, 'records'),
    (1280, 'uint8', True, 'rows'),
    (1280, 'float32', True, 'records'),
    (31, 'uint8', True, 'nothing'),
    (44, 'uint8', True, 'nothing'),  # Under Habana's 45 GiB.
    (46, 'uint8', True, 'records'),
    (None, 'uint8', True, 'nothing'),
  ],
)
def test_the_mode_follows_the_memory(monkeypatch, gib, dtype, flip, expected):
  monkeypatch.delenv('OMPI_COMM_WORLD_LOCAL_SIZE', raising=False)
  limit = None if gib is None else gib * GIB
  monkeypatch.setattr(caches, 'memory_bytes', lambda: limit)
  count = 100_000
  index = records.RecordIndex(
    files=('x',),
    file_indices=np.zeros(count, np.int32),
    offsets=np.zeros(count, np.int64),
    lengths=np.full(count, 160_000),
    image_ids=np.arange(count),
    heights=np.full(count, 416, np.int32),
    widths=np.full(count, 672, np.int32),
  )
  options = transforms.TransformOptions(image_dtype=dtype, flip=flip)
  fits = np.tile([832, 1344], (count, 1))
  assert caches.choose_mode(index, fits, options) == expected


def test_a_run_chooses_a_mode_unless_it_is_given(path, monkeypatch):
  class AskedError(Exception):
    pass

  def choose(index, fits, options):
    assert len(index) == 7
    np.testing.assert_array_equal(fits, np.tile(CANVAS, (7, 1)))
    raise AskedError

  monkeypatch.setattr(caches, 'choose_mode', choose)
  with pytest.raises(AskedError):
    input_pipeline.train_batches(path, (CANVAS,), batch_size=2)
  input_pipeline.train_batches(path, (CANVAS,), batch_size=2, cache='nothing')


MACHINE = {'proc/meminfo': 'MemTotal:       67108864 kB\nMemFree: 1 kB\n'}
GROUPS, OLD_GROUPS = (
  'sys/fs/cgroup/memory.max',
  'sys/fs/cgroup/memory/memory.limit_in_bytes',
)


@pytest.mark.parametrize(
  'files, expected',
  [
    ({}, None),
    (MACHINE, 64 * GIB),
    ({**MACHINE, GROUPS: f'{24 * GIB}\n'}, 24 * GIB),
    ({**MACHINE, GROUPS: 'max\n'}, 64 * GIB),
    # Version 1: a number above any memory means no limit.
    ({**MACHINE, OLD_GROUPS: '9223372036854771712\n'}, 64 * GIB),
    ({OLD_GROUPS: f'{8 * GIB}\n'}, 8 * GIB),
  ],
)
def test_the_lowest_limit_of_memory_counts(tmp_path, files, expected):
  for name, text in files.items():
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  assert caches.memory_bytes(tmp_path) == expected


@pytest.mark.parametrize(
  'gib, processes, limit, is_plenty',
  [
    (None, None, None, False),
    (24, None, 12, False),
    (24, 3, 4, False),
    (44, None, 22, False),  # Under Habana's 45 GiB.
    (45, None, 22.5, True),
    (45, 2, 11.25, True),  # Two processes of a machine cache everything twice.
  ],
)
def test_half_of_the_memory_is_for_the_cache_from_45_gib_on(
  monkeypatch, gib, processes, limit, is_plenty
):
  name = 'OMPI_COMM_WORLD_LOCAL_SIZE'
  monkeypatch.delenv(name, raising=False)
  if processes:
    monkeypatch.setenv(name, str(processes))
  memory, limit = (x and int(x * GIB) for x in (gib, limit))
  monkeypatch.setattr(caches, 'memory_bytes', lambda: memory)
  assert caches.limit_bytes() == limit
  assert caches.has_plenty_of_memory() == is_plenty
  assert caches.fits_in_memory(limit or 1) == is_plenty
  assert not caches.fits_in_memory((limit or 1) + 1)


def test_memory_of_this_machine():
  assert caches.memory_bytes() > 2**28
