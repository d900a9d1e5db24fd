"""The files of an export, its flags and its errors."""

import json
import sys

import drawn_checkpoint
import numpy as np
import pytest
import tiny_run

from maskrcnn_jax.cli import main as command
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.export import exporter


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  config = tiny_run.make_config('', '')
  config.input.resize = {'fit_size': (64, 90), 'exact_sizes': True}
  config.input.canvases = ((64, 96), (96, 64))
  return drawn_checkpoint.write(tmp_path_factory.mktemp('run') / 'run', config)


def run(workdir, output, *flags):
  source = [] if workdir is None else [f'--workdir={workdir}']
  return command.main(['export', *source, f'--output={output}', *flags])


@pytest.mark.slow
def test_files_of_an_export(workdir, tmp_path, capsys):
  output = tmp_path / 'new' / 'exported'
  assert run(workdir, output, '--batch_size=2', '--platforms=cpu,tpu') == 0
  names = sorted(path.name for path in output.iterdir())
  assert names == [
    'detect.py',
    'detect_64x96.jax_export',
    'detect_96x64.jax_export',
    'export.json',
    'weights.npz',
  ]
  shown = capsys.readouterr().out
  assert all(name in shown for name in names)
  assert sorted(path.name for path in output.parent.iterdir()) == ['exported']
  about = json.loads((output / 'export.json').read_text())
  assert about['canvases'] == [
    {'canvas': [64, 96], 'fit': [64, 90], 'program': names[1]},
    {'canvas': [96, 64], 'fit': [90, 64], 'program': names[2]},
  ]
  assert about['step'] == 4 and about['platforms'] == ['cpu', 'tpu']
  assert about['class_names'] == {'1': 'disc', '2': 'star <b>&</b>'}
  assert about['resize']['exact_sizes'] is True
  images = about['inputs']['images']
  assert images['shape'] == [2, 'height', 'width', 3]
  assert images['dtype'] == 'float32'  # As the run has it.
  shapes = {k: (v['shape'], v['dtype']) for k, v in about['outputs'].items()}
  assert shapes == {
    'boxes': ([2, 4, 4], 'float32'),
    'scores': ([2, 4], 'float32'),
    'classes': ([2, 4], 'int32'),
    'masks': ([2, 4, 28, 28], 'float32'),
    'valid': ([2, 4], 'bool'),
  }
  for figures in about['checks']['stablehlo']:
    assert figures['images'] == 2 and figures['detections'] == 8
    assert figures['missing'] == figures['added'] == 0
    assert max(figures[name] for name in ('boxes', 'scores', 'masks')) < 1e-5
  with np.load(output / 'weights.npz') as weights:
    assert weights['params/fpn/output2/kernel'].shape == (3, 3, 8, 8)


def test_flags_override_the_config(workdir, tmp_path):
  flags = ['--canvas=96x96', '--image_dtype=uint8', '--platforms=tpu']
  checkpoint = f'--checkpoint={workdir}/checkpoints/4'
  (tmp_path / 'exported').mkdir()  # An empty folder may exist.
  assert run(None, tmp_path / 'exported', checkpoint, *flags) == 0
  about = json.loads((tmp_path / 'exported' / 'export.json').read_text())
  assert [x['canvas'] for x in about['canvases']] == [[96, 96]]
  assert about['inputs']['images']['dtype'] == 'uint8'
  # Nothing here runs a program for a TPU.
  assert about['checks']['stablehlo'] is None
  # A symbolic batch size is given by its name.
  assert about['batch_size'] is None
  assert about['outputs']['scores']['shape'] == ['batch', 4]


@pytest.mark.parametrize(
  'flag, message',
  [
    ('--batch_size=0', '--batch_size'),
    ('--batch_size=many', '--batch_size'),
    ('--canvas=64', '--canvas'),
    ('--canvas=64x96,96', '--canvas'),
    ('--canvas=32x96', '(32, 96)'),
  ],
)
def test_wrong_flags(workdir, tmp_path, flag, message, capsys):
  try:
    code = run(workdir, tmp_path / 'exported', flag)
  except SystemExit as error:
    code = error.code
  shown = capsys.readouterr().err
  assert code == 2 and message in shown
  assert 'Traceback' not in shown
  assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(workdir, tmp_path, capsys):
  (tmp_path / 'notes.txt').write_text('mine')
  assert run(workdir, tmp_path) == 2
  assert '--output' in capsys.readouterr().err
  assert run(workdir, tmp_path / 'notes.txt') == 2
  assert (tmp_path / 'notes.txt').read_text() == 'mine'
  assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_checkpoint(tmp_path, capsys):
  assert run(tmp_path / 'nowhere', tmp_path / 'exported') == 2
  assert 'nowhere' in capsys.readouterr().err


@pytest.mark.parametrize(
  'argument, options',
  [
    ('batch_size', {'batch_size': 0}),
    ('canvas', {'canvases': ((64, 90),)}),
    ('canvas', {'canvases': ((64, 2**26),)}),
    ('canvas', {'canvases': ((64, 96), (64, 96))}),
    ('platforms', {'platforms': ('cpu', 'gpu')}),
    ('platforms', {'platforms': ('cpu', 'cpu')}),
    ('format', {'formats': ('tflite',)}),
    ('image_dtype', {'image_dtype': 'int8'}),
  ],
)
def test_wrong_options(argument, options):
  with pytest.raises(UserError, match=argument) as error:
    exporter.ExportOptions(**options)
  assert error.value.argument == argument


def test_an_export_that_is_interrupted_leaves_nothing(
  workdir, tmp_path, monkeypatch
):
  def interrupt(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(exporter.shutil, 'copyfile', interrupt)
  with pytest.raises(KeyboardInterrupt):
    exporter.export(
      workdir,
      tmp_path / 'a' / 'exported',
      exporter.ExportOptions(canvases=((64, 96),), platforms=('cpu',)),
    )
  assert not list((tmp_path / 'a').iterdir())


def test_a_jax_without_jax2tf(workdir, tmp_path, capsys, monkeypatch):
  pytest.importorskip('tensorflow', reason='this Python has no TensorFlow')
  from maskrcnn_jax.export import saved_model

  monkeypatch.setitem(sys.modules, 'jax.experimental.jax2tf', None)
  monkeypatch.delattr('jax.experimental.jax2tf', raising=False)
  with pytest.raises(UserError) as error:
    saved_model.check()
  assert error.value.argument == 'format'
  assert run(workdir, tmp_path / 'exported', '--format=saved_model') == 2
  assert 'jax.experimental.jax2tf' in capsys.readouterr().err
  assert not list(tmp_path.iterdir())
