"""Effects of Habana's flags, in this process and in runs of the script."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import habana_runs
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick
import tiny_run
import yaml
from habana_runs import config_of, data, execute, execute_all
from tiny_run import lines

from maskrcnn_jax import input_pipeline
from maskrcnn_jax.checkpoints import store
from maskrcnn_jax.distributed import processes
from maskrcnn_jax.habana import command as habana
from maskrcnn_jax.models import proposals as proposals_lib
from maskrcnn_jax.models.heads import RPNOutputs
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.optimization import optimizer as optimizer_lib
from maskrcnn_jax.training import loop, train_step

TRAIN = ['--mode=train', '--noeval_after_training', '--train_batch_size=2']


def small_config(*argv, **environ):
  return config_of(*habana_runs.small(), *argv, environ=environ)


@pytest.mark.parametrize(
  'argv, precision, expected',
  [
    (['--pyramid_roi_impl=habana'], 'full', ('bfloat16', 'bfloat16')),
    (['--pyramid_roi_impl=gather'], 'full', ('bfloat16', 'bfloat16')),
    (['--pyramid_roi_impl=habana_fp32'], 'full', ('bfloat16', 'float32')),
    ([], 'basic', ('float32', 'float32')),
    ([], '0', ('float32', 'float32')),
    (['--amp'], '0', ('bfloat16', 'bfloat16')),
  ],
)
def test_type_of_roi_features(argv, precision, expected):
  config = small_config(*argv, TF_BF16_CONVERSION=precision)
  model = MaskRCNN.from_config(config.model)
  images, sizes = jnp.zeros((1, 64, 64, 3)), jnp.full((1, 2), 64.0)

  def types(key):
    variables = train_step.init_variables(model, key)
    pyramid = model.apply(variables, images, sizes, method='pyramid')
    boxes = jnp.zeros((1, 2, 4))
    rois = model.apply(variables, pyramid, boxes, 7, method='align')
    outputs = model.apply(variables, pyramid, method=lambda m, p: m.rpn_head(p))
    return variables, pyramid[2], rois, outputs

  variables, pyramid, rois, outputs = jax.eval_shape(types, jax.random.key(0))
  assert (pyramid.dtype, rois.dtype) == expected
  for leaf in jax.tree.leaves((variables, outputs)):
    assert leaf.dtype == jnp.float32


def test_batch_norms_of_stages_3_to_5_are_trained():
  trained = {}
  for argv in ((), ('--finetune_bn',)):
    model = MaskRCNN.from_config(small_config(*argv).model)
    shapes = jax.eval_shape(
      lambda key, model=model: train_step.init_variables(model, key),
      jax.random.key(0),
    )
    trained[argv] = {
      stage
      for stage, params in shapes['params']['backbone'].items()
      if 'norm' in str(jax.tree_util.tree_structure(params))
    }
  assert trained[()] == set()
  assert trained[('--finetune_bn',)] == {'stage3', 'stage4', 'stage5'}


@pytest.mark.slow
def test_nms_over_all_anchors():
  """2000 equal boxes hide 500 others from a top-k cut, not from NMS."""
  boxes = np.tile(np.float32([0, 0, 20, 20]), (2500, 1))
  boxes[2000:] += 40 * np.arange(1, 501)[:, None]
  outputs = RPNOutputs(
    {2: jnp.asarray(np.linspace(9, 1, 2500, dtype=np.float32))[None]},
    {2: jnp.zeros((1, 2500, 4))},
  )
  counts = {}
  for flag in ('--topk_before_nms', '--notopk_before_nms'):
    options = MaskRCNN.from_config(config_of(flag).model).train_proposals
    proposals = proposals_lib.propose(
      outputs, {2: boxes}, jnp.full((1, 2), 1e6), options
    )
    counts[flag] = int(proposals.valid.sum())
  assert counts == {'--topk_before_nms': 1, '--notopk_before_nms': 501}


def test_the_optimizer_of_the_flags():
  """Two steps on one kernel, by hand."""
  flags = [
    '--init_learning_rate=0.5',
    '--warmup_steps=0',
    '--momentum=0.25',
    '--l2_weight_decay=0.125',
    '--global_gradient_clip_ratio=3',
  ]
  options = optimizer_lib.OptimizerOptions(**config_of(*flags).optimizer)
  params = {'kernel': jnp.array([2.0, 4.0])}
  trainable = {'kernel': True}
  decay = optimizer_lib.weight_decay_loss(
    params, trainable, options.weight_decay
  )
  assert float(decay) == 0.125 * 0.5 * (4.0 + 16.0)
  optimizer = optimizer_lib.transformation(options, params, trainable)
  state = optimizer.init(params)
  gradients = {'kernel': jnp.array([0.0, 6.0])}  # Clipped to a norm of 3.
  for expected in ([2.0, 4.0 - 0.5 * 3.0], [2.0, 2.5 - 0.5 * 3.75]):
    updates, state = optimizer.update(gradients, state, params, step=1)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params['kernel'], expected, rtol=1e-6)


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  return tiny_run.write_dataset(tmp_path_factory.mktemp('dataset'))


def test_fake_data_repeats_the_first_batch(dataset):
  seen = {}
  for flag in ('--use_fake_data', '--nouse_fake_data'):
    config = small_config(*data(dataset), '--train_batch_size=2', flag)
    batches = input_pipeline.train_batches(**config.input)
    seen[flag] = [next(batches)['image_ids'].tolist() for _ in range(4)]
  assert seen['--use_fake_data'] == [seen['--nouse_fake_data'][0]] * 4
  assert len({*map(tuple, seen['--nouse_fake_data'])}) > 1


@pytest.mark.parametrize(
  'flag, value, field',
  [
    ('training_file_pattern', 'no/train*', "file_pattern 'no/train*'"),
    ('validation_file_pattern', 'no/val*', "file_pattern 'no/val*'"),
    ('val_json_file', 'no.json', 'annotations_file no.json'),
    ('checkpoint', 'no/model.ckpt-1', 'training.pretrained'),
    ('eval_samples', '0', 'evaluation.max_images'),
    ('max_cpus', '0', 'num_threads'),
    ('train_batch_size', '0', 'input.batch_size'),
    ('eval_batch_size', '-4', 'evaluation.batch_size'),
    ('total_steps', '0', 'training.num_steps'),
    ('profile', '3,1', 'training.profile'),
    ('device', 'HPU', "runtime.backend is 'hpu'"),
  ],
)
def test_inputs_are_checked_before_the_first_step(
  dataset, tmp_path, monkeypatch, capsys, flag, value, field
):
  monkeypatch.chdir(tmp_path)
  argv = [*data(dataset), *habana_runs.scratch(), '--mode=train']
  assert habana.main([*argv, f'--{flag}={value}']) == 2
  error = capsys.readouterr().err
  assert error.startswith('mask_rcnn_main.py: ')
  assert field in error
  assert not list(tmp_path.iterdir())  # Neither results/ nor mrcnn.json.


def test_without_evaluation_its_inputs_are_not_checked(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  called = []
  monkeypatch.setattr(loop, 'train', lambda *a: called.append(a))
  argv = ['--mode=train', '--noeval_after_training', *habana_runs.scratch()]
  assert habana.main([*argv, '--val_json_file=no.json']) == 0
  config, workdir, notes = called[0]
  assert workdir == 'results/'
  assert config.evaluation.annotations_file == 'no.json'
  params = yaml.safe_load(notes['params.yaml'])
  assert params['val_json_file'] == 'no.json'
  assert params['learning_rate_levels'] == pytest.approx([5e-4, 5e-5])
  assert params['model']['num_classes'] == 3


def test_evaluation_of_an_empty_folder_is_an_error(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  assert habana.main(['--mode=eval', *habana_runs.small()]) == 2
  assert 'results/ ' in capsys.readouterr().err
  (tmp_path / 'results').mkdir()
  (tmp_path / 'results' / 'model.ckpt-360000.index').touch()
  assert habana.main(['--mode=eval', *habana_runs.small()]) == 2
  error = capsys.readouterr().err
  assert 'results/model.ckpt-360000' in error and '--checkpoint' in error


def test_a_backbone_cannot_be_evaluated(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  habana_runs.write_backbone(tmp_path)
  prefix = next(tmp_path.rglob('*.index')).with_suffix('')
  argv = ['--mode=eval', f'--checkpoint={prefix}', *habana_runs.small()]
  assert habana.main(argv) == 2
  error = capsys.readouterr().err
  assert 'model.ckpt-112603' in error and 'backbone' in error


# Runs of the script. They share compiled programs.


@pytest.fixture(scope='module')
def env(tmp_path_factory):
  return habana_runs.environment(tmp_path_factory.mktemp('programs'))


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
def run(tmp_path_factory, dataset, env):
  """The folder of a run with cycles, and what it printed."""
  folder = tmp_path_factory.mktemp('run')
  argv = [*data(dataset), *habana_runs.scratch(), *RUN_FLAGS]
  return folder, execute(argv, folder, env)


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
def test_both_commands_give_the_same_metrics(run, dataset, env, tmp_path):
  folder, _ = run
  config = store.restore(folder / 'run')[1]
  # A restored config has neither a runtime nor paths.
  saved = store.read_config(folder / 'run')
  config.runtime = saved['runtime']
  for name in ('input', 'training', 'evaluation'):
    texts = {k: x for k, x in saved[name].items() if isinstance(x, str)}
    config[name].update(texts)
  path = tiny_run.write_config(config, tmp_path / 'same.py')
  subprocess.run(
    [
      *(sys.executable, '-m', 'maskrcnn_jax.cli.main', 'train_and_eval'),
      f'--config={path}',
      f'--workdir={tmp_path}/run',
    ],
    env=env,
    cwd=tmp_path,
    check=True,
    capture_output=True,
  )
  for key in ('train/total_loss', 'eval/AP'):
    ours, theirs = lines(tmp_path / 'run', key), lines(folder / 'run', key)
    assert ours == theirs
    assert len(theirs) > 1


@pytest.mark.slow
def test_a_finished_run_is_left_alone(run, dataset, env):
  folder, _ = run
  before = {p: p.stat().st_mtime_ns for p in (folder / 'run').rglob('*')}
  argv = [*data(dataset), *habana_runs.scratch(), '--model_dir=run', *TRAIN]
  wide = '--config.model.backbone.width=8'
  argvs = [*argv, '--total_steps=5'], [*argv, '--total_steps=9', wide]
  (done, _), (refused, shown) = execute_all(argvs, folder, env)
  assert (done, refused) == (0, 2) and 'model.backbone.width' in shown
  assert {
    p: p.stat().st_mtime_ns for p in (folder / 'run').rglob('*')
  } == before


@pytest.fixture(scope='module')
def evaluated(run, dataset, env):
  """Folder of the run and of copies, each evaluated in its own way."""
  folder, _ = run
  ways = {
    'one': ['--eval_batch_size=1'],
    'four': ['--eval_batch_size=4'],  # The run took 2 of 3 images at a time.
    'two': ['--eval_samples=2'],
    'records': ['--val_json_file=no', '--include_groundtruth_in_features'],
  }
  argvs = []
  for name, more in ways.items():
    shutil.copytree(folder / 'run', folder / name)
    argv = [*data(dataset), *habana_runs.scratch(), '--mode=eval', *more]
    argvs.append([*argv, f'--model_dir={name}', f'--log_path={name}.json'])
  codes = [code for code, _ in execute_all(argvs, folder, env)]
  assert codes == [0] * len(ways)
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
def test_train_with_and_without_evaluation(dataset, env, tmp_path):
  argv = [*data(dataset), *habana_runs.scratch(), '--mode=train']
  argv += ['--total_steps=2', '--train_batch_size=2', '--eval_batch_size=2']
  leftover = tmp_path / 'results' / 'model.ckpt-360000.index'
  leftover.parent.mkdir()
  leftover.write_text('of an older run')
  argvs = [*argv, '--noeval_after_training'], argv
  (_, without), (_, after) = execute_all(argvs, tmp_path, env)
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
def test_a_new_run_starts_from_the_pretrained_backbone(dataset, env, tmp_path):
  tensors = habana_runs.write_backbone(tmp_path)
  argv = [*data(dataset), *habana_runs.small(), *TRAIN]
  # The first step has the learning rate 0. A resumed run does not even need the
  # file.
  later = ['--total_steps=2', '--init_learning_rate=5', '--checkpoint=none']
  argvs = [*argv, '--total_steps=1'], [*argv, *later]
  (_, shown), (_, resumed) = execute_all(argvs, tmp_path, env)
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
def test_seed_and_determinism(num_steps, dataset, env, tmp_path):
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
  execute(first, tmp_path, env)  # A process of its own.
  execute_all([other, again], tmp_path, env)
  tiny_run.assert_same_end(tmp_path / 'a', tmp_path / 'b')
  ours, again, other = (
    lines(tmp_path / name, 'train/total_loss') for name in ('a', 'b', 'c')
  )
  assert ours == again
  assert ours[10] != other[10]
  # On a GPU the promise needs XLA's deterministic forms.
  saved = json.loads((tmp_path / 'a' / 'config.json').read_text())
  assert saved['runtime']['deterministic']


def test_determinism_reaches_xla(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_a=1')
  for _ in range(2):
    processes.make_deterministic()
  flags = '--xla_a=1 --xla_gpu_deterministic_ops=true'
  assert os.environ['XLA_FLAGS'] == flags


def test_device_chooses_the_backend(dataset, tmp_path, capsys):
  if jax.default_backend() != 'cpu':
    pytest.skip('an accelerator is present')
  argv = ['--mode=eval', f'--model_dir={tmp_path}', *habana_runs.small()]
  for device in ('CPU', 'HPU'):
    assert habana.main([*argv, f'--device={device}']) == 2
    error = capsys.readouterr().err
    assert ('no checkpoint' in error) == (device == 'CPU')
    assert ("runtime.backend is 'hpu'" in error) == (device == 'HPU')
  # The default, HPU, is not binding: the CPU serves.
  assert habana.main(argv) == 2
  assert 'no checkpoint' in capsys.readouterr().err


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
