"""The command: verbs, flags, errors and exit codes."""

import errno
import inspect
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tiny_run
from PIL import Image

from maskrcnn_jax.cli import command_line
from maskrcnn_jax.cli import main as command
from maskrcnn_jax.datasets import prepare
from maskrcnn_jax.datasets.labelled import LabelOptions
from maskrcnn_jax.distributed import processes
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.export.exporter import ExportOptions
from maskrcnn_jax.inference import predict
from maskrcnn_jax.inference.views import TileOptions

VERBS = [
  'prepare',
  'check',
  'train',
  'eval',
  'train_and_eval',
  'score',
  'weights',
  'import_weights',
  'export_weights',
  'predict',
  'export',
  'plan',
  'bench',
]
RUN = ['train', '--config=shapes', '--workdir=w']
PREPARE = ['prepare', '--images=a', '--annotations=b', '--output=c']
RECORDS = ['--config=shapes', '--config.input.file_pattern={pattern}']
DATA = ['--images={folder}', '--annotations={json}']
OWN = ['--images=a', '--annotations=b']
PREDICT = ['predict', '--workdir=w', '--images=i', '--output=o']


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
  assert list(command._parser().verbs.choices) == VERBS
  assert set(VERBS) <= set(shown.stdout.split())


@pytest.mark.parametrize('verb', VERBS)
def test_help_of_a_verb(verb, capsys):
  with pytest.raises(SystemExit, match='0'):
    command.main([verb, '--help'])
  shown = capsys.readouterr().out
  assert f'usage: maskrcnn-jax {verb} ' in shown and '--debug' in shown


def _default(function, name):
  return inspect.signature(function).parameters[name].default


@pytest.mark.parametrize(
  'verb, flag, value',
  [
    ('predict', 'min_score', _default(predict.predict, 'min_score')),
    ('predict', 'tile_overlap', TileOptions.overlap),
    ('predict', 'compilation_cache', processes.COMPILATION_CACHE),
    ('prepare', 'format', LabelOptions.data_format),
    ('export', 'platforms', ','.join(ExportOptions.platforms)),
    ('export', 'format', ','.join(ExportOptions.formats)),
  ],
)
def test_help_states_the_default_of_the_function(verb, flag, value, capsys):
  with pytest.raises(SystemExit):
    command.main([verb, '--help'])
  shown = ' '.join(capsys.readouterr().out.split())
  text = re.search(rf' --{flag} \S+ (.*?)(?: --|$)', shown)[1]
  assert f'default: {value})' in text or f'{value} (default)' in text


@pytest.mark.parametrize(
  'argv, known',
  [
    (['trian'], "did you mean 'train'?"),
    ([], 'VERB'),
    (['train', '--workdir=w'], '--config'),
    ([*RUN, '--work_dir=x'], "did you mean '--workdir'?"),
    (['prepare', '--images=a', '--annotation=b', '--output=c'], 'annotations'),
    (
      ['plan', '--config=shapes', '--topology=here', '--batch_per_device=4,x'],
      "--batch_per_device: must be whole numbers such as 4,8,12, got '4,x'",
    ),
    ([*RUN, '--config.input.flip'], '--config.input.flip=VALUE'),
    (['eval', *RUN[1:], '--step=bets'], '--step: must be a number of steps or'),
    (
      [*PREPARE, '--num_workers=0'],
      '--num_workers: must be a whole number of 1 or more',
    ),
    (['export', '--workdir=w', '--output=o', '--canvas=8x'], "got '8x'"),
    ([*PREPARE, '--config.input.flip=true'], 'input.flip=true'),
    ([*PREDICT, '--min_score=2'], '--min_score'),
    ([*PREDICT, '--batch_size=0'], '--batch_size'),
    ([*PREDICT, '--tile=big'], '--tile'),
    ([*PREDICT, '--tile_levels=-1'], '--tile_levels'),
    ([*PREDICT, '--tta=1,x'], '--tta'),
    ([*PREDICT, '--checkpoint=x'], '--workdir'),
  ],
)
def test_a_misspelt_command_line_exits_with_2(argv, known, capsys):
  with pytest.raises(SystemExit, match='2'):
    command.main(argv)
  error = capsys.readouterr().err
  assert known in error and error.count('\n') == 1


@pytest.mark.parametrize(
  'flags, known',
  [
    (['--config=shape'], "did you mean 'shapes'"),
    (['--config=coco:nvidia'], "did you mean 'nvidia_1x'"),
    (['--config.input.batchsize=2'], "did you mean 'batch_size'"),
    (['--config.runtime.backend', 'abacus'], "got 'abacus'"),
    (
      ['--config.model.anchors.octaves=2'],
      'model.anchors.octaves is now model.anchors.scales_per_octave',
    ),
  ],
)
def test_a_user_error_is_one_line_and_exits_with_2(
  flags, known, tmp_path, capsys
):
  argv = ['train', f'--workdir={tmp_path}/run', '--config=shapes', *flags]
  assert command.main(argv) == 2
  error = capsys.readouterr().err
  assert error.startswith('maskrcnn-jax train: ')
  assert known in error and error.count('\n') == 1
  with pytest.raises((UserError, FileNotFoundError)):
    command.main([*argv, '--debug'])


def test_weights_that_do_not_exist(tmp_path, capsys):
  (tmp_path / 'resnet50.pth').touch()
  argv = ['import_weights', f'--output={tmp_path}/run']
  assert command.main([*argv, f'--source={tmp_path}/resnet5.pth']) == 2
  error = capsys.readouterr().err
  assert error.startswith('maskrcnn-jax import_weights: ')
  assert f'{tmp_path}/resnet5.pth' in error and "'resnet50.pth'?" in error
  assert command.main([*argv, f'--source={tmp_path}/resnet50.pth']) == 2
  assert f'{tmp_path}/resnet50.pth' in capsys.readouterr().err
  assert not (tmp_path / 'run').exists()


