"""Record files: written, indexed, read and parsed."""

import json
import pathlib
import shutil

import example_records
import numpy as np
import pytest
import small_disk
import tensorflow as tf
from example_records import example

from maskrcnn_jax.datasets import images, record_file, record_index, records
from maskrcnn_jax.errors import UserError


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
  """An empty cache of indices for every test."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


def _write(path, *image_ids, **changes):
  made = (records.encode_record(example(k, **changes)) for k in image_ids)
  assert records.write_records(path, made) == len(image_ids)
  return str(path)


def test_round_trip(tmp_path):
  ids = [1, 2**24 + 1, 2**63 - 1, -5]
  path = _write(tmp_path / 'a.tfrecord', *ids)
  index = records.index_records(path)
  np.testing.assert_array_equal(index.image_ids, ids)
  np.testing.assert_array_equal(index.heights, [6] * 4)
  np.testing.assert_array_equal(index.widths, [8] * 4)
  for row, image_id in enumerate(ids):
    record = records.read_record(index, row)
    assert len(record) == index.lengths[row]
    parsed = records.parse_record(record)
    assert parsed['image_id'] == image_id
    assert parsed['filename'] == f'{image_id}.png'.encode()
    np.testing.assert_allclose(
      parsed['boxes'], [[1 / 6, 2 / 8, 4 / 6, 6 / 8]] * 2, rtol=1e-7
    )
    np.testing.assert_array_equal(parsed['classes'], [1, 2])
    assert parsed['masks'].shape == (2,)


def test_parses_inside_tf_data(tmp_path):
  path = _write(tmp_path / 'a.tfrecord', 4, classes=(), names='')
  (parsed,) = tf.data.TFRecordDataset(path).map(records.parse_record)
  assert parsed['boxes'].shape == (0, 4)
  assert parsed['masks'].shape == (0,)
  assert parsed['is_crowd'].dtype == tf.bool


def _read_at(index, rows):
  """Records of an index, read inside tf.data."""
  paths = [index.files[index.file_indices[row]] for row in rows]
  places = (paths, index.offsets[rows], index.lengths[rows])
  places = tf.data.Dataset.from_tensor_slices(places)
  return list(places.flat_map(records.record_at).as_numpy_iterator())


def test_records_are_read_as_by_tensorflow(tmp_path):
  paths = [
    _write(tmp_path / f'{k}.tfrecord', *range(k * 10, k * 10 + 3))
    for k in range(3)
  ]
  index = records.index_records(str(tmp_path / '*.tfrecord'))
  expected = list(tf.data.TFRecordDataset(paths).as_numpy_iterator())
  assert [records.read_record(index, row) for row in range(9)] == expected
  rows = [8, 0, 4, 0, 7]
  assert _read_at(index, rows) == [expected[row] for row in rows]


def test_a_corrupt_record_cannot_be_read_at_its_location(tmp_path):
  path = pathlib.Path(_write(tmp_path / 'a.tfrecord', 1, 2, 3))
  index = records.index_records(str(path))
  content = path.read_bytes()
  corrupt = bytearray(content)
  corrupt[index.offsets[1] + 100] ^= 1
  path.write_bytes(corrupt)
  assert len(_read_at(index, [0, 2])) == 2
  with pytest.raises(tf.errors.DataLossError):
    _read_at(index, [1])
  path.write_bytes(content[: index.offsets[2]])
  with pytest.raises(tf.errors.InvalidArgumentError, match='empty'):
    _read_at(index, [2])
  path.write_bytes(content[: index.offsets[2] + 20])
  with pytest.raises(tf.errors.DataLossError):
    _read_at(index, [2])
  path.unlink()
  with pytest.raises(tf.errors.NotFoundError):
    _read_at(index, [0])
  # Where errors are ignored, none is retried forever.
  for row in range(3):
    place = (str(path), index.offsets[row], index.lengths[row])
    assert not list(records.record_at(*place).ignore_errors())


_COUNTERS = pathlib.Path('/proc/self/io')


@pytest.mark.skipif(not _COUNTERS.exists(), reason='Linux only')
def test_no_more_than_the_record_is_read(tmp_path):
  path = str(tmp_path / 'a.tfrecord')
  (record,) = tf.data.TFRecordDataset(
    _write(tmp_path / 'small.tfrecord', 1)
  ).as_numpy_iterator()
  records.write_records(path, [record] * 10_000)
  assert pathlib.Path(path).stat().st_size > 4e6

  def bytes_read():
    return int(_COUNTERS.read_text().split()[1])

  index = records.index_records(path)
  _read_at(index, [1])
  before = bytes_read()
  assert _read_at(index, [5000]) == [record]
  assert bytes_read() - before < len(record) + 20_000


def test_patterns(tmp_path):
  for name in ('b', 'a', 'c'):
    _write(tmp_path / f'{name}.tfrecord', ord(name))
  a, b, c = (str(tmp_path / f'{name}.tfrecord') for name in 'abc')
  assert record_index.find_files(f'{b},{a}') == (a, b)
  assert record_index.find_files([b, str(tmp_path / '[ab]*')]) == (a, b)
  assert record_index.find_files(f'{tmp_path}/*.tfrecord') == (a, b, c)
  for nothing in (f'{tmp_path}/*.none', '', f'{a},{tmp_path}/d.tfrecord'):
    with pytest.raises(UserError) as error:
      record_index.find_files(nothing)
    assert error.value.argument == 'file_pattern'
  with pytest.raises(UserError, match=r'dataset_info\.json') as error:
    record_index.find_files(str(tmp_path))
  assert error.value.path == str(tmp_path)


def test_tfds_directory(tmp_path):
  _write(tmp_path / 'x-train.tfrecord-00000-of-00001', 1)
  for shard in range(2):
    _write(tmp_path / f'x-val.tfrecord-0000{shard}-of-00002', 2 + shard)
  template = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
  splits = [
    {'name': name, 'shardLengths': ['1'] * n, 'filepathTemplate': template}
    for name, n in (('train', 1), ('val', 2))
  ]
  info = {'name': 'x', 'fileFormat': 'tfrecord', 'splits': splits}
  (tmp_path / 'dataset_info.json').write_text(json.dumps(info))
  assert list(records.index_records(f'{tmp_path}:val').image_ids) == [2, 3]
  assert list(records.index_records(str(tmp_path), 'train').image_ids) == [1]
  for pattern, given in ((f'{tmp_path}:test', 'test'), (tmp_path, None)):
    with pytest.raises(UserError) as error:
      records.index_records(str(pattern))
    assert (error.value.given, error.value.wanted) == (given, ['train', 'val'])
  info['fileFormat'] = 'array_record'
  (tmp_path / 'dataset_info.json').write_text(json.dumps(info))
  with pytest.raises(UserError) as error:
    records.index_records(f'{tmp_path}:val')
  assert error.value.given == 'array_record'


def _index_error(path):
  """The error of indexing a file."""
  with pytest.raises(UserError) as error:
    records.index_records(str(path))
  assert error.value.path == str(path)
  return error.value


def test_a_truncated_or_corrupt_file_is_named_with_the_byte(tmp_path):
  path = pathlib.Path(_write(tmp_path / 'a.tfrecord', 1, 2, 3))
  content = path.read_bytes()
  second, third = records.index_records(str(path)).offsets[1:]
  for end in (third + 5, third + 12, third + 200, len(content) - 1):
    path.write_bytes(content[:end])
    assert _index_error(path).given == third
  corrupt = bytearray(content)
  corrupt[second] ^= 1
  path.write_bytes(corrupt)
  assert _index_error(path).given == second
  path.write_bytes(b'')
  _index_error(path)


def test_a_corrupt_record_is_named_when_read(tmp_path):
  path = pathlib.Path(_write(tmp_path / 'a.tfrecord', 1, 2))
  index = records.index_records(str(path))
  content = bytearray(path.read_bytes())
  content[index.offsets[1] + 100] ^= 1
  path.write_bytes(content)
  assert records.read_record(index, 0)
  with pytest.raises(UserError) as error:
    records.read_record(index, 1)
  assert (error.value.path, error.value.item) == (str(path), 2)
  assert error.value.given == index.offsets[1]


def _change(path, name, values=None):
  """Rewrites a file of one record with other bytes in a feature, or without."""
  (record,) = tf.data.TFRecordDataset(path).as_numpy_iterator()
  content = tf.train.Example.FromString(record)
  features = content.features.feature
  if values is None:
    del features[name]
  else:
    features[name].bytes_list.value[:] = values
  with tf.io.TFRecordWriter(path) as writer:
    writer.write(content.SerializeToString())


@pytest.mark.parametrize(
  'name, values, given',
  [
    ('image/object/mask', None, 'image 1'),
    ('image/object/mask', [], 'image 1'),
    ('image/height', None, 'None'),
    ('image/source_id', [b'x7'], "b'x7'"),
    ('image/source_id', [b'2008_7'], "b'2008_7'"),
  ],
)
def test_an_unusable_record_is_named(tmp_path, name, values, given):
  path = _write(tmp_path / 'a.tfrecord', 1)
  _change(path, name, values)
  error = _index_error(path)
  assert name in str(error) and given in str(error)


@pytest.mark.parametrize(
  'name, side', [('height', 2**40), ('width', -5), ('height', 0)]
)
def test_a_side_must_be_a_number_of_pixels(tmp_path, name, side):
  content = example_records.record(b'', 7, (40, 50))
  message = tf.train.Example.FromString(content)
  message.features.feature[f'image/{name}'].int64_list.value[:] = [side]
  records.write_records(
    tmp_path / 'a.tfrecord', [content, message.SerializeToString()]
  )
  error = _index_error(tmp_path / 'a.tfrecord')
  assert (error.item, error.given) == (7, len(content) + 16)
  assert f'image/{name}' in str(error)


def test_records_are_within_the_budget_of_pixels(tmp_path, monkeypatch):
  contents = [
    example_records.record(b'', image_id, (40, side))
    for image_id, side in ((7, 50), (8, 51), (9, 30))
  ]
  records.write_records(tmp_path / 'a.tfrecord', contents)
  assert len(records.index_records(str(tmp_path / 'a.tfrecord'))) == 3
  monkeypatch.setattr(images, '_limit', 40 * 50)
  error = _index_error(tmp_path / 'a.tfrecord')
  assert error.item == 8 and '40 x 51' in str(error)


@pytest.mark.parametrize(
  'content',
  [
    b'\xff\xff\xff not an example',
    b'\xff' * 400_000,
    b'\x0a' + b'\x80' * 100_000 + b'\x01',
    b'\x0a\x02\x0a\x00',
    b'\x0a\x0a\x0a\x08' + b'\x0a\x02\xff\xfe\x12\x00\x12\x00',
  ],
)
def test_other_records_are_refused(tmp_path, content):
  path = str(tmp_path / 'a.tfrecord')
  with tf.io.TFRecordWriter(path) as writer:
    writer.write(content)
  assert _index_error(path).given == 0
  with pytest.raises(UserError) as error:
    list(record_file.scan_objects(path))
  assert (error.value.path, error.value.given) == (path, 0)


def test_a_list_ends_with_its_feature(tmp_path):
  """The label's packed list claims all bytes that follow."""
  content = example_records.record(b'', 7, (40, 50), [[0, 0, 9, 9]], [b'x'])
  label = content.index(b'class/label') + len('class/label')
  place = content.index(b'\x0a\x01\x01', label)
  corrupt = content[: place + 1] + b'\x7f' + content[place + 2 :]
  path = tmp_path / 'a.tfrecord'
  records.write_records(path, [corrupt])
  for scan in (record_file.scan, record_file.scan_objects):
    with pytest.raises(UserError) as error:
      list(scan(str(path)))
    assert (error.value.path, error.value.given) == (str(path), 0)


