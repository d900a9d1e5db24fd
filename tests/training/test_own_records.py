"""Records of images and labels in a workdir: config fields and conflicts."""

import json

import labelme_set
import pytest
import tiny_run

from maskrcnn_jax.checkpoints import store, workdir_lock
from maskrcnn_jax.datasets import prepare, run_records
from maskrcnn_jax.datasets.run_data import RunData
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.training import own_records


@pytest.fixture(name='data', scope='module')
def fixture_data(tmp_path_factory):
  paths = map(str, labelme_set.write(tmp_path_factory.mktemp('data'), 5))
  return RunData(*paths, num_workers=1)


@pytest.fixture
def config():
  return tiny_run.make_config('none/train*', 'none.json').lock()


def test_the_config_names_the_records(data, config, tmp_path, caplog, capsys):
  caplog.set_level('INFO')
  own_records.complete(config, tmp_path / 'run', data)
  folder = tmp_path / 'run' / 'records'
  assert config.input.file_pattern == f'{folder}/train-*.tfrecord'
  assert config.evaluation.file_pattern == f'{folder}/val-*.tfrecord'
  assert config.evaluation.annotations_file == ''
  assert '4 images to train on, 1 to validate on' in caplog.text
  epochs = 4 * config.input.batch_size / 4
  assert f'are {epochs:.3g} epochs' in caplog.text
  assert 'read as labelme' in capsys.readouterr().out
  assert not (tmp_path / 'run' / workdir_lock.FILE).exists()


def test_records_are_prepared_once(data, config, tmp_path, monkeypatch):
  own_records.complete(config, tmp_path, data)
  expected = config.to_dict()
  monkeypatch.setattr(prepare, 'write', None)
  for again in (data, None):
    config = tiny_run.make_config('none/train*', 'none.json').lock()
    own_records.complete(config, tmp_path, again)
    assert config.to_dict() == expected


def test_a_field_of_the_user_wins_or_is_a_conflict(data, config, tmp_path):
  for field in ('input.file_pattern', 'evaluation.file_pattern'):
    with pytest.raises(UserError) as error:
      own_records.complete(config, tmp_path / 'run', data, [f'{field}=x'])
    assert error.value.argument == field
  assert not (tmp_path / 'run').exists()
  own_records.complete(config, tmp_path / 'run', data)
  for overrides in (
    ['evaluation.file_pattern=x', 'evaluation.annotations_file=y'],
    ['input.file_pattern=x'],
  ):
    config = tiny_run.make_config('x', 'y').lock()
    own_records.complete(config, tmp_path / 'run', None, overrides)
    assert config.evaluation.file_pattern == 'x'
    assert config.evaluation.annotations_file == 'y'
  assert config.input.file_pattern == 'x'


def test_nothing_changes_without_data_and_records(config, tmp_path):
  before = config.to_dict()
  own_records.complete(config, tmp_path, None)
  assert config.to_dict() == before


def test_a_run_on_other_records_is_not_continued(data, config, tmp_path):
  store.claim_workdir(tmp_path, config)
  with pytest.raises(UserError) as error:
    own_records.complete(config, tmp_path, data)
  assert error.value.argument == '--workdir'
  assert error.value.given == 'none/train*'
  assert not run_records.is_prepared(tmp_path)


def test_one_command_at_a_time_prepares(data, config, tmp_path):
  with workdir_lock.held(tmp_path), pytest.raises(UserError) as error:
    own_records.complete(config, tmp_path, data)
  assert error.value.path == str(tmp_path)
  assert not run_records.is_prepared(tmp_path)


def test_a_run_without_validation_names_none(config, data, tmp_path):
  workdir = tmp_path / 'run'
  photos, labels = labelme_set.write(tmp_path / 'data', 2)
  data = RunData(str(photos), str(labels), val_share=0, num_workers=1)
  own_records.complete(config, workdir, data)
  assert config.evaluation.file_pattern == ''
  assert json.loads((workdir / 'records/prepared.json').read_text())
