"""Runs of Habana's script; most of them in one process."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import habana_runs
import numpy as np
import pytest
import quick
import tiny_run
import yaml
from habana_runs import data
from tiny_run import lines

from maskrcnn_jax.checkpoints import store

TRAIN = ['--mode=train', '--noeval_after_training', '--train_batch_size=2']
RUN_FLAGS = [
  '--model_dir=run',
  '--total_steps=6',
  '--num_steps_per_eval=2',
  '--skip_cycles=1',
  '--save_checkpoints_steps=3',
  '--train_batch_size=2',
  '--eval_batch_size=2',
  '--report_frequency=1',
  '--save_summary_steps=2',
  '--log_path=logs/mrcnn.json',
  '--profile=2,3',
  '--nonms_on_hpu',
  '--config.training.log_every_steps=1',
]


@pytest.fixture(scope='module')
def execute(env):
  """Runs a command line, in a process that has run others."""
  with habana_runs.session(env) as execute:
    yield execute


@pytest.fixture(scope='module')
def run(tmp_path_factory, dataset, execute):
  """The folder of a run with cycles, and what it printed."""
  folder = tmp_path_factory.mktemp('run')
  argv = [*data(dataset), *habana_runs.scratch(), *RUN_FLAGS]
  return folder, execute(argv, folder)


def entries(path):
  return [json.loads(line)['data'] for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_train_and_eval_in_cycles(run):
  folder, shown = run
  assert sorted(lines(folder / 'run', 'train/total_loss')) == [1, 2, 3, 4, 5, 6]
  # Three cycles of two steps, the first one without its evaluation.
  assert sorted(lines(folder / 'run', 'eval/AP')) == [4, 6]
  # Every third one, and the one that was evaluated on the way.
  assert tiny_run.saved_steps(folder / 'run') == [3, 4, 6]
  position = store.read_position(folder / 'run')
  assert position['examples'] == 6 * 2
  assert re.search(r'\b1 cpu\b.*\b2 images', shown)
  # The evaluations report after each batch.
  for step in (4, 6):
    for batches, images in ((1, 2), (2, 3)):
      line = rf'\bstep {step}\b.*\b{batches} batch.*\b{images} images'
      assert re.search(line, shown)
  assert '--nms_on_hpu has no effect here' in shown
  params = yaml.safe_load((folder / 'run' / 'params.yaml').read_text())
  assert params['total_steps'] == 6
  assert params['training']['num_steps'] == 6


@pytest.mark.slow
def test_tensorboard_has_habanas_names_and_a_trace(run):
  folder, _ = run
  events = b''.join(
    path.read_bytes() for path in (folder / 'run').glob('events.out.*')
  )
  for name in (
    'train/l2_loss',
    'train/mask_loss',
    'train/rpn_score_loss',
    'train/fastRCNN_total_loss',
    'train/learning_rate',
    'global_step/sec',
    'examples/sec',
    'eval/mask_AP',
    '_hparams_',
    'eval/image-7',
  ):
    assert name.encode() in events, name
  (trace,) = (folder / 'run').glob('plugins/profile/*/*.xplane.pb')
  assert trace.stat().st_size > 10_000


@pytest.mark.slow
def test_the_log_summarizes_the_run(run):
  folder, _ = run
  logged = entries(folder / 'logs' / 'mrcnn.json')
  training = [entry for entry in logged if 'Average_throughput' in entry]
  assert training == [
    {
      'Average_throughput': -1.0,  # As Habana's below 101 steps.
      'Total processed steps': 6,
      'Total_processing_time': pytest.approx(300, abs=299.9),
    }
  ]
  (losses,) = (entry for entry in logged if 'FastRCNN total loss' in entry)
  last = lines(folder / 'run', 'train/total_loss')[6]
  assert losses['Mask loss'] == pytest.approx(last['train/mask'])
  assert losses['FastRCNN total loss'] == pytest.approx(
    last['train/class'] + last['train/box']
  )
  scores = [entry for entry in logged if 'accuracy' in entry]
  assert len(scores) == 2
  evaluated = lines(folder / 'run', 'eval/AP')[6]
  assert scores[-1]['accuracy'] == evaluated['eval/mask_AP']
  assert scores[-1]['eval/ARmax100'] == evaluated['eval/ARmax100']
  assert len([entry for entry in logged if 'avg_inference_time' in entry]) == 2


@pytest.mark.slow
def test_both_commands_give_the_same_metrics(run, execute, tmp_path):
  folder, _ = run
  config = store.restore(folder / 'run')[1]
  # A restored config has neither a runtime nor paths.
  saved = store.read_config(folder / 'run')
  config.runtime = saved['runtime']
  for name in ('input', 'training', 'evaluation'):
    texts = {k: x for k, x in saved[name].items() if isinstance(x, str)}
    config[name].update(texts)
  path = tiny_run.write_config(config, tmp_path / 'same.py')
  argv = ['train_and_eval', f'--config={path}', f'--workdir={tmp_path}/run']
  execute(argv, tmp_path, program='maskrcnn-jax')
  for key in ('train/total_loss', 'eval/AP'):
    ours, theirs = lines(tmp_path / 'run', key), lines(folder / 'run', key)
    assert ours == theirs
    assert len(theirs) > 1


@pytest.mark.slow
def test_a_finished_run_is_left_alone(run, dataset, execute):
  folder, _ = run
  before = {p: p.stat().st_mtime_ns for p in (folder / 'run').rglob('*')}
  argv = [*data(dataset), *habana_runs.scratch(), '--model_dir=run', *TRAIN]
  wide = '--config.model.backbone.width=8'
  execute([*argv, '--total_steps=5'], folder)
  shown = execute([*argv, '--total_steps=9', wide], folder, code=2)
  assert 'model.backbone.width' in shown
  assert {
    p: p.stat().st_mtime_ns for p in (folder / 'run').rglob('*')
  } == before


@pytest.fixture(scope='module')
def evaluated(run, dataset, execute):
  """Folder of the run and of copies, each evaluated in its own way."""
  folder, _ = run
  ways = {
    'one': ['--eval_batch_size=1'],
    'four': ['--eval_batch_size=4'],  # The run took 2 of 3 images at a time.
    'two': ['--eval_samples=2'],
    'records': ['--val_json_file=no', '--include_groundtruth_in_features'],
  }
  for name, more in ways.items():
    shutil.copytree(folder / 'run', folder / name)
    argv = [*data(dataset), *habana_runs.scratch(), '--mode=eval', *more]
    argv += [f'--model_dir={name}', f'--log_path={name}.json']
    execute(argv, folder)
  return folder


@pytest.mark.slow
def test_evaluation_of_some_images_in_any_batch(evaluated):
  def results(name):
    path = evaluated / name / 'eval' / 'detections-6.json'
    found = json.loads(path.read_text())
    return sorted(found, key=lambda x: (x['image_id'], -x['score']))

  expected = results('run')
  for name in ('one', 'four'):
    for ours, theirs in zip(results(name), expected, strict=True):
      assert ours['category_id'] == theirs['category_id']
      np.testing.assert_allclose(ours['bbox'], theirs['bbox'], atol=1e-3)
      assert ours['score'] == pytest.approx(theirs['score'], rel=1e-4)
  assert {x['image_id'] for x in results('two')} == {7, 8}


@pytest.mark.slow
def test_ground_truth_of_the_records(evaluated):
  (truth,) = (evaluated / 'records' / 'eval').glob('ground-truth-*.json')
  assert len(json.loads(truth.read_text())['annotations']) == 3
  (scores,) = (
    x for x in entries(evaluated / 'records.json') if 'accuracy' in x
  )
  expected = lines(evaluated / 'run', 'eval/AP')[6]
  for name in ('eval/AP', 'eval/mask_AP', 'eval/ARmax100'):
    assert scores[name] == pytest.approx(expected[name], abs=1e-6)


@pytest.mark.slow
def test_train_with_and_without_evaluation(dataset, execute, tmp_path):
  argv = [*data(dataset), *habana_runs.scratch(), '--mode=train']
  argv += ['--total_steps=2', '--train_batch_size=2', '--eval_batch_size=2']
  leftover = tmp_path / 'results' / 'model.ckpt-360000.index'
  leftover.parent.mkdir()
  leftover.write_text('of an older run')
  without = execute([*argv, '--noeval_after_training'], tmp_path)
  after = execute(argv, tmp_path)
  assert 'results/model.ckpt-360000' in without
  assert leftover.read_text() == 'of an older run'
  assert [' images evaluated ' in x for x in (without, after)] == [False, True]
  assert sorted(lines(tmp_path / 'results', 'eval/AP')) == [2]
  assert (tmp_path / 'mrcnn.json').exists()


def kernel(workdir, step, *path):
  params = store.restore(workdir, step)[0]['params']['backbone']
  for name in path:
    params = params[name]
  return np.asarray(params['kernel'])


@pytest.mark.slow
def test_a_new_run_starts_from_the_pretrained_backbone(
  dataset, execute, tmp_path
):
  tensors = habana_runs.write_backbone(tmp_path)
  # The first step has the learning rate 0.
  rate = '--init_learning_rate=5'
  argv = [*data(dataset), *habana_runs.small(), *TRAIN, rate]
  # A resumed run does not even need the file.
  later = ['--total_steps=2', '--checkpoint=none']
  shown = execute([*argv, '--total_steps=1'], tmp_path)
  resumed = execute([*argv, *later], tmp_path)
  assert 'model.ckpt-112603 (backbone)' in shown
  assert '(backbone)' not in resumed
  workdir, stage3 = tmp_path / 'results', ('stage3', 'block1', 'conv1')
  loaded = kernel(workdir, 1, *stage3)
  np.testing.assert_array_equal(loaded, tensors['conv2d_12/kernel'])
  assert store.latest_step(workdir) == 2
  assert np.any(kernel(workdir, 2, *stage3) != loaded)
  frozen = kernel(workdir, 2, 'stage2', 'block1', 'conv1')
  np.testing.assert_array_equal(frozen, tensors['conv2d_2/kernel'])


@pytest.mark.long
@pytest.mark.parametrize('num_steps', [10, 50])
def test_seed_and_determinism(num_steps, dataset, env, execute, tmp_path):
  argv = [*data(dataset), *habana_runs.scratch(), *TRAIN, '--amp']
  argv += ['--warmup_steps=5', '--deterministic']
  argv += ['--config.training.log_every_steps=10']
  first, again, other = (
    [*argv, f'--model_dir={x}', f'--seed={seed}', f'--total_steps={steps}']
    for x, seed, steps in (
      ('a', 0, num_steps),
      ('b', 0, num_steps),
      ('c', 1, 10),
    )
  )
  habana_runs.execute(first, tmp_path, env)  # A process of its own.
  execute(other, tmp_path)
  execute(again, tmp_path)
  tiny_run.assert_same_end(tmp_path / 'a', tmp_path / 'b')
  ours, again, other = (
    lines(tmp_path / name, 'train/total_loss') for name in ('a', 'b', 'c')
  )
  assert ours == again
  assert ours[10] != other[10]
  # On a GPU the promise needs XLA's deterministic forms.
  saved = json.loads((tmp_path / 'a' / 'config.json').read_text())
  assert saved['runtime']['deterministic']


@pytest.mark.slow
def test_one_process_drives_one_device_or_all(env, tmp_path):
  code = (
    'import sys\n'
    'from maskrcnn_jax.distributed import mesh\n'
    'from maskrcnn_jax.habana import command\n'
    'from maskrcnn_jax.training import loop\n'
    'def train(config, workdir, notes):\n'
    '  print("SEEN", mesh.config_mesh(config).size,\n'
    '        config.input.batch_size, config.evaluation.batch_size)\n'
    'loop.train = train\n'
    'for more in ([], ["--use_tf_distributed"]):\n'
    '  assert command.main([*sys.argv[1:], *more]) == 0\n'
  )
  argv = ['--mode=train', '--noeval_after_training', '--train_batch_size=3']
  done = subprocess.run(
    [sys.executable, '-c', code, *argv],
    cwd=tmp_path,
    env=env | {'XLA_FLAGS': quick.xla_flags(num_devices=2)},
    check=True,
    capture_output=True,
    text=True,
  )
  seen = [x for x in done.stdout.splitlines() if x.startswith('SEEN')]
  assert seen == ['SEEN 1 3 4', 'SEEN 2 6 8']


@pytest.mark.slow
def test_termination_saves_the_run(dataset, env, tmp_path):
  argv = [*data(dataset), *habana_runs.scratch(), *TRAIN]
  argv += ['--total_steps=100000', '--save_checkpoints_steps=5']
  process = habana_runs.start(argv, tmp_path, env)
  while not list((tmp_path / 'results').glob('checkpoints/*')):
    assert process.poll() is None
    time.sleep(0.2)
  process.send_signal(signal.SIGTERM)
  shown, _ = process.communicate(timeout=60)
  assert process.returncode == 0
  assert 'SIGTERM' in shown
  logged = entries(tmp_path / 'mrcnn.json')
  steps = logged[0]['Total processed steps']
  assert store.latest_step(tmp_path / 'results') == steps > 0