def test_an_image_has_a_sane_number_of_objects(monkeypatch):
  content = example_records.record(
    b'', 7, (40, 50), [[0, 0, 9, 9]] * 3, [b''] * 3
  )
  monkeypatch.setattr(records, 'MAX_OBJECTS', 3)
  assert len(records.parse_record(content)['classes']) == 3
  monkeypatch.setattr(records, 'MAX_OBJECTS', 2)
  with pytest.raises(tf.errors.InvalidArgumentError, match='2 objects'):
    records.parse_record(content)


def test_a_box_that_is_not_finite_is_named(tmp_path):
  box, path = [[0, 0, float('nan'), 9]], tmp_path / 'a.tfrecord'
  content = example_records.record(b'', 7, (40, 50), box, [b''])
  records.write_records(path, [content])
  with pytest.raises(UserError) as error:
    records.read_objects(records.index_records(str(path)), 0)
  assert (error.value.path, error.value.item) == (str(path), 7)


@pytest.mark.parametrize(
  'text',
  [
    '[' * 100_000,
    '{"name": "x", "splits": ' + '[' * 100_000,
    '[]',
    '{}',
    '{"name": "x", "splits": 5}',
    '{"name": "x", "splits": [5]}',
    '{"name": "x", "splits": [{"name": "train"}]}',
    '{"name": "x", "splits": [{"name": "train", "shardLengths": 9}]}',
    *(
      '{"name": "x", "splits": [{"name": "train", "shardLengths": ["1"], '
      f'"filepathTemplate": "{template}"}}]}}'
      for template in (
        '../{DATASET}',
        '/etc/passwd',
        'a/../../b',
        '..',
        'C:/x',
        '{DATASET}' * 256,
        '\\u0000',
      )
    ),
  ],
)
def test_a_hostile_description_of_tfds_is_named(tmp_path, text):
  description = tmp_path / 'dataset_info.json'
  description.write_text(text)
  with pytest.raises(UserError) as error:
    record_index.find_files(str(tmp_path), 'train')
  assert error.value.path in (str(description), str(tmp_path))
  assert '\n' not in str(error.value) and len(str(error.value)) < 500