def test_a_missing_file_is_named(tmp_path, capsys):
  argv = ['prepare', f'--images={tmp_path}', f'--annotations={tmp_path}/a.json']
  assert command.main([*argv, f'--output={tmp_path}/train.tfrecord']) == 2
  assert 'a.json' in capsys.readouterr().err
  pattern = f'{tmp_path}/none*.tfrecord'
  argv = ['train', '--config=shapes', f'--workdir={tmp_path}/run']
  assert command.main([*argv, f'--config.input.file_pattern={pattern}']) == 2
  error = capsys.readouterr().err
  assert pattern in error and '--images' in error


def test_a_bug_keeps_its_traceback(monkeypatch):
  def broken(*_, **unused):
    int('one')

  monkeypatch.setattr(prepare, 'prepare', broken)
  with pytest.raises(ValueError, match='one') as error:
    command.main(PREPARE)
  assert not isinstance(error.value, UserError)


@pytest.mark.parametrize(
  'flags, argument',
  [
    (['--annotations=b'], '--annotations'),
    (['--drop_outside'], '--drop_outside'),
    (['--max_pixels=9'], '--max_pixels'),
    (['--images=a'], '--annotations'),
    (['--images=a', '--annotations=b', '--val_images=c'], '--val_images'),
    ([*OWN, '--val_annotations=c', '--val_share=0.1'], '--val_share'),
    ([*OWN, '--val_annotations=c', '--val_seed=1'], '--val_seed'),
    ([*OWN, '--val_share=0'], '--val_share'),
    ([*OWN, '--config.input.file_pattern=c'], 'input.file_pattern'),
  ],
)
def test_flags_of_images_and_labels_belong_together(flags, argument, tmp_path):
  argv = ['train_and_eval', '--config=shapes', f'--workdir={tmp_path}/run']
  with pytest.raises(UserError) as error:
    command.main([*argv, *flags, '--debug'])
  assert error.value.argument == argument
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'error, code, known',
  [
    (MemoryError('Unable to allocate 9 EiB'), 2, '9 EiB'),
    (RecursionError(), 2, 'nested'),
    (UnicodeEncodeError('utf-8', '\ud800', 0, 1, 'bad'), 2, 'Unicode'),
    (OSError(errno.ENOSPC, 'No space left', 'a/b'), 2, 'No space left: a/b'),
    (BrokenPipeError(errno.EPIPE, 'Broken pipe'), 2, 'Broken pipe'),
    (KeyboardInterrupt(), 130, 'interrupted'),
  ],
)
def test_what_an_input_or_a_user_causes_is_one_line(
  error, code, known, monkeypatch, capsys
):
  def broken(*_, **unused):
    raise error

  monkeypatch.setattr(prepare, 'prepare', broken)
  monkeypatch.setattr(command_line.os, 'dup2', lambda *_: None)
  assert command.main(PREPARE) == code
  shown = capsys.readouterr().err
  assert shown.startswith('maskrcnn-jax prepare: ') and known in shown
  assert shown.count('\n') == 1
  with pytest.raises(type(error)):
    command.main([*PREPARE, '--debug'])


def test_output_that_nobody_reads():
  code = (
    'import os, sys\n'
    'from maskrcnn_jax.cli import main\n'
    'from maskrcnn_jax.datasets import prepare\n'
    'prepare.prepare = lambda *_, **unused: "x" * 10**6\n'
    f'sys.exit(main.main({PREPARE}))\n'
  )
  reader, writer = os.pipe()
  os.close(reader)
  done = subprocess.run(
    [sys.executable, '-c', code],
    stdout=writer,
    stderr=subprocess.PIPE,
    text=True,
    check=False,
  )
  os.close(writer)
  assert done.returncode == 2
  assert done.stderr == 'maskrcnn-jax prepare: Broken pipe\n'


@pytest.mark.parametrize(
  'argv',
  [
    ['import_weights', '--source={source}', '--output={file}'],
    ['check', *DATA, '--json={file}/x'],
    ['check', *DATA, '--html={folder}'],
    ['prepare', *DATA, '--output={file}/x'],
    ['train', *RECORDS, '--workdir={file}'],
    ['train', *RECORDS, '--workdir={file}/run'],
    ['eval', '--config=shapes', '--workdir={file}'],
    ['predict', '--workdir={file}', '--images={folder}', '--output={file}'],
    ['export', '--workdir={file}', '--output={file}'],
    ['export_weights', '--checkpoint={file}', '--output={file}/x.npz'],
  ],
)
def test_a_file_where_a_folder_must_be(argv, tmp_path, capsys):
  paths = {'folder': tmp_path, 'file': tmp_path / 'file'}
  paths |= {'json': tmp_path / 'a.json', 'source': tmp_path / 'a.npz'}
  paths['file'].write_text('mine')
  np.savez(paths['source'], conv1=np.zeros(3))
  paths['pattern'], _ = tiny_run.write_dataset(tmp_path)
  empty = {'images': [], 'annotations': [], 'categories': []}
  paths['json'].write_text(json.dumps(empty))
  Image.new('RGB', (4, 4)).save(tmp_path / 'a.png')
  assert command.main([word.format(**paths) for word in argv]) == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith(f'maskrcnn-jax {argv[0]}: ')
  assert str(tmp_path) in error
  assert paths['file'].read_text() == 'mine'


def test_the_module_is_the_same_command():
  shown = subprocess.run(
    [sys.executable, '-m', 'maskrcnn_jax', 'trian'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert shown.returncode == 2
  assert shown.stderr.startswith("maskrcnn-jax: There is no verb 'trian'")
