"""Effects of Habana's flags, in this process."""

import os

import habana_runs
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import yaml
from habana_runs import config_of, data

from maskrcnn_jax import input_pipeline
from maskrcnn_jax.distributed import processes
from maskrcnn_jax.habana import command as habana
from maskrcnn_jax.models import proposals as proposals_lib
from maskrcnn_jax.models.heads import RPNOutputs
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.optimization import optimizer as optimizer_lib
from maskrcnn_jax.training import loop, train_state


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
    variables = train_state.init_variables(model, key)
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
      lambda key, model=model: train_state.init_variables(model, key),
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
