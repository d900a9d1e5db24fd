"""The commands of Habana's README run unchanged but for paths.

Overrides at the end make steps, canvas and model small. The commands with
mpirun run as two processes and without `--map-by`, which depends on the number
of cores.
"""

import json
import shlex
import shutil

import habana_runs
import pytest
import tiny_run

from maskrcnn_jax.checkpoints import store

DATA = (
  '--training_file_pattern="/data/tensorflow/coco2017/tf_records/'
  'train-*.tfrecord" '
  '--validation_file_pattern="/data/tensorflow/coco2017/tf_records/'
  'val-*.tfrecord" '
  '--val_json_file="/data/tensorflow/coco2017/tf_records/annotations/'
  'instances_val2017.json"'
)
WEIGHTS = (
  '--checkpoint="weights/resnet/resnet-nhwc-2018-02-07/model.ckpt-112603"'
)
MPIRUN = (
  'mpirun --allow-run-as-root --bind-to core --map-by socket:PE=6 --np 8 '
  '-x TF_BF16_CONVERSION'
)
SCRIPT = '$PYTHON mask_rcnn_main.py'
# Name -> TF_BF16_CONVERSION, command.
ONE_CARD = {
  'defaults': (None, SCRIPT),
  'exemplary': (
    'full',
    f'{SCRIPT} --mode=train {WEIGHTS} --init_learning_rate=0.005 '
    '--learning_rate_steps=240000,320000 --model_dir="results" '
    f'--total_steps=360000 {DATA}',
  ),
  'gaudi2': (
    'full',
    f'{SCRIPT} --mode=train {WEIGHTS} --init_learning_rate=0.015 '
    '--train_batch_size=12 --learning_rate_steps=80000,106667 '
    f'--model_dir="results" --total_steps=120000 {DATA}',
  ),
}
EIGHT_CARDS = {
  'bf16': (
    'full',
    f'{MPIRUN} {SCRIPT} --mode=train {DATA} --init_learning_rate=0.04 '
    f'--learning_rate_steps=30000,40000 --total_steps=45000 {WEIGHTS} '
    '--model_dir="results"',
  ),
  'gaudi2': (
    'full',
    f'{MPIRUN} {SCRIPT} --mode=train {DATA} --init_learning_rate=0.12 '
    '--train_batch_size=12 --learning_rate_steps=10000,13334 '
    f'--total_steps=15000 {WEIGHTS} --model_dir="results"',
  ),
  'fp32': (
    '0',
    f'{MPIRUN} {SCRIPT} --mode=train {DATA} --init_learning_rate=0.04 '
    '--learning_rate_steps=30000,40000 --num_steps_per_eval=3696 '
    f'--total_steps=45000 {WEIGHTS} --model_dir="results"',
  ),
}
DTYPES = {None: 'float32', '0': 'float32', 'full': 'bfloat16'}
SMALL = [
  *habana_runs.small(),
  '--config.training.num_steps=2',
  '--config.training.log_every_steps=1',
]


@pytest.fixture
def folder(tmp_path):
  """Weights, records and annotations at the paths of the README."""
  habana_runs.write_backbone(tmp_path)
  data = tmp_path / 'data/tensorflow/coco2017/tf_records'
  (data / 'annotations').mkdir(parents=True)
  pattern, truth = tiny_run.write_dataset(data)
  for split in ('train', 'val'):
    name = f'{split}-00000-of-00001.tfrecord'
    shutil.copy(pattern.replace('*', 'train'), data / name)
  (data / 'train.tfrecord').unlink()
  shutil.move(truth, data / 'annotations' / 'instances_val2017.json')
  return tmp_path


def run(command, precision, folder, env):
  """Runs a command of the README in a folder with its data."""
  command = command.replace('/data/', f'{folder}/data/')
  words = shlex.split(command)
  script = words.index('mask_rcnn_main.py')
  launcher = words[: script - 1]
  for old, new in (('--map-by', []), ('--np', ['--np', '2'])):
    if old in launcher:
      at = launcher.index(old)
      launcher[at : at + 2] = new
  precision = {} if precision is None else {'TF_BF16_CONVERSION': precision}
  argv = [*words[script + 1 :], *SMALL]
  return habana_runs.execute(argv, folder, env | precision, launcher=launcher)


def check(folder, shown, precision, batch_size):
  """Checks the files and the config that every command leaves."""
  workdir = folder / 'results'
  assert 'model.ckpt-112603 (backbone)' in shown
  assert shown.count('SUCCESS') == 1
  assert store.latest_step(workdir) == 2
  assert store.read_position(workdir)['examples'] == 2 * batch_size
  config = store.read_config(workdir)
  assert config['model']['dtype'] == DTYPES[precision]
  assert sorted(tiny_run.lines(workdir, 'train/total_loss')) == [1, 2]
  assert sorted(tiny_run.lines(workdir, 'eval/mask_AP')) == [2]
  assert (workdir / 'params.yaml').exists()
  assert (folder / 'mrcnn.json').exists()
  return config


@pytest.mark.slow
@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.long] * (name != 'defaults'))
    for name in ONE_CARD
  ],
)
def test_on_one_card(name, folder, env):
  precision, command = ONE_CARD[name]
  flags = f'{command} {DATA}' if name == 'defaults' else command
  shown = run(flags, precision, folder, env)
  batch_size = 12 if name == 'gaudi2' else 4
  config = check(folder, shown, precision, batch_size)
  # The learning rate is literal.
  rate = 0.015 if name == 'gaudi2' else 0.005
  assert config['optimizer']['learning_rate'] == rate


@pytest.mark.long
@pytest.mark.skipif(not shutil.which('mpirun'), reason='needs Open MPI')
@pytest.mark.parametrize('name', EIGHT_CARDS)
def test_on_several_cards(name, folder, env):
  precision, command = EIGHT_CARDS[name]
  shown = run(command, precision, folder, env)
  batch_size = 2 * (12 if name == 'gaudi2' else 4)
  config = check(folder, shown, precision, batch_size)
  assert config['optimizer']['learning_rate'] == (
    0.12 if name == 'gaudi2' else 0.04
  )
  assert '2 cpu' in shown
  # One of the two processes logs, and they evaluate together.
  logged = (folder / 'mrcnn.json').read_text().splitlines()
  scores = [x for x in map(json.loads, logged) if 'accuracy' in x['data']]
  assert len(scores) == 1