def test_a_template_is_no_format_string(tmp_path):
  name = '{DATASET:>999999999}{DATASET.__class__}{SPLIT}'
  entry = {'name': 'train', 'shardLengths': [1], 'filepathTemplate': name}
  description = json.dumps({'name': 'x', 'splits': [entry]})
  (tmp_path / 'dataset_info.json').write_text(description)
  expected = tmp_path / '{DATASET:>999999999}{DATASET.__class__}train'
  assert record_index.find_files(str(tmp_path)) == (str(expected),)


def test_masks_must_be_as_many_as_objects(tmp_path):
  path = _write(tmp_path / 'a.tfrecord', 9)
  _change(path, 'image/object/mask', [b'mask'])
  record = records.read_record(records.index_records(path), 0)
  with pytest.raises(tf.errors.InvalidArgumentError, match='image/object/mask'):
    records.parse_record(record)


def test_optional_features_have_defaults(tmp_path):
  path = _write(tmp_path / 'a.tfrecord', 1)
  _change(path, 'image/object/is_crowd')
  _change(path, 'image/object/area')
  parsed = records.parse_record(
    records.read_record(records.index_records(path), 0)
  )
  np.testing.assert_array_equal(parsed['is_crowd'], [False, False])
  np.testing.assert_array_equal(parsed['area'], [0, 0])


