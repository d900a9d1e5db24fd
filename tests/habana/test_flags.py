"""Every flag of the seed: its name, type and default, and where it goes.

What the flags do is watched in `test_seed_command.py`.
"""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.habana import command as seed_command
from maskrcnn_jax.habana import flags as seed_flags

RECORDS = '/data/tensorflow/coco2017/tf_records'
# Name -> type, default, as the original declares them.
ORIGINAL = {
  'mode': (str, 'train_and_eval'),
  'training_file_pattern': (str, f'{RECORDS}/train-*.tfrecord'),
  'validation_file_pattern': (str, f'{RECORDS}/val-*.tfrecord'),
  'val_json_file': (str, f'{RECORDS}/annotations/instances_val2017.json'),
  'checkpoint': (
    str,
    'weights/resnet/resnet-nhwc-2018-02-07/model.ckpt-112603',
  ),
  'model_dir': (str, 'results/'),
  'total_steps': (int, 360000),
  'train_batch_size': (int, 4),
  'eval_after_training': (bool, True),
  'use_fake_data': (bool, False),
  'pyramid_roi_impl': (str, 'habana'),
  'eval_samples': (int, 5000),
  'eval_batch_size': (int, 4),
  'num_steps_per_eval': (int, 29568),
  'deterministic': (bool, False),
  'save_summary_steps': (int, None),
  'device': (str, 'HPU'),
  'profile': (str, ''),
  'init_learning_rate': (float, 0.005),
  'learning_rate_steps': (list, ['240000', '320000']),
  'learning_rate_decay_levels': (list, ['0.1', '0.01']),
  'warmup_learning_rate': (float, 0.0),
  'warmup_steps': (int, 1000),
  'momentum': (float, 0.9),
  'l2_weight_decay': (float, 1e-4),
  'finetune_bn': (bool, False),
  'global_gradient_clip_ratio': (float, -1.0),
  'save_checkpoints_steps': (int, 2500),
  'seed': (int, None),
  'skip_cycles': (int, 0),
  'include_groundtruth_in_features': (bool, False),
  'report_frequency': (int, None),
  'log_path': (str, './mrcnn.json'),
  'amp': (bool, False),
  'xla': (bool, False),
  'allow_xla_at_inference': (bool, False),
  'use_tf_distributed': (bool, False),
  'use_batched_nms': (bool, False),
  'nms_on_hpu': (bool, True),
  'topk_before_nms': (bool, True),
  'offload_maskhead_postproc': (bool, False),
  'use_habana_get_mask_targets': (bool, True),
  'use_custom_box_proposals_op': (bool, False),
  'recipe_cache': (str, '/tmp/maskrcnn_recipe_cache/'),
  'max_cpus': (int, 16),
  'dump_config': (str, None),
}
# A value other than the default, for every type.
OTHER = {str: 'other', int: 7, float: 0.25, bool: None, list: '3,4'}
CHOICES = {
  'mode': 'eval',
  'pyramid_roi_impl': 'gather',
  'device': 'CPU',
  'profile': '2,3',
}

