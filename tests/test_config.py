"""Configs are found, loaded and changed by text; mistakes are explained."""

import dataclasses
import inspect
import pathlib
import re

import ml_collections
import pytest

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.input_pipeline import batches
from maskrcnn_jax.models import mask_rcnn
from maskrcnn_jax.training import evaluator, loop, optimizer

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'

SECTIONS = {
  'evaluation',
  'input',
  'model',
  'optimizer',
  'runtime',
  'training',
}
SHIPPED = [
  'shapes',
  'coco',
  'coco:habana_1x',
  'coco:nvidia_1x',
  'coco:habana_1x_batch12',
  'coco:habana_8x',
  'coco:habana_8x_batch12_bf16',
  'coco:torchvision',
  'coco:torchvision_v2',
  'coco:detectron2',
  'coco:from_scratch',
  'coco:overfit',
  'coco:finetune',
  'shapes:demo',
  'shapes:finetune',
  'shapes:nuclei',
  'shapes:nuclei_from_scratch',
]


@pytest.fixture
def config():
  return ml_collections.ConfigDict(
    {
      'input': {
        'batch_size': 4,
        'canvases': ((832, 1344),),
        'file_pattern': 'train*',
        'flip': True,
        'limit': None,
        'mean': (0.1, 0.2, 0.3),
        'rows': ml_collections.config_dict.placeholder(int),
      },
      'optimizer': {'learning_rate': 0.1},
    }
  ).lock()


@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_configs_load_locked_with_all_sections(name):
  config = config_lib.load_config(name)
  assert set(config) == SECTIONS
  with pytest.raises(AttributeError):
    config.optimizer.surprise = 1


def test_every_field_of_a_shipped_config_has_a_comment():
  field = re.compile(r'  \w+\.\w+ = ')
  for path in CONFIGS.glob('*.py'):
    lines = path.read_text().partition('VARIANTS[')[0].splitlines()
    for number, line in enumerate(lines):
      if field.match(line):
        assert lines[number - 1].startswith('  # '), f'{path.name}: {line}'


@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_configs_fit_what_they_configure(name):
  config = config_lib.load_config(name)
  if config.model.num_classes is None:  # As many as there are.
    with pytest.raises(ValueError, match=r'model\.num_classes must be given'):
      mask_rcnn.MaskRCNN.from_config(config.model)
    config.model.num_classes = 3
  model = mask_rcnn.MaskRCNN.from_config(config.model)
  assert model.num_classes == config.model.num_classes
  anchors = model.rpn_targets.num_samples
  assert model.losses.rpn_samples == anchors
  known = inspect.signature(batches.train_batches).parameters
  assert set(config.input) <= set(known)
  optimizer.OptimizerOptions(**config.optimizer)
  loop.TrainingOptions(**config.training)
  evaluator.EvaluationOptions(**config.evaluation)


def test_the_default_of_coco_is_the_default_of_the_model():
  section = config_lib.load_config('coco').model
  model = mask_rcnn.MaskRCNN.from_config(section)
  plain = mask_rcnn.MaskRCNN()
  for field in dataclasses.fields(mask_rcnn.MaskRCNN):
    if field.name not in ('parent', 'name'):
      assert getattr(model, field.name) == getattr(plain, field.name)
  assert hash(model) == hash(plain)


def test_nuclei_differ_in_where_they_start_alone():
  fine, scratch = (
    config_lib.load_config(f'shapes:{name}').to_dict()
    for name in ('nuclei', 'nuclei_from_scratch')
  )
  assert fine['training'].pop('pretrained') == 'local/demo'
  assert fine['training'].pop('finetune')
  assert scratch['training'].pop('pretrained') == ''
  assert not scratch['training'].pop('finetune')
  assert fine == scratch
  # 206 objects in an image; half of the demo's batch and of its rate.
  assert fine['input']['max_instances'] == 256
  assert fine['model']['detections']['max_detections'] == 256
  assert fine['optimizer']['learning_rate'] == pytest.approx(0.04)


def test_the_default_of_coco_is_the_recipe_of_the_seed():
  assert (
    config_lib.load_config('coco').to_dict()
    == config_lib.load_config('coco:habana_1x').to_dict()
  )


def test_a_config_is_found_by_path_with_and_without_variant(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    'import ml_collections\n'
    'VARIANTS = {"small": None, "large": None}\n'
    'def get_config(variant="large"):\n'
    '  return ml_collections.ConfigDict({"model": {"size": variant}})\n'
  )
  assert config_lib.load_config(str(path)).model.size == 'large'
  assert config_lib.load_config(f'{path}:small').model.size == 'small'
  changed = config_lib.load_config(str(path), ['model.size=huge'])
  assert changed.model.size == 'huge'
  with pytest.raises(ValueError, match=r"did you mean 'small'.*small, large"):
    config_lib.load_config(f'{path}:smal')


def test_a_folder_does_not_hide_a_shipped_config(tmp_path, monkeypatch):
  (tmp_path / 'shapes').mkdir()
  monkeypatch.chdir(tmp_path)
  assert config_lib.find_config('shapes')[0].name == 'shapes.py'


@pytest.mark.parametrize(
  'name, message',
  [
    ('shape', "no config 'shape'; did you mean 'shapes'.*coco, shapes"),
    ('coco:habana_2x', "no variant 'habana_2x'; did you mean 'habana_8x'"),
    ('none/such.py', 'neither a file nor'),
  ],
)
def test_an_unknown_config_or_variant_says_what_was_meant(name, message):
  with pytest.raises((FileNotFoundError, ValueError), match=message):
    config_lib.load_config(name)


