"""Classes of a run, and validation sets that contradict them."""

import drawn_checkpoint
import pytest
import tiny_run
from class_files import write_annotations, write_records

from maskrcnn_jax.checkpoints import store
from maskrcnn_jax.datasets import categories
from maskrcnn_jax.datasets.categories import Category
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.training import class_checks, finetuning, loop


def classes_of(names):
  return {k: Category(name, k) for k, name in names.items()}


@pytest.mark.parametrize(
  'given, item, wanted',
  [
    ({1: 'red', 2: 'blue'}, None, None),
    ({2: 'Blue'}, None, None),  # A subset.
    ({1: '', 2: '2'}, None, None),  # No names.
    ({1: 'red', 3: 'green'}, None, None),  # A class that is not trained.
    ({1: 'blue', 2: 'red'}, 1, 'red'),
    ({1: 'red', 2: 'green'}, 2, 'blue'),
    ({3: 'red'}, 3, None),
  ],
)
def test_validation_classes_must_be_those_of_training(given, item, wanted):
  def check():
    categories.check_same_classes(
      classes_of({1: 'red', 2: 'blue'}),
      classes_of(given),
      'train',
      'evaluation.annotations_file',
      'val.json',
    )

  if item is None:
    check()
    return
  with pytest.raises(UserError) as error:
    check()
  assert error.value.argument == 'evaluation.annotations_file'
  assert error.value.path == 'val.json'
  assert error.value.item == item
  assert (error.value.given, error.value.wanted) == (given[item], wanted)


def test_unnamed_training_classes_contradict_nothing():
  categories.check_same_classes(
    classes_of({1: '', 2: ''}), classes_of({1: 'red'}), 'train', 'x', 'y'
  )


def run_config(pattern, evaluation_pattern, annotations_file):
  config = tiny_run.make_config(pattern, annotations_file)
  config.evaluation.file_pattern = evaluation_pattern
  return config


def test_annotations_complete_the_classes_of_records(tmp_path, caplog):
  path = write_annotations(tmp_path / 'a.json', {0: 'cat', 1: 'n1', 4: 'n4'})
  own = write_records(
    tmp_path / 'own', [1, 2, 4], ['Cat', '', 'cow'], [0, 1, 3]
  )
  config = run_config(own, str(tmp_path / 'none'), path)
  found, _ = class_checks.training_classes(config)
  assert categories.saved_classes(found) == {
    1: {'name': 'Cat', 'category_id': 0},  # As in training.
    2: {'name': 'n1', 'category_id': 1},
    4: {'name': 'cow', 'category_id': 3},
    5: {'name': 'n4', 'category_id': 4},
  }
  (record,) = caplog.records
  assert '[2]' in record.getMessage() and path in record.getMessage()


def test_classes_without_any_names_have_their_numbers(tmp_path, caplog):
  own = write_records(tmp_path / 'own', [2, 5], ['', 'cow'])
  config = run_config(own, own, None)
  found, _ = class_checks.training_classes(config)
  assert categories.saved_classes(found) == {2: '2', 5: 'cow'}
  (record,) = caplog.records
  assert '[2]' in record.getMessage() and own in record.getMessage()


def test_classes_of_validation_alone_are_named(tmp_path, caplog):
  own = write_records(tmp_path / 'own', [1], ['red'])
  val = write_records(tmp_path / 'val', [1, 3], ['red', 'green'])
  found, recorded = class_checks.training_classes(run_config(own, val, None))
  assert (list(found), list(recorded)) == ([1], [1, 3])
  (record,) = caplog.records
  assert record.args == ([3], val, own)


@pytest.mark.parametrize('is_crowd', [None, False, True])
def test_a_scored_class_must_be_learnt(tmp_path, is_crowd):
  """Class 3 has nothing to train on, a crowd at most, unless it is scored."""
  own, crowds = ([1], [False]) if is_crowd is None else ([1, 3], [False, True])
  names = {1: 'red', 3: 'green'}
  train = write_records(
    tmp_path / 'train', own, [names[i] for i in own], crowds=crowds
  )
  scored = bool(is_crowd)  # As a crowd it is not.
  val = write_records(
    tmp_path / 'val', [1, 3], ['red', 'green'], crowds=[False, scored]
  )
  # A list of categories has no objects.
  listed = write_annotations(tmp_path / 'a.json', {1: 'red', 3: 'green'})
  config = run_config(train, val, listed)
  if is_crowd:
    assert list(class_checks.run_classes(config, tmp_path / 'run')) == [1, 3]
    return
  with pytest.raises(UserError) as error:
    class_checks.run_classes(config, tmp_path / 'run')
  assert error.value.argument == 'training.allow_empty_classes'
  assert error.value.path == val
  assert (error.value.item, error.value.given) == (3, [3])
  config.training.allow_empty_classes = True
  assert list(class_checks.run_classes(config, tmp_path / 'run')) == [1, 3]


@pytest.fixture(params=['json', 'records'])
def swapped(tmp_path, request):
  """A config whose validation set numbers two classes otherwise.

  Yields it with the field, the file at fault.
  """
  train = write_records(tmp_path / 'train', [1, 2], ['red', 'blue'])
  val = write_records(tmp_path / 'val', [1, 2], ['blue', 'red'])
  annotations = ''
  if request.param == 'json':
    annotations = write_annotations(
      tmp_path / 'val.json', {1: 'blue', 2: 'red'}
    )
    return (
      run_config(train, val, annotations),
      'evaluation.annotations_file',
      annotations,
    )
  return run_config(train, val, annotations), 'evaluation.file_pattern', val


def check_refused(swapped, function, *arguments):
  config, field, path = swapped
  with pytest.raises(UserError) as error:
    function(config, *arguments)
  assert error.value.argument == field
  assert error.value.path == path
  assert error.value.item == 1
  assert (error.value.given, error.value.wanted) == ('blue', 'red')


@pytest.mark.parametrize('function', [loop.train, loop.train_and_evaluate])
def test_swapped_classes_are_refused_before_the_first_step(
  swapped, function, tmp_path
):
  check_refused(swapped, function, tmp_path / 'run')
  assert store.latest_step(tmp_path / 'run') is None
  assert not (tmp_path / 'run' / 'config.json').exists()


def test_swapped_classes_are_refused_where_classes_are_counted(
  swapped, tmp_path
):
  with swapped[0].unlocked():
    swapped[0].model.num_classes = None
  check_refused(swapped, finetuning.complete, tmp_path / 'run')


@pytest.mark.parametrize('function', [loop.evaluate, loop.train])
def test_the_classes_of_a_checkpoint_count(swapped, function, tmp_path):
  classes = {1: 'red', 2: 'blue'}
  workdir = drawn_checkpoint.write(
    tmp_path / 'run', swapped[0], step=2, classes=classes
  )
  # It goes on with what it has learned, whatever the records are now.
  swapped[0].input.file_pattern = swapped[0].evaluation.file_pattern
  check_refused(swapped, function, workdir)
  if function is loop.evaluate:
    swapped_source = (tmp_path / 'other', None, str(workdir))
    check_refused(swapped, loop.evaluate, *swapped_source)


def test_a_run_does_not_go_on_with_swapped_classes(tmp_path):
  train = write_records(tmp_path / 'train', [1, 2], ['blue', 'red'])
  val = write_records(tmp_path / 'val', [1, 2], ['red', 'blue'])
  config = run_config(train, val, '')
  workdir = drawn_checkpoint.write(
    tmp_path / 'run', config, step=2, classes={1: 'red', 2: 'blue'}
  )
  check_refused((config, 'input.file_pattern', train), loop.train, workdir)