# Name -> argument, and the fields of the config that it changes.
MAPPED = {
  'mode': (
    '--mode=train',
    {'evaluation.every_steps': 0},
  ),
  'training_file_pattern': (
    '--training_file_pattern=a*',
    {'input.file_pattern': 'a*'},
  ),
  'validation_file_pattern': (
    '--validation_file_pattern=b*',
    {'evaluation.file_pattern': 'b*'},
  ),
  'val_json_file': (
    '--val_json_file=c.json',
    {'evaluation.annotations_file': 'c.json'},
  ),
  'checkpoint': ('--checkpoint=w/m', {'training.pretrained': 'w/m'}),
  'model_dir': ('--model_dir=d', {}),
  'total_steps': ('--total_steps=9', {'training.num_steps': 9}),
  'train_batch_size': ('--train_batch_size=12', {'input.batch_size': 24}),
  'eval_after_training': ('--noeval_after_training', {}),
  'use_fake_data': ('--use_fake_data', {'input.repeat_first': True}),
  'pyramid_roi_impl': (
    '--pyramid_roi_impl=habana_fp32',
    {'model.roi_align.dtype': 'float32'},
  ),
  'eval_samples': ('--eval_samples=61', {'evaluation.max_images': 61}),
  'eval_batch_size': ('--eval_batch_size=3', {'evaluation.batch_size': 6}),
  'num_steps_per_eval': (
    '--num_steps_per_eval=3696',
    {'evaluation.every_steps': 3696},
  ),
  'deterministic': ('--deterministic', {'runtime.deterministic': True}),
  'save_summary_steps': (
    '--save_summary_steps=10',
    {'training.summary_every_steps': 10},
  ),
  'device': ('--device=CPU', {'runtime.backend': 'cpu'}),
  'profile': ('--profile=5,8', {'training.profile': (5, 8)}),
  'init_learning_rate': (
    '--init_learning_rate=0.04',
    {'optimizer.learning_rate': 0.04},
  ),
  'learning_rate_steps': (
    '--learning_rate_steps=30000,40000',
    {'optimizer.decay_steps': (30000, 40000)},
  ),
  'learning_rate_decay_levels': (
    '--learning_rate_decay_levels=0.5,0.25',
    {'optimizer.decay_factors': (0.5, 0.25)},
  ),
  'warmup_learning_rate': (
    '--warmup_learning_rate=0.001',
    {'optimizer.warmup_learning_rate': 0.001},
  ),
  'warmup_steps': ('--warmup_steps=500', {'optimizer.warmup_steps': 500}),
  'momentum': ('--momentum=0.5', {'optimizer.momentum': 0.5}),
  'l2_weight_decay': (
    '--l2_weight_decay=0.001',
    {'optimizer.weight_decay': 0.001},
  ),
  'finetune_bn': ('--finetune_bn', {'model.backbone.norm': 'batch'}),
  'global_gradient_clip_ratio': (
    '--global_gradient_clip_ratio=5',
    {'optimizer.clip_global_norm': 5.0},
  ),
  'save_checkpoints_steps': (
    '--save_checkpoints_steps=100',
    {'training.checkpoint_every_steps': 100},
  ),
  'seed': ('--seed=3', {'training.seed': 3, 'input.seed': 3}),
  'skip_cycles': ('--skip_cycles=2', {'evaluation.skip_first': 2}),
  'include_groundtruth_in_features': (
    '--include_groundtruth_in_features',
    {'evaluation.annotations_file': ''},
  ),
  'report_frequency': (
    '--report_frequency=50',
    {'evaluation.report_every_batches': 50},
  ),
  'log_path': ('--log_path=x.json', {'training.log_file': 'x.json'}),
  'amp': ('--amp', {'model.dtype': 'bfloat16'}),
  'use_tf_distributed': (
    '--use_tf_distributed',
    {'runtime.num_devices': None},
  ),
  'topk_before_nms': (
    '--notopk_before_nms',
    {
      'model.train_proposals.pre_nms_top_k': None,
      'model.test_proposals.pre_nms_top_k': None,
    },
  ),
  'max_cpus': ('--max_cpus=1', {'input.num_threads': 1}),
  'xla': ('--xla', {}),
  'allow_xla_at_inference': ('--allow_xla_at_inference', {}),
  'use_batched_nms': ('--use_batched_nms', {}),
  'nms_on_hpu': ('--nonms_on_hpu', {}),
  'offload_maskhead_postproc': ('--offload_maskhead_postproc', {}),
  'use_habana_get_mask_targets': ('--nouse_habana_get_mask_targets', {}),
  'use_custom_box_proposals_op': ('--use_custom_box_proposals_op', {}),
  'recipe_cache': ('--recipe_cache=r', {}),
  'dump_config': ('--dump_config=d.json', {}),
}


@pytest.fixture(autouse=True)
def many_cpus(monkeypatch):
  monkeypatch.setattr(seed_command.os, 'cpu_count', lambda: 64)


def flat(section, prefix=''):
  values = {}
  for name, value in section.items():
    if isinstance(value, dict):
      values |= flat(value, f'{prefix}{name}.')
    else:
      values[prefix + name] = value
  return values


def config_of(*argv, environ=None, **counts):
  command = seed_flags.parse(argv)
  return seed_command.make_config(command, environ or {}, **counts)


def test_there_are_the_flags_of_the_original():
  assert {flag.name for flag in seed_flags.FLAGS} == set(ORIGINAL)
  assert set(MAPPED) == set(ORIGINAL)


