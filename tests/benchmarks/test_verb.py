"""`maskrcnn-jax bench`, end to end, with a tiny model.

So detection and the training step also run without packages of the input.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import quick
import stand_in_torchvision
import tiny_run

from maskrcnn_jax.benchmarks.options import BenchOptions
from maskrcnn_jax.cli import main as command
from maskrcnn_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


def _make_config():
  """As small as torchvision's model can be."""
  config = tiny_run.make_config('no data is read', 'none')
  config.model.backbone.width = 64
  config.model.backbone.norm = 'frozen'
  config.model.pyramid_channels = 256
  config.model.mask_channels = 256
  config.model.dtype = 'float32'
  config.model.sampling.num_rois = 4
  config.model.detections.max_detections = 2
  config.input.canvases = ((32, 32),)
  config.input.batch_size = 1
  config.input.image_dtype = 'uint8'
  return config


@pytest.fixture(name='done', scope='module')
def fixture_done(tmp_path_factory):
  """The folder of results, and the printed tables."""
  folder = tmp_path_factory.mktemp('bench')
  tiny_run.write_config(_make_config(), folder / 'tiny.py')
  for name in ('tensorflow', 'tensorflow_datasets', 'pycocotools'):
    text = f'raise ImportError("{name} is not here")\n'
    (folder / f'{name}.py').write_text(text)
  paths = [str(folder), str(ROOT), os.environ.get('PYTHONPATH', '')]
  environment = os.environ | {
    'PYTHONPATH': os.pathsep.join(filter(None, paths)),
    'XLA_FLAGS': quick.xla_flags(),
  }
  words = [
    f'--config={folder}/tiny.py',
    '--what=step,inference,backbone,profile',
    f'--against={stand_in_torchvision.install(folder)}',
    '--rounds=2',
    '--warmup=1',
    f'--output={folder}/out',
  ]
  done = subprocess.run(
    [sys.executable, '-m', 'maskrcnn_jax', 'bench', *words],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return folder / 'out', done.stdout


@pytest.mark.slow
def test_bench_json(done):
  folder, _ = done
  result = json.loads((folder / 'bench.json').read_text())
  ours, theirs, free, _ = result['tables']['train step']
  assert free['name'] == 'maskrcnn_jax, free-running'
  assert len(ours['seconds']['all']) == 2
  assert ours['foreground'] == theirs['foreground'] == [2]
  assert theirs['ratio']['median'] == pytest.approx(
    ours['seconds']['median'] / 0.25
  )
  assert ours['program']['flops'] > 1e8
  ours, theirs = result['tables']['inference']
  # The stand-in answers with the background logit of the weights: 8.0x.
  assert theirs['detections'] == [8]
  assert theirs['pasting_seconds'] == 0.125
  assert theirs['ratio']['median'] == pytest.approx(
    ours['seconds']['median'] / 0.5
  )
  assert result['subject']['images'] == 'synthetic'
  assert result['memory']['torchvision'] == 2**30
  assert result['memory']['maskrcnn_jax'] >= result['memory']['before'] > 0


@pytest.mark.slow
def test_tables_and_chart(done):
  folder, shown = done
  assert 'Train step:' in shown and 'Backbone, forward' in shown
  assert shown.count('\n| torchvision ') == 3
  for name in ('step', 'detection'):
    (trace,) = folder.glob(f'trace/{name}/**/*.xplane.pb')
    assert trace.stat().st_size > 0
  kernels = shown.partition('Kernels of a step')[2]
  for stage in (
    'backbone stem, forward',
    'backbone stem, backward',
    'mask head, forward',
  ):
    assert f'| {stage} ' in kernels
  assert 'Furthest from its floor: ' in kernels
  assert 'mask head' in shown.partition('Kernels of detection')[2]
  assert (folder / 'bench.png').read_bytes()[:4] == b'\x89PNG'


@pytest.mark.slow
def test_results_are_not_overwritten(done, capsys):
  folder, _ = done
  argv = ['bench', '--config=shapes', f'--output={folder}']
  assert command.main(argv) == 2
  assert str(folder) in capsys.readouterr().err


def test_files_of_a_user_stay(tmp_path, capsys):
  (tmp_path / 'bench.png').write_text('mine')
  argv = ['bench', '--config=shapes', f'--output={tmp_path}']
  assert command.main(argv) == 2
  assert str(tmp_path) in capsys.readouterr().err
  assert (tmp_path / 'bench.png').read_text() == 'mine'


@pytest.mark.parametrize(
  'flag, word',
  [
    ('--what=step,speed', "'speed'"),
    ('--rounds=0', 'rounds'),
    ('--config.input.batchsize=2', 'batch_size'),
  ],
)
def test_mistakes_are_one_line(flag, word, tmp_path, capsys):
  argv = ['bench', '--config=shapes', f'--output={tmp_path}/out', flag]
  assert command.main(argv) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and word in error
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  'name, value, given',
  [('what', ('step', 'speed'), 'speed'), ('what', (), ''), ('warmup', 0, 0)],
)
def test_options_are_checked(name, value, given):
  with pytest.raises(UserError) as error:
    BenchOptions(**{name: value})
  assert (error.value.argument, error.value.given) == (name, given)
