"""Annotations to score against: their classes, and records that fit them."""

import functools
import json

import pytest
from class_files import write_annotations, write_records

from maskrcnn_jax.datasets import categories
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import annotations


def test_annotated_ids_from_1_are_classes(tmp_path):
  path = write_annotations(tmp_path / 'a.json', {2: 'n2', 5: 'n5'})
  found = annotations.read_classes(path)
  assert categories.names_of(found) == {2: 'n2', 5: 'n5'}
  assert categories.category_ids(found) == {}
  assert categories.saved_classes(found) == {2: 'n2', 5: 'n5'}


def test_annotated_ids_from_0_are_one_less_than_classes(tmp_path):
  path = write_annotations(tmp_path / 'a.json', {0: 'n0', 4: 'n4'})
  found = annotations.read_classes(path)
  assert categories.names_of(found) == {1: 'n0', 5: 'n4'}
  assert categories.category_ids(found) == {1: 0, 5: 4}
  saved = categories.saved_classes(found)
  assert saved[5] == {'name': 'n4', 'category_id': 4}


def test_a_missing_annotations_file_has_no_classes(tmp_path):
  assert annotations.read_classes(None) == {}
  assert annotations.read_classes(str(tmp_path / 'none.json')) == {}


@pytest.mark.parametrize(
  'ids, category_id, needed', [([1, 4], 4, 5), ([0, 3], 3, 5)]
)
def test_too_few_classes_of_a_model(tmp_path, ids, category_id, needed):
  path = write_annotations(tmp_path / 'a.json', {i: f'n{i}' for i in ids})
  pattern = write_records(tmp_path / 'own', [2], ['n1' if 0 in ids else ''])
  with pytest.raises(UserError) as error:
    annotations.check(pattern, None, path, 4)
  assert error.value.argument == 'model.num_classes'
  assert error.value.path == path
  assert error.value.item == category_id
  assert (error.value.given, error.value.wanted) == (4, needed)
  assert annotations.check(pattern, None, path, needed) == 1


def test_records_with_ids_from_0_need_such_annotations(tmp_path):
  path = write_annotations(tmp_path / 'one.json', {1: 'n1', 2: 'n2'})
  own = write_records(tmp_path / 'own', [2, 3], ['n1', 'n2'], [1, 2])
  with pytest.raises(UserError) as error:
    annotations.check(own, None, path, 4)
  assert error.value.path == path
  assert (error.value.item, error.value.given) == (2, 1)
  names = {0: 'n0', 1: 'n1', 2: 'n2'}
  path = write_annotations(tmp_path / 'zero.json', names)
  assert annotations.check(own, None, path, 4) == 1


@pytest.mark.parametrize(
  'changes, item',
  [({'category_id': 9}, 70), ({'category_id': [1]}, 70), ({'id': 71}, 71)],
)
def test_a_truth_that_cannot_be_scored_is_refused(tmp_path, changes, item):
  path = tmp_path / 'a.json'
  write_annotations(path, {1: 'n1'})
  truth = json.loads(path.read_text())
  entry = {'image_id': 7, 'category_id': 1, 'bbox': [1, 1, 8, 8]}
  truth['annotations'] = [{'id': 71, **entry}, {'id': 70, **entry, **changes}]
  path.write_text(json.dumps(truth))
  own = write_records(tmp_path / 'own', [1], ['n1'])
  with pytest.raises(UserError) as error:
    annotations.check(own, None, str(path), 3)
  assert (error.value.path, error.value.item) == (str(path), item)


def test_skipped_objects_of_a_truth_are_counted(tmp_path, caplog):
  path = tmp_path / 'a.json'
  write_annotations(path, {1: 'n1'})
  truth = json.loads(path.read_text())
  entry = {'image_id': 7, 'category_id': 1, 'bbox': [1, 1, 8, 8]}
  truth['annotations'] = [{'id': i, **entry} for i in (1, 2)]
  path.write_text(json.dumps(truth))
  own = write_records(tmp_path / 'own', [1], ['n1'])
  assert annotations.check(own, None, str(path), 3) == 1
  (record,) = caplog.records
  assert '2 unusable_mask' in record.getMessage()


def test_validation_images_need_ids_of_their_own(tmp_path):
  for name in 'ab':  # As of a copy, or of two sets that count from 1.
    write_records(tmp_path / f'{name}.tfrecord', [1], ['x'])
  pattern = f'{tmp_path}/*.tfrecord'
  path = write_annotations(tmp_path / 'a.json', {1: 'x'})
  check = functools.partial(annotations.check, pattern)
  with pytest.raises(UserError) as error:
    check(None, path, 2)
  assert error.value.argument == 'evaluation.file_pattern'
  assert error.value.path == str(tmp_path / 'b.tfrecord')
  assert error.value.item == 7
  assert check(1, path, 2) == 1


def test_records_and_annotations_must_agree_on_names(tmp_path):
  path = write_annotations(tmp_path / 'a.json', {1: 'n1', 2: 'n2'})
  own = write_records(tmp_path / 'own', [1, 2], ['n1', 'cat'])
  with pytest.raises(UserError) as error:
    annotations.check(own, None, path, 3)
  assert (error.value.path, error.value.item) == (path, 2)
  assert (error.value.given, error.value.wanted) == ('n2', 'cat')
