"""Habana's flags: names, types, defaults and the config fields they set."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from habana_runs import config_of

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.habana import command as habana
from maskrcnn_jax.habana import flags
from maskrcnn_jax.optimization import optimizer, schedule

PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'coming_from_habana.md'
RECORDS = '/data/tensorflow/coco2017/tf_records'
WEIGHTS = 'weights/resnet/resnet-nhwc-2018-02-07/model.ckpt-112603'
# Name, type and default of Habana's flag; an argument, and the fields of the
# config that it changes, on two devices.
# fmt: off
FLAGS = [
  ('mode', str, 'train_and_eval', '--mode=train',
   {'evaluation.every_steps': 0}),
  ('training_file_pattern', str, f'{RECORDS}/train-*.tfrecord',
   '--training_file_pattern=a*', {'input.file_pattern': 'a*'}),
  ('validation_file_pattern', str, f'{RECORDS}/val-*.tfrecord',
   '--validation_file_pattern=b*', {'evaluation.file_pattern': 'b*'}),
  ('val_json_file', str, f'{RECORDS}/annotations/instances_val2017.json',
   '--val_json_file=c.json', {'evaluation.annotations_file': 'c.json'}),
  ('checkpoint', str, WEIGHTS, '--checkpoint=w/m',
   {'training.pretrained': 'w/m'}),
  ('model_dir', str, 'results/', '--model_dir=d', {}),
  ('total_steps', int, 360000, '--total_steps=9', {'training.num_steps': 9}),
  ('train_batch_size', int, 4, '--train_batch_size=12',
   {'input.batch_size': 24}),
  ('eval_after_training', bool, True, '--noeval_after_training', {}),
  ('use_fake_data', bool, False, '--use_fake_data',
   {'input.repeat_first': True}),
  ('pyramid_roi_impl', str, 'habana', '--pyramid_roi_impl=habana_fp32',
   {'model.roi_align.dtype': 'float32'}),
  ('eval_samples', int, 5000, '--eval_samples=61',
   {'evaluation.max_images': 61}),
  ('eval_batch_size', int, 4, '--eval_batch_size=3',
   {'evaluation.batch_size': 6}),
  ('num_steps_per_eval', int, 29568, '--num_steps_per_eval=3696',
   {'evaluation.every_steps': 3696}),
  ('deterministic', bool, False, '--deterministic',
   {'runtime.deterministic': True}),
  ('save_summary_steps', int, None, '--save_summary_steps=10',
   {'training.summary_every_steps': 10}),
  ('device', str, 'HPU', '--device=CPU', {'runtime.backend': 'cpu'}),
  ('profile', str, '', '--profile=5,8', {'training.profile': (5, 8)}),
  ('init_learning_rate', float, 0.005, '--init_learning_rate=0.04',
   {'optimizer.learning_rate': 0.04}),
  ('learning_rate_steps', list, ['240000', '320000'],
   '--learning_rate_steps=30000,40000',
   {'optimizer.decay_steps': (30000, 40000)}),
  ('learning_rate_decay_levels', list, ['0.1', '0.01'],
   '--learning_rate_decay_levels=0.5,0.25',
   {'optimizer.decay_factors': (0.5, 0.25)}),
  ('warmup_learning_rate', float, 0.0, '--warmup_learning_rate=0.001',
   {'optimizer.warmup_learning_rate': 0.001}),
  ('warmup_steps', int, 1000, '--warmup_steps=500',
   {'optimizer.warmup_steps': 500}),
  ('momentum', float, 0.9, '--momentum=0.5', {'optimizer.momentum': 0.5}),
  ('l2_weight_decay', float, 0.0001, '--l2_weight_decay=0.001',
   {'optimizer.weight_decay': 0.001}),
  ('finetune_bn', bool, False, '--finetune_bn',
   {'model.backbone.norm': 'batch'}),
  ('global_gradient_clip_ratio', float, -1.0, '--global_gradient_clip_ratio=5',
   {'optimizer.clip_global_norm': 5.0}),
  ('save_checkpoints_steps', int, 2500, '--save_checkpoints_steps=100',
   {'training.checkpoint_every_steps': 100}),
  ('seed', int, None, '--seed=3', {'training.seed': 3, 'input.seed': 3}),
  ('skip_cycles', int, 0, '--skip_cycles=2', {'evaluation.skip_first': 2}),
  ('include_groundtruth_in_features', bool, False,
   '--include_groundtruth_in_features', {'evaluation.annotations_file': ''}),
  ('report_frequency', int, None, '--report_frequency=50',
   {'evaluation.report_every_batches': 50}),
  ('log_path', str, './mrcnn.json', '--log_path=x.json',
   {'training.log_file': 'x.json'}),
  ('amp', bool, False, '--amp', {'model.dtype': 'bfloat16'}),
  ('xla', bool, False, '--xla', {}),
  ('allow_xla_at_inference', bool, False, '--allow_xla_at_inference', {}),
  ('use_tf_distributed', bool, False, '--use_tf_distributed',
   {'runtime.num_devices': None}),
  ('use_batched_nms', bool, False, '--use_batched_nms', {}),
  ('nms_on_hpu', bool, True, '--nonms_on_hpu', {}),
  ('topk_before_nms', bool, True, '--notopk_before_nms',
   {'model.train_proposals.pre_nms_top_k': None,
    'model.test_proposals.pre_nms_top_k': None}),
  ('offload_maskhead_postproc', bool, False, '--offload_maskhead_postproc', {}),
  ('use_habana_get_mask_targets', bool, True, '--nouse_habana_get_mask_targets',
   {}),
  ('use_custom_box_proposals_op', bool, False, '--use_custom_box_proposals_op',
   {}),
  ('recipe_cache', str, '/tmp/maskrcnn_recipe_cache/', '--recipe_cache=r', {}),
  ('max_cpus', int, 16, '--max_cpus=1', {'input.num_threads': 1}),
  ('dump_config', str, None, '--dump_config=d.json', {}),
]
# fmt: on


@pytest.fixture(autouse=True)
def many_cpus(monkeypatch):
  monkeypatch.setattr(habana.os, 'cpu_count', lambda: 64)


def flat(section, prefix=''):
  values = {}
  for name, value in section.items():
    if isinstance(value, dict):
      values |= flat(value, f'{prefix}{name}.')
    else:
      values[prefix + name] = value
  return values


def test_flags_are_those_of_the_original():
  assert {flag.name for flag in flags.FLAGS} == {row[0] for row in FLAGS}


@pytest.mark.parametrize('name, kind, default, argument, _', FLAGS)
def test_type_and_default_are_those_of_the_original(
  name, kind, default, argument, _
):
  value = flags.parse([]).values[name]
  assert value == default
  assert default is None or type(value) is kind
  text = argument.partition('=')[2]
  forms = [[f'--{name}={text}'], [f'--{name}', text], [f'-{name}={text}']]
  expected = [None] * 3
  if kind is bool:
    forms = [f'--{name}', f'--no{name}', f'--{name}=true', f'--{name}=False']
    forms, expected = [[form] for form in forms], [True, False, True, False]
  for argv, wanted in zip(forms, expected, strict=True):
    command = flags.parse(argv)
    assert type(command.values[name]) is kind
    assert wanted in (None, command.values[name])
    assert command.given == {name}


@pytest.mark.parametrize('name, kind, default, argument, expected', FLAGS)
def test_a_flag_changes_its_fields_and_no_others(
  name, kind, default, argument, expected
):
  before, after = (
    flat(config_of(*argv, num_devices=2).to_dict()) for argv in ([], [argument])
  )
  changed = {
    field: value for field, value in after.items() if value != before[field]
  }
  assert changed == expected
  (flag,) = (flag for flag in flags.FLAGS if flag.name == name)
  without_effect = flags.without_effect(flags.parse([argument]))
  if flag.replaced:
    assert without_effect == {name: flag.replaced} and not changed
  else:  # The two without a field choose what runs, and where.
    assert changed or name in ('model_dir', 'eval_after_training')


def test_without_flags_it_is_habanas_recipe():
  config = config_of()
  recipe = config_lib.load_config('coco:habana_1x')
  assert config.model.to_dict() == recipe.model.to_dict()
  ours, theirs = config.optimizer.to_dict(), recipe.optimizer.to_dict()
  # The learning rate is literal, whatever the batch.
  assert ours | {'tuned_batch_size': 4} == theirs
  assert config.training.num_steps == recipe.training.num_steps
  assert config.evaluation.every_steps == recipe.evaluation.every_steps
  assert config.runtime.num_devices == 1
  assert flags.without_effect(flags.parse([])) == {}


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


def test_overrides_of_the_config_apply_last():
  config = config_of(
    '--config.optimizer.learning_rate=0.5',
    '--init_learning_rate=0.1',
    '--config.model.backbone.width',
    '8',
  )
  assert config.optimizer.learning_rate == 0.5
  assert config.model.backbone.width == 8


def test_values_that_are_derived(monkeypatch):
  assert config_of('--profile=7').training.profile == (7, 7)
  assert config_of().training.profile is None
  monkeypatch.setattr(habana.os, 'cpu_count', lambda: 2)
  assert config_of().input.num_threads == 2


@pytest.mark.parametrize(
  'argv, known',
  [
    (['--train_batchsize=4'], 'train_batch_size'),
    (['--mode=test'], 'train|eval|train_and_eval'),
    (['--pyramid_roi_impl=haban'], 'habana|habana_fp32|gather'),
    (['--total_steps=many'], 'total_steps=many'),
    (['--config.input.flip'], '--config.input.flip=VALUE'),
    (['results'], '--name=value'),
  ],
)
def test_a_wrong_flag_exits_with_2(argv, known, capsys):
  assert habana.main(argv) == 2
  error = capsys.readouterr().err
  assert error.startswith('mask_rcnn_main.py: ')
  assert known in error


@pytest.mark.parametrize(
  'argv, argument, given',
  [
    (['--learning_rate_steps=a,b'], '--learning_rate_steps', 'a,b'),
    (['--profile=1,2,3'], '--profile', '1,2,3'),
    (['--profile=x'], '--profile', 'x'),
    (['--config.input.flips=true'], 'input.flips', 'flips'),
    ([], 'TF_BF16_CONVERSION', 'ops.json'),  # A list of operations.
  ],
)
def test_a_wrong_value_names_its_flag(argv, argument, given):
  environ = {} if argv else {argument: given}
  with pytest.raises(UserError) as error:
    config_of(*argv, environ=environ)
  assert error.value.argument == argument
  assert error.value.given == given


def test_the_page_has_a_row_for_every_flag():
  rows = {
    line.split('|')[1].strip(' `'): line
    for line in PAGE.read_text().splitlines()
    if line.startswith('| `')
  }
  fields = {row[0]: row[-1] for row in FLAGS}
  for flag in flags.FLAGS:
    row = rows[flag.name]
    if flag.default not in (None, ''):
      assert f'| `{flag.default}` |' in row
    for field in [flag.field, *fields[flag.name]]:
      # A few flags name a field only with its value.
      assert field.rpartition('.')[2] in row or flag.name == 'mode', row
    if flag.replaced:
      assert flag.replaced.rstrip('.') in row


def test_help_is_instant_grouped_and_shows_defaults():
  code = (
    'import sys\n'
    'from maskrcnn_jax.habana import command\n'
    'code = command.main(["--help"])\n'
    'heavy = {"jax", "numpy", "tensorflow", "ml_collections", "yaml"}\n'
    'print("HEAVY", heavy & set(sys.modules), code)\n'
  )
  shown = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  ).stdout
  assert 'HEAVY set() 0' in shown
  for name, kind, default, _, _ in FLAGS:
    value = ','.join(default) if kind is list else default
    assert f'--{name} (default: {value})' in shown, name
  for group in flags.GROUPS:
    assert f'\n{group}:\n' in shown


@pytest.mark.parametrize(
  'argv, steps, expected',
  [
    (
      [],
      [0, 1, 500, 999, 1000, 240000, 240001, 320000, 320001],
      [0, 5e-6, 0.0025, 0.004995, 0.005, 0.005, 5e-4, 5e-4, 5e-5],
    ),
    (
      [
        '--init_learning_rate=0.1',
        '--warmup_learning_rate=0.01',
        '--warmup_steps=2',
        '--learning_rate_steps=3,4',
        '--learning_rate_decay_levels=0.5,0.25',
      ],
      range(6),
      [0.01, 0.055, 0.1, 0.1, 0.05, 0.025],
    ),
  ],
)
def test_learning_rate_of_the_flags(argv, steps, expected):
  """The schedule against Habana's (its defaults), and by hand."""
  options = optimizer.OptimizerOptions(**config_of(*argv).optimizer)
  rates = [float(schedule.learning_rate(options)(step)) for step in steps]
  np.testing.assert_allclose(rates, expected, rtol=1e-6)
