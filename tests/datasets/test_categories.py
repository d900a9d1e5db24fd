"""Categories of records, read without their images."""

import dataclasses

import numpy as np
import pytest
from example_records import example

from maskrcnn_jax.datasets import categories, records
from maskrcnn_jax.datasets.categories import Category
from maskrcnn_jax.errors import UserError


def write(path, *contents):
  records.write_records(path, map(records.encode_record, contents))
  return str(path)


def test_all_classes_of_all_files_in_order(tmp_path):
  # Numbers of one, two and three bytes.
  write(tmp_path / 'a.tfrecord', example(1, [300, 2, 2], ['z', 'b', 'b']))
  write(
    tmp_path / 'b.tfrecord',
    example(2, [], []),
    example(3, [70_000, 2], ['ü', 'b']),
  )
  found = categories.read_from_records(str(tmp_path / '*.tfrecord'))
  assert list(found.items()) == [
    (2, Category('b', 2)),
    (300, Category('z', 300)),
    (70_000, Category('ü', 70_000)),
  ]


def test_category_ids_that_differ_are_kept(tmp_path):
  path = write(tmp_path / 'a.tfrecord', example(1, [1, 5], ['a', 'b'], [0, 4]))
  assert categories.read_from_records(path) == {
    1: Category('a', 0),
    5: Category('b', 4),
  }
  index = records.index_records(path)
  objects = records.read_objects(index, 0)
  assert [(x['class_id'], x['category_id']) for x in objects] == [
    (1, 0),
    (5, 4),
  ]
  # Nothing else of the pipeline sees them.
  parsed = records.parse_record(records.read_record(index, 0))
  assert parsed['classes'].numpy().tolist() == [1, 5]


@pytest.mark.parametrize('labels, crowds', [([], []), ([1, 1], [1, 1])])
def test_records_to_train_on_have_an_object(tmp_path, labels, crowds):
  names = ['a'] * len(labels)
  content = dataclasses.replace(
    example(1, labels, names), is_crowd=np.array(crowds, bool)
  )
  path = write(tmp_path / 'a.tfrecord', content)
  categories.read_from_records(path)
  with pytest.raises(UserError) as error:
    categories.read_from_records(path, to_train=True)
  assert error.value.argument == 'input.file_pattern'
  assert error.value.path == path


def test_classes_of_crowds_are_named(tmp_path, caplog):
  content = dataclasses.replace(
    example(1, [1, 4, 4], ['a', 'b', 'b']), is_crowd=np.array([0, 1, 1], bool)
  )
  path = write(tmp_path / 'a.tfrecord', content)
  assert list(categories.read_from_records(path, to_train=True)) == [1, 4]
  (record,) = caplog.records
  assert record.args == (path, [4])


def test_a_truncated_file_is_named(tmp_path):
  path = tmp_path / 'a.tfrecord'
  write(path, example(1, [1], ['a']))
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(UserError) as error:
    categories.read_from_records(str(path))
  assert (error.value.path, error.value.given) == (str(path), 0)
