"""Class ids and category ids of the annotations of an evaluation."""

import json

import numpy as np
import pytest
import tiny_run

from maskrcnn_jax.datasets import examples, records
from maskrcnn_jax.training import evaluation_data


def write(tmp_path, ids):
  """A data set whose annotations have other category ids."""
  pattern, path = tiny_run.write_dataset(tmp_path)
  with open(path, encoding='utf-8') as file:
    truth = json.load(file)
  truth['categories'] = [{'id': i, 'name': f'n{i}'} for i in ids]
  with open(path, 'w', encoding='utf-8') as file:
    json.dump(truth, file)
  return pattern, path


def test_ids_from_1_are_classes(tmp_path):
  _, path = write(tmp_path, [2, 5])
  assert evaluation_data.class_names(path) == {2: 'n2', 5: 'n5'}
  assert evaluation_data.category_ids(path) == {}
  assert evaluation_data.saved_classes(path) == {2: 'n2', 5: 'n5'}


def test_ids_from_0_are_one_less_than_classes(tmp_path):
  _, path = write(tmp_path, [0, 4])
  assert evaluation_data.class_names(path) == {1: 'n0', 5: 'n4'}
  assert evaluation_data.category_ids(path) == {1: 0, 5: 4}
  assert evaluation_data.saved_classes(path)[5] == {
    'name': 'n4',
    'category_id': 4,
  }


def test_no_file_tells_nothing(tmp_path):
  assert evaluation_data.class_names(None) == {}
  assert evaluation_data.category_ids(str(tmp_path / 'none.json')) == {}


@pytest.mark.parametrize(
  'ids, num_classes, message',
  [
    ([1, 4], 4, 'category id 4; model.num_classes is 4, so ids may be 1 to 3'),
    ([1, 4], 4, r'Set model.num_classes=5 \(background is one\)'),
    ([0, 3], 4, 'category id 3; model.num_classes is 4, so ids may be 0 to 2'),
    ([0, 3], 4, 'Set model.num_classes=5 .*ids from 0 count one more'),
  ],
)
def test_a_wrong_number_of_classes_is_told_with_the_right_one(
  tmp_path, ids, num_classes, message
):
  pattern, path = write(tmp_path, ids)
  with pytest.raises(ValueError, match=message):
    evaluation_data.check_annotations(pattern, None, path, num_classes)
  assert evaluation_data.check_annotations(pattern, None, path, 5) == 3


def write_records(path, classes, names, category_ids=None):
  """One image whose objects have these classes."""
  count = len(classes)
  example = examples.ImageExample(
    encoded=b'image',
    filename='a.jpg',
    image_id=7,
    height=48,
    width=64,
    boxes=np.tile([[1.0, 2.0, 9.0, 8.0]], (count, 1)),
    classes=np.array(classes),
    class_names=names,
    is_crowd=np.zeros(count, bool),
    areas=np.ones(count),
    masks=[b'mask'] * count,
    category_ids=category_ids and np.array(category_ids),
  )
  records.write_records(path, [records.encode_record(example)])
  return str(path)


def test_records_with_ids_from_0_need_such_annotations(tmp_path):
  _, path = write(tmp_path, [1, 2])
  own = write_records(tmp_path / 'own', [2, 3], ['n1', 'n2'], [1, 2])
  with pytest.raises(ValueError, match='has category 1 as class 2, as it was'):
    evaluation_data.check_annotations(own, None, path, 4)
  (tmp_path / 'zero').mkdir()
  _, path = write(tmp_path / 'zero', [0, 1, 2])
  assert evaluation_data.check_annotations(own, None, path, 4) == 1


def test_a_class_of_two_names_is_a_warning(tmp_path, caplog):
  _, path = write(tmp_path, [1, 2])
  own = write_records(tmp_path / 'own', [1, 2], ['n1', 'cat'])
  evaluation_data.check_annotations(own, None, path, 3)
  (record,) = caplog.records
  assert "Class 2 is 'cat' in" in record.getMessage()
  assert "and 'n2' in" in record.getMessage()


def test_classes_of_records_are_added_to_those_of_the_annotations(tmp_path):
  _, path = write(tmp_path, [0, 1])
  own = write_records(tmp_path / 'own', [1, 4], ['cat', 'cow'], [0, 3])
  assert evaluation_data.saved_classes(path, own) == {
    1: {'name': 'n0', 'category_id': 0},
    2: {'name': 'n1', 'category_id': 1},
    4: {'name': 'cow', 'category_id': 3},
  }
  plain = write_records(tmp_path / 'plain', [2, 5], ['', 'cow'])
  assert evaluation_data.saved_classes(None, plain) == {2: '2', 5: 'cow'}
