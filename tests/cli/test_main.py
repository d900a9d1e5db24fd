"""The command: its verbs reach their functions, mistakes get one clear line."""

import subprocess
import sys

import pytest

from maskrcnn_jax.cli import main as command
from maskrcnn_jax.datasets import prepare


def test_help_is_instant_and_lists_the_verbs():
  code = (
    'import sys; from maskrcnn_jax.cli import main\n'
    'try: main.main(["--help"])\n'
    'finally:\n'
    '  heavy = {"jax", "numpy", "tensorflow", "ml_collections"}\n'
    '  print("HEAVY", heavy & set(sys.modules))\n'
  )
  shown = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert 'HEAVY set()' in shown.stdout
  for verb in (
    'prepare',
    'check',
    'train',
    'eval',
    'train_and_eval',
    'import_weights',
    'export_weights',
    'predict',
    'export',
    'plan',
    'bench',
  ):
    assert verb in shown.stdout.split()


@pytest.mark.parametrize(
  'verb',
  [
    'prepare',
    'check',
    'train',
    'eval',
    'import_weights',
    'export_weights',
    'predict',
    'export',
    'plan',
    'bench',
  ],
)
def test_help_of_a_verb(verb, capsys):
  with pytest.raises(SystemExit, match='0'):
    command.main([verb, '--help'])
  assert verb in capsys.readouterr().out


@pytest.mark.parametrize(
  'argv, message',
  [
    (['trian'], "no verb 'trian'; did you mean 'train'?"),
    ([], 'VERB'),
    (['train', '--workdir=w'], '--config'),
    (
      ['train', '--config=shapes', '--workdir=w', '--work_dir=x'],
      "no flag '--work_dir'; did you mean '--workdir'?",
    ),
    (
      ['prepare', '--images=a', '--annotation=b', '--output=c'],
      '--annotations',
    ),
    (
      ['plan', '--config=shapes', '--topology=here', '--batch_per_device=4,x'],
      "must be whole numbers such as 4,8,12, got '4,x'",
    ),
    (
      ['train', '--config=shapes', '--workdir=w', '--config.input.flip'],
      '--config.input.flip',
    ),
    (
      ['eval', '--config=shapes', '--workdir=w', '--step=bets'],
      "must be a number of steps or best, got 'bets'",
    ),
  ],
)
def test_a_misspelt_command_line_says_what_was_meant(argv, message, capsys):
  with pytest.raises(SystemExit, match='2'):
    command.main(argv)
  assert message in capsys.readouterr().err


@pytest.mark.parametrize(
  'flags, message',
  [
    (['--config=shape'], "no config 'shape'; did you mean 'shapes'"),
    (['--config=coco:nvidia'], "did you mean 'nvidia_1x'"),
    (
      ['--config=shapes', '--config.input.batchsize=2'],
      "no field 'batchsize' in input; did you mean 'batch_size'",
    ),
    (
      ['--config=shapes', '--config.runtime.backend', 'abacus'],
      "runtime.backend must be one of auto, cpu, gpu, tpu, hpu, got 'abacus'",
    ),
  ],
)
def test_a_mistake_of_the_user_is_one_line_and_exit_code_2(
  flags, message, tmp_path, capsys
):
  argv = ['train', f'--workdir={tmp_path}/run', *flags]
  assert command.main(argv) == 2
  error = capsys.readouterr().err
  assert error.startswith('maskrcnn-jax train: ')
  assert message in error
  assert error.count('\n') == 1
  with pytest.raises((ValueError, FileNotFoundError)):
    command.main([*argv, '--debug'])


def test_weights_that_are_not_there(tmp_path, capsys):
  (tmp_path / 'resnet50.pth').touch()
  argv = ['import_weights', f'--output={tmp_path}/run']
  assert command.main([*argv, f'--source={tmp_path}/resnet5.pth']) == 2
  error = capsys.readouterr().err
  assert error.startswith('maskrcnn-jax import_weights: There is no file')
  assert f'Did you mean {tmp_path}/resnet50.pth?' in error
  assert command.main([*argv, f'--source={tmp_path}/resnet50.pth']) == 2
  assert 'is no file of weights' in capsys.readouterr().err
  assert not (tmp_path / 'run').exists()


def test_prepare_reports_a_missing_file(tmp_path, capsys):
  argv = ['prepare', f'--images={tmp_path}', f'--annotations={tmp_path}/a.json']
  assert command.main([*argv, f'--output={tmp_path}/train.tfrecord']) == 2
  assert 'a.json' in capsys.readouterr().err


def test_an_empty_pattern_names_the_pattern(tmp_path, capsys):
  argv = ['train', '--config=shapes', f'--workdir={tmp_path}/run']
  pattern = f'{tmp_path}/none*.tfrecord'
  assert command.main([*argv, f'--config.input.file_pattern={pattern}']) == 2
  assert pattern in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch):
  def broken(*_):
    int('one')

  monkeypatch.setattr(prepare, 'prepare', broken)
  argv = ['prepare', '--images=a', '--annotations=b', '--output=c']
  with pytest.raises(ValueError, match='one'):
    command.main(argv)


def test_the_module_is_the_same_command():
  shown = subprocess.run(
    [sys.executable, '-m', 'maskrcnn_jax', 'trian'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert shown.returncode == 2
  assert shown.stderr.startswith('maskrcnn-jax: There is no verb')