def test_large_sets_are_indexed_once(tmp_path, cache_folder, monkeypatch):
  path = _write(tmp_path / 'a.tfrecord', 1, 2)
  records.index_records(path)
  assert not cache_folder.exists()  # Two records are not worth a file.
  monkeypatch.setattr(record_index, '_CACHED_FROM_RECORDS', 2)
  first = records.index_records(path)
  (cached,) = (cache_folder / 'maskrcnn_jax').iterdir()

  def fail(path):
    raise AssertionError(f'{path} was read again.')

  with monkeypatch.context() as patch:
    patch.setattr(record_file, 'scan', fail)
    again = records.index_records(path)
  np.testing.assert_array_equal(again.offsets, first.offsets)
  assert again.files == first.files
  cached.write_bytes(b'broken')
  np.testing.assert_array_equal(
    records.index_records(path).image_ids, first.image_ids
  )
  shutil.copy(_write(tmp_path / 'b.tfrecord', 5, 6, 7), path)
  np.testing.assert_array_equal(
    records.index_records(path).image_ids, [5, 6, 7]
  )


def test_existing_file_is_not_overwritten(tmp_path):
  path = _write(tmp_path / 'a.tfrecord', 1)
  with pytest.raises(FileExistsError, match=r'a\.tfrecord'):
    records.write_records(path, [])


def test_nothing_is_left_of_a_failed_file(tmp_path):
  def fail():
    yield records.encode_record(example(1))
    raise RuntimeError

  with pytest.raises(RuntimeError):
    records.write_records(tmp_path / 'a.tfrecord', fail())
  assert not list(tmp_path.iterdir())


def test_full_disk_is_named_and_nothing_is_left(tmp_path):
  with small_disk.mounted(tmp_path / 'disk', 2**20) as disk:
    paths = [disk / f'{k}.tfrecord' for k in range(3)]
    with (
      pytest.raises(OSError, match=r'/\d\.tfrecord') as caught,
      records.open_writers(paths) as writers,
    ):
      for k in range(30):
        writers[k % 3].write(bytes(100_000))
    assert caught.value.filename in map(str, paths)
    assert not list(disk.iterdir())