@pytest.mark.parametrize('name', ORIGINAL)
def test_type_and_default_are_those_of_the_original(name):
  kind, default = ORIGINAL[name]
  value = seed_flags.parse([]).values[name]
  assert value == default
  assert default is None or type(value) is kind
  if kind is bool:
    for argument, expected in (
      (f'--{name}', True),
      (f'--no{name}', False),
      (f'--{name}=true', True),
      (f'--{name}=False', False),
    ):
      assert seed_flags.parse([argument]).values[name] is expected
    return
  text = CHOICES.get(name, str(OTHER[kind]))
  for argv in ([f'--{name}={text}'], [f'--{name}', text], [f'-{name}={text}']):
    command = seed_flags.parse(argv)
    assert type(command.values[name]) is kind
    assert command.given == {name}


@pytest.mark.parametrize('name', MAPPED)
def test_a_flag_changes_its_fields_and_no_others(name):
  argument, expected = MAPPED[name]
  before, after = (
    flat(config_of(*argv, num_devices=2).to_dict()) for argv in ([], [argument])
  )
  changed = {
    field: value for field, value in after.items() if value != before[field]
  }
  assert changed == expected
  answers = seed_flags.answers(seed_flags.parse([argument]))
  (flag,) = (flag for flag in seed_flags.FLAGS if flag.name == name)
  assert len(answers) == bool(flag.replaced)
  if flag.replaced:
    assert answers[0].startswith(f'--{name} has nothing to do here: ')
    assert not changed


def test_without_flags_it_is_the_recipe_of_the_seed():
  config = config_of()
  recipe = config_lib.load_config('coco:habana_1x')
  assert config.model.to_dict() == recipe.model.to_dict()
  ours, theirs = config.optimizer.to_dict(), recipe.optimizer.to_dict()
  # The rate is taken as it is given, whatever the batch.
  assert ours | {'tuned_batch_size': 4} == theirs
  assert config.training.num_steps == recipe.training.num_steps
  assert config.evaluation.every_steps == recipe.evaluation.every_steps
  assert config.runtime.num_devices == 1


def test_defaults_that_are_not_given_are_not_answered():
  assert seed_flags.answers(seed_flags.parse([])) == []


@pytest.mark.parametrize(
  'text, dtype',
  [
    (None, 'float32'),
    ('', 'float32'),
    ('0', 'float32'),
    ('basic', 'bfloat16_products'),
    ('full', 'bfloat16'),
    ('1', 'bfloat16'),
    ('True', 'bfloat16'),
  ],
)
def test_precision_follows_the_environment(text, dtype):
  environ = {} if text is None else {'TF_BF16_CONVERSION': text}
  assert config_of(environ=environ).model.dtype == dtype
  amp = config_of('--amp', environ=environ).model.dtype
  assert amp == ('bfloat16' if dtype == 'float32' else dtype)


@pytest.mark.parametrize('name', ['habana', 'gather'])
def test_two_names_of_one_roi_align(name):
  config = config_of(f'--pyramid_roi_impl={name}')
  assert config.model.roi_align.dtype is None


@pytest.mark.parametrize(
  'argv, counts, expected',
  [
    ([], {}, (4, 4, 1)),
    ([], {'num_processes': 8, 'num_devices': 8}, (32, 32, None)),
    (['--use_tf_distributed'], {'num_devices': 2}, (8, 8, None)),
    (['--config.input.batch_size=6'], {'num_devices': 2}, (6, 8, 1)),
  ],
)
def test_batches_are_per_device(argv, counts, expected):
  config = config_of(*argv, **counts)
  assert config.input.batch_size == expected[0]
  assert config.evaluation.batch_size == expected[1]
  assert config.runtime.num_devices == expected[2]
  assert config.optimizer.learning_rate == 0.005


def test_fields_of_the_config_come_last():
  config = config_of(
    '--config.optimizer.learning_rate=0.5',
    '--init_learning_rate=0.1',
    '--config.model.backbone.width',
    '8',
  )
  assert config.optimizer.learning_rate == 0.5
  assert config.model.backbone.width == 8


def test_one_step_to_trace_is_both_ends():
  assert config_of('--profile=7').training.profile == (7, 7)
  assert config_of().training.profile is None


def test_max_cpus_is_no_more_than_there_are(monkeypatch):
  monkeypatch.setattr(seed_command.os, 'cpu_count', lambda: 2)
  assert config_of().input.num_threads == 2


