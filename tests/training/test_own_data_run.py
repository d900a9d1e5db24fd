"""From photos and labels to results in one command, and on from there."""

import json
import shutil

import labelme_set
import ml_collections
import pytest
import tiny_run

from maskrcnn_jax.checkpoints import store
from maskrcnn_jax.cli import main as command

pytestmark = [
  pytest.mark.slow,
  pytest.mark.usefixtures('fast_compilation'),
]


def run(verb, *flags, expected=0):
  assert command.main([verb, *map(str, flags)]) == expected


def contents(folder):
  """Bytes and times of the files of a folder."""
  return {
    path.name: (path.read_bytes(), path.stat().st_mtime_ns)
    for path in folder.iterdir()
  }


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Photos, labels and a config that counts the classes."""
  folder = tmp_path_factory.mktemp('own')
  labelme_set.write(folder, 6)
  config = tiny_run.make_config('none/train*', 'none.json')
  config.model.num_classes = ml_collections.config_dict.placeholder(int)
  config.runtime = {'compilation_cache': ''}
  tiny_run.write_config(config, folder / 'own.py')
  return folder


def data_flags(folder):
  return (
    *(f'--images={folder}/photos', f'--annotations={folder}/labels'),
    *('--val_share=0.34', '--num_workers=1'),
  )


@pytest.fixture(scope='module')
def whole(folder, fast_compilation):
  """A run of four steps."""
  flags = (f'--config={folder}/own.py', f'--workdir={folder}/whole')
  run('train_and_eval', *flags, *data_flags(folder))
  return folder / 'whole'


def test_one_command_gives_results_and_pictures(whole):
  assert store.read_classes(whole) == {1: 'cat', 2: 'dog'}
  assert tiny_run.saved_steps(whole) == [2, 4]
  split = json.loads((whole / 'records/split.json').read_text())
  assert len(split['val']) == 2
  results = json.loads((whole / 'eval/detections-4.json').read_text())
  assert {str(x['image_id']) for x in results} == {*split['val']}
  pictures = {path.name for path in (whole / 'pictures').iterdir()}
  assert pictures == {f'step-4-image-{i}.png' for i in split['val']}
  config = json.loads((whole / 'config.json').read_text())
  assert config['model']['num_classes'] == 3
  pattern = f'{whole}/records/train-*.tfrecord'
  assert config['input']['file_pattern'] == pattern


def test_a_resumed_run_uses_the_records_again_and_ends_alike(
  folder, whole, capsys
):
  flags = (f'--config={folder}/own.py', f'--workdir={folder}/parts')
  half = '--config.training.num_steps=2'
  run('train_and_eval', *flags, *data_flags(folder), half)
  records = contents(folder / 'parts/records')
  assert 'read as labelme' in capsys.readouterr().out
  # With images and labels, and then with the records alone.
  three = '--config.training.num_steps=3'
  run('train_and_eval', *flags, *data_flags(folder), three)
  run('train', *flags)
  assert 'read as labelme' not in capsys.readouterr().out
  assert contents(folder / 'parts/records') == records
  tiny_run.assert_same_end(whole, folder / 'parts')
  for part in ('train', 'val'):
    name = f'{part}-00000-of-00001.tfrecord'
    assert records[name][0] == (whole / 'records' / name).read_bytes()
  run('eval', *flags)
  scores = [tiny_run.lines(x, 'eval/AP')[4] for x in (whole, folder / 'parts')]
  assert scores[0] == scores[1]


def test_changed_labels_stop_a_run_before_it_goes_on(whole, folder, tmp_path):
  shutil.copytree(whole, tmp_path / 'run')
  for name in ('photos', 'labels'):
    shutil.copytree(folder / name, tmp_path / name)
  path = tmp_path / 'labels/03.json'
  path.write_text(path.read_text().replace('dog', 'cow'))
  before = contents(tmp_path / 'run/records')
  flags = (f'--config={folder}/own.py', f'--workdir={tmp_path}/run')
  more = '--config.training.num_steps=5'
  run('train', *flags, *data_flags(tmp_path), more, expected=2)
  assert tiny_run.saved_steps(tmp_path / 'run') == [2, 4]
  assert contents(tmp_path / 'run/records') == before