@pytest.mark.parametrize(
  'text, expected',
  [
    ('input.batch_size=8', 8),
    ('input.batch_size=1e3', 1000),
    ('input.canvases=((128,128),(64, 96))', ((128, 128), (64, 96))),
    ('input.file_pattern=12', '12'),
    ('input.file_pattern=a=b', 'a=b'),
    ('input.file_pattern=', ''),
    ('input.flip=false', False),
    ('input.flip=True', True),
    ('input.limit=7', 7),
    ('input.limit=some', 'some'),
    ('input.mean=0,0,1', (0.0, 0.0, 1.0)),
    ('input.rows=3', 3),
    ('input.rows=None', None),
    ('optimizer.learning_rate=1', 1.0),
    ('optimizer.learning_rate=2e-3', 0.002),
    ('optimizer.learning_rate=None', None),
  ],
)
def test_overrides_have_the_type_of_the_field(config, text, expected):
  config_lib.apply_overrides(config, [text])
  section, field = text.partition('=')[0].split('.')
  value = config[section][field]
  assert value == expected
  assert type(value) is type(expected)


@pytest.mark.parametrize(
  'text, message',
  [
    ('input.batchsize=8', "no field 'batchsize' in input; did you mean 'batch"),
    ('inputs.batch_size=8', "no field 'inputs' in the config.*'input'"),
    ('input.batch_size.x=8', "input.batch_size is a value.*'x'"),
    ('input=8', 'input is a section.*input.batch_size'),
    ('input.batch_size', 'section.field=value'),
    ('input.batch_size=1.5', 'input.batch_size must be a whole number.*1.5'),
    ('input.batch_size=many', "whole number like 4, got 'many'"),
    ('input.batch_size=true', 'whole number like 4, got True'),
    ('input.flip=1', 'input.flip must be true or false'),
    ('input.canvases=128,128', 'input.canvases must be a tuple'),
    ('input.rows=few', "input.rows must be a whole number, got 'few'"),
  ],
)
def test_a_wrong_override_names_the_field_and_what_it_takes(
  config, text, message
):
  with pytest.raises(ValueError, match=message):
    config_lib.apply_overrides(config, [text])


@pytest.mark.parametrize(
  'name, expected',
  [
    ('habana_1x', (4, 0.005, (240_000, 320_000), 360_000)),
    ('habana_1x_batch12', (12, 0.015, (80_000, 106_667), 120_000)),
    ('habana_8x', (32, 0.04, (30_000, 40_000), 45_000)),
    ('habana_8x_batch12', (96, 0.12, (10_000, 13_334), 15_000)),
  ],
)
@pytest.mark.parametrize('suffix', ['', '_bf16'])
def test_recipes_are_those_of_the_seeds_readme(name, expected, suffix):
  config = config_lib.load_config(f'coco:{name}{suffix}')
  batch_size, rate, decay_steps, num_steps = expected
  assert config.input.batch_size == batch_size
  assert config.optimizer.learning_rate == pytest.approx(rate)
  assert config.optimizer.decay_steps == decay_steps
  assert config.optimizer.warmup_steps == 1000
  assert config.training.num_steps == num_steps
  # A cycle of train_and_eval is about one epoch.
  assert config.evaluation.every_steps * batch_size == 29_568 * 4
  assert config.model.dtype == ('bfloat16' if suffix else 'float32')


def test_the_learning_rate_follows_the_batch_and_says_so(caplog):
  caplog.set_level('INFO')
  config = config_lib.load_config('coco', ['input.batch_size=16'])
  assert config.optimizer.learning_rate == pytest.approx(0.02)
  assert config.optimizer.tuned_batch_size == 16
  assert '0.005 is for batches of 4; for 16 it is 0.02' in caplog.text
  assert config.training.num_steps == 360_000
  assert config.optimizer.decay_steps == (240_000, 320_000)
  config_lib.apply_linear_rule(config)  # Once is enough.
  assert config.optimizer.learning_rate == pytest.approx(0.02)


@pytest.mark.parametrize(
  'overrides',
  [
    ['input.batch_size=16', 'optimizer.learning_rate=0.03'],
    ['optimizer.learning_rate=0.03'],
    [
      'optimizer.learning_rate=0.03',
      'input.batch_size=8',
      'optimizer.tuned_batch_size=None',
    ],
  ],
)
def test_a_rate_that_is_given_stays(overrides, caplog):
  caplog.set_level('INFO')
  config = config_lib.load_config('coco', overrides)
  assert config.optimizer.learning_rate == 0.03
  assert not caplog.text


def test_saved_fields_get_their_names_of_now():
  saved = {
    'model': {
      'anchors': {'octaves': 2, 'aspects': [[1, 1]]},
      'rpn_targets': {'matching': {'forced': 'ties'}},
      'sampling': {'mask_pool_group': 2, 'mask_pool_size': 64},
    },
    'input': {'batch_size': 4},
  }
  assert config_lib.with_new_names(saved) == {
    'model': {
      'anchors': {'scales_per_octave': 2, 'aspect_ratios': [[1, 1]]},
      'rpn_targets': {'matching': {'low_quality_matches': 'all'}},
      'sampling': {'num_mask_rois': 32},
    },
    'input': {'batch_size': 4},
  }
  assert saved['model']['anchors'] == {'octaves': 2, 'aspects': [[1, 1]]}
  for before, now in config_lib.RENAMED_FIELDS.items():
    shipped = config_lib.load_config('coco')
    *parents, leaf = now.split('.')
    for name in parents:
      shipped = shipped[name]
    assert leaf in shipped, (before, now)