@pytest.mark.parametrize(
  'argv, message',
  [
    (['--train_batchsize=4'], 'Did you mean: train_batch_size'),
    (['--mode=test'], 'train|eval|train_and_eval'),
    (['--pyramid_roi_impl=haban'], 'habana|habana_fp32|gather'),
    (['--total_steps=many'], 'total_steps=many'),
    (['--config.input.flip'], 'needs a value'),
    (['results'], "'results' is no flag"),
  ],
)
def test_a_wrong_flag_is_one_message_and_exit_code_2(argv, message, capsys):
  assert seed_flags.main(argv) == 2
  error = capsys.readouterr().err
  assert error.startswith('mask_rcnn_main.py: ')
  assert message in error


@pytest.mark.parametrize(
  'argv, message',
  [
    (['--learning_rate_steps=a,b'], r'--learning_rate_steps .* got .a,b'),
    (['--learning_rate_steps=5'], 'must have the same length'),
    (['--profile=1,2,3'], r'--profile must be one step or first,last'),
    (['--profile=x'], r'--profile must be'),
    (['--config.input.flips=true'], "did you mean 'flip'"),
  ],
)
def test_a_wrong_value_names_its_flag(argv, message):
  with pytest.raises(ValueError, match=message):
    config = config_of(*argv)
    from maskrcnn_jax.training import optimizer

    optimizer.OptimizerOptions(**config.optimizer)


def test_a_list_of_operations_for_bfloat16_is_refused():
  with pytest.raises(ValueError, match=r"full, basic, 1 or 0, got 'ops\.json'"):
    config_of(environ={'TF_BF16_CONVERSION': 'ops.json'})


def test_the_page_has_a_row_for_every_flag():
  page = pathlib.Path(__file__).parents[2] / 'docs/coming_from_the_seed.md'
  rows = {
    line.split('|')[1].strip(' `'): line
    for line in page.read_text().splitlines()
    if line.startswith('| `')
  }
  for flag in seed_flags.FLAGS:
    row = rows[flag.name]
    if flag.default not in (None, ''):
      assert f'| `{flag.default}` |' in row
    for field in [flag.field, *MAPPED[flag.name][1]]:
      # A few flags name a field only with its value.
      assert field.rpartition('.')[2] in row or flag.name == 'mode', row
    if flag.replaced:
      assert flag.replaced.rstrip('.') in row


def test_help_is_instant_grouped_and_shows_defaults():
  code = (
    'import sys\n'
    'from maskrcnn_jax.habana import flags as seed_flags\n'
    'code = seed_flags.main(["--help"])\n'
    'heavy = {"jax", "numpy", "tensorflow", "ml_collections", "yaml"}\n'
    'print("HEAVY", heavy & set(sys.modules), code)\n'
  )
  shown = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  ).stdout
  assert 'HEAVY set() 0' in shown
  for name, (_, default) in ORIGINAL.items():
    assert f'--{name} (default: ' in shown, name
    if not isinstance(default, list):
      assert f'--{name} (default: {default})' in shown
  groups = [line for line in shown.splitlines() if line.endswith(':')]
  assert 'what to run:' in groups and 'schedule:' in groups


def test_learning_rate_of_the_flags():
  """The schedule that the flags make, against seed_facts 13 and by hand."""
  from maskrcnn_jax.training import optimizer

  def rates(argv, steps):
    options = optimizer.OptimizerOptions(**config_of(*argv).optimizer)
    return [float(optimizer.learning_rate(options)(step)) for step in steps]

  np.testing.assert_allclose(
    rates([], [0, 1, 500, 999, 1000, 240000, 240001, 320000, 320001]),
    [0, 5e-6, 0.0025, 0.004995, 0.005, 0.005, 5e-4, 5e-4, 5e-5],
    rtol=1e-6,
  )
  argv = [
    '--init_learning_rate=0.1',
    '--warmup_learning_rate=0.01',
    '--warmup_steps=2',
    '--learning_rate_steps=3,4',
    '--learning_rate_decay_levels=0.5,0.25',
  ]
  np.testing.assert_allclose(
    rates(argv, range(6)), [0.01, 0.055, 0.1, 0.1, 0.05, 0.025], rtol=1e-6
  )
