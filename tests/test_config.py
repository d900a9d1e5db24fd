"""Configs: shipped ones, names and paths, overrides, the linear rule."""

import dataclasses
import inspect
import itertools
import pathlib
import re
import runpy

import ml_collections
import pytest

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.checkpoints import saved_config
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.input_pipeline import augment, batches, resizing
from maskrcnn_jax.models import mask_rcnn
from maskrcnn_jax.optimization import optimizer
from maskrcnn_jax.training import loop, options

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'

SECTIONS = 'evaluation input model optimizer runtime training'
SHIPPED = [
  f'{path.stem}:{variant}'
  for path in sorted(CONFIGS.glob('*.py'))
  for variant in runpy.run_path(str(path))['VARIANTS']
]


@pytest.fixture
def config():
  fields = {
    'batch_size': 4,
    'canvases': ((832, 1344),),
    'file_pattern': 'train*',
    'flip': True,
    'limit': None,
    'mean': (0.1, 0.2, 0.3),
    'rows': ml_collections.config_dict.placeholder(int),
  }
  return ml_collections.ConfigDict(
    {
      'input': fields,
      'optimizer': {'learning_rate': 0.1, 'decay_steps': (60, 80)},
    }
  ).lock()


def test_every_field_of_coco_has_a_comment():
  text = (CONFIGS / 'coco.py').read_text().partition('VARIANTS =')[0]
  fields = 0
  for before, line in itertools.pairwise(text.splitlines()):
    if re.match(r"    +'\w+': (?!\{|_)", line):
      fields += 1
      assert '  # ' in line or before.lstrip().startswith('# '), line
  assert fields > 100


@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_configs_fit_what_they_configure(name):
  config = config_lib.load_config(name)
  assert ' '.join(sorted(config)) == SECTIONS
  with pytest.raises(AttributeError):  # It is locked.
    config.optimizer.surprise = 1
  if config.model.num_classes is None:  # As many as there are.
    with pytest.raises(ValueError, match=r'model\.num_classes'):
      mask_rcnn.MaskRCNN.from_config(config.model)
    config.model.num_classes = 3
  model = mask_rcnn.MaskRCNN.from_config(config.model)
  assert model.num_classes == config.model.num_classes
  assert model.losses.rpn_samples == model.rpn_targets.num_samples
  known = inspect.signature(batches.train_batches).parameters
  assert set(config.input) <= set(known)
  optimizer.OptimizerOptions(**config.optimizer)
  loop.TrainingOptions(**config.training)
  options.EvaluationOptions(**config.evaluation)


def test_fields_of_the_shipped_configs_are_the_same():
  def names(section):
    return {
      name: names(value) if isinstance(value, dict) else None
      for name, value in section.items()
    }

  coco = names(config_lib.load_config('coco').to_dict())
  for name in SHIPPED:
    assert names(config_lib.load_config(name).to_dict()) == coco


def test_habana_1x_is_the_default_of_the_model():
  config = config_lib.load_config('coco:habana_1x')
  assert config.to_dict() == config_lib.load_config('coco').to_dict()
  model = mask_rcnn.MaskRCNN.from_config(config.model)
  plain = mask_rcnn.MaskRCNN()
  for field in dataclasses.fields(mask_rcnn.MaskRCNN):
    if field.name not in ('parent', 'name'):
      assert getattr(model, field.name) == getattr(plain, field.name)
  assert hash(model) == hash(plain)


def test_habana_1x_is_the_default_of_input_and_optimizer():
  config = config_lib.load_config('coco:habana_1x')
  options = optimizer.OptimizerOptions(**config.optimizer)
  assert options == optimizer.OptimizerOptions(tuned_batch_size=4)
  resize = resizing.ResizeOptions(**config.input.resize)
  assert resize == resizing.ResizeOptions()
  augmented = augment.AugmentOptions(**config.input.augment)
  assert augmented == augment.AugmentOptions()
  defaults = inspect.signature(batches.train_batches).parameters
  for name, value in config.input.items():
    if name not in ('file_pattern', 'resize', 'augment'):
      assert value == defaults[name].default, name


def test_nuclei_differ_only_in_initial_values():
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
  with pytest.raises(UserError, match="did you mean 'small'") as error:
    config_lib.load_config(f'{path}:smal')
  assert error.value.path == str(path)
  assert error.value.wanted == ('small', 'large')


@pytest.mark.parametrize(
  'text, cause, line',
  [
    ('def get_config():\n  return 1 / 0\n', ZeroDivisionError, 2),
    ('import no_such_module\n', ModuleNotFoundError, 1),
    ('def get_config():\n  return (\n', SyntaxError, 2),
    ('x = 1\n', None, None),
    ('def get_config():\n  return {}\n', None, None),
  ],
)
def test_an_error_of_a_config_file_names_the_file(tmp_path, text, cause, line):
  path = tmp_path / 'mine.py'
  path.write_text(text)
  with pytest.raises(UserError) as error:
    config_lib.load_config(str(path))
  assert error.value.path == str(path)
  if cause:
    assert type(error.value.__cause__) is cause
    assert f'{path}, line {line}: {cause.__name__}: ' in str(error.value)


def test_a_config_may_start_from_a_shipped_one(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from maskrcnn_jax.config import load_config\n'
    'def get_config():\n'
    '  config = load_config("coco")\n'
    '  config.update({"input": {"batch_size": 8}})\n'
    '  return config\n'
  )
  config = config_lib.load_config(str(path), ['model.box_convs=1'])
  assert (config.input.batch_size, config.model.box_convs) == (8, 1)
  assert config.optimizer.learning_rate == pytest.approx(0.01)


def test_a_folder_does_not_hide_a_shipped_config(tmp_path, monkeypatch):
  (tmp_path / 'shapes').mkdir()
  monkeypatch.chdir(tmp_path)
  assert config_lib.find_config('shapes')[0].name == 'shapes.py'


@pytest.mark.parametrize(
  'name, error, hint',
  [
    ('shape', FileNotFoundError, "did you mean 'shapes'.*coco, shapes"),
    ('coco:habana_2x', UserError, "did you mean 'habana_8x'"),
    ('none/such.py', FileNotFoundError, "'none/such.py'"),
  ],
)
def test_an_unknown_config_or_variant_is_an_error(name, error, hint):
  with pytest.raises(error, match=hint):
    config_lib.load_config(name)


@pytest.mark.parametrize(
  'text, expected',
  [
    ('input.batch_size=8', 8),
    ('input.batch_size=1e3', 1000),
    ('input.canvases=((128,128),(64, 96))', ((128, 128), (64, 96))),
    ('optimizer.decay_steps=0.75,9e4', (0.75, 90_000)),
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
  'text, given, wanted',
  [
    ('input.batch_size=1.5', 1.5, int),
    ('input.batch_size=many', 'many', int),
    ('input.batch_size=true', True, int),
    ('input.flip=1', 1, bool),
    ('input.canvases=128,128', 128, tuple),
    ('input.rows=few', 'few', int),
  ],
)
def test_a_wrong_value_names_the_field_and_its_type(
  config, text, given, wanted
):
  with pytest.raises(UserError) as error:
    config_lib.apply_overrides(config, [text])
  assert error.value.argument == text.partition('=')[0]
  assert error.value.given == given
  assert error.value.wanted is wanted
  assert error.value.argument in str(error.value)


@pytest.mark.parametrize(
  'argument, text, hint',
  [
    ('input.batchsize', 'input.batchsize=8', "did you mean 'batch_size'"),
    ('inputs', 'inputs.batch_size=8', "did you mean 'input'"),
    ('input.batch_size.x', 'input.batch_size.x=8', 'batch_size is a value'),
    ('input', 'input=8', 'input.batch_size'),
    ('input.batch_size', 'input.batch_size', 'section.field=value'),
  ],
)
def test_a_wrong_field_gets_a_hint(config, argument, text, hint):
  with pytest.raises(UserError, match=hint) as error:
    config_lib.apply_overrides(config, [text])
  assert error.value.argument == argument


@pytest.mark.parametrize('former, present', config_lib.RENAMED_FIELDS.items())
def test_a_former_field_is_answered_with_the_present_one(former, present):
  config = config_lib.load_config('coco')
  with pytest.raises(UserError) as error:
    config_lib.apply_overrides(config, [f'{former}=1'])
  assert error.value.argument == former
  assert error.value.wanted == present
  assert config_lib.load_config('coco', [f'{present}=None'])


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
def test_recipes_are_those_of_habanas_readme(name, expected, suffix):
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


def test_the_learning_rate_follows_the_batch(caplog):
  caplog.set_level('INFO')
  config = config_lib.load_config('coco', ['input.batch_size=16'])
  assert config.optimizer.learning_rate == pytest.approx(0.02)
  assert config.optimizer.tuned_batch_size == 16
  assert '0.005' in caplog.text and '0.02' in caplog.text
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
  assert saved_config.with_new_names(saved, 'config.json') == {
    'model': {
      'anchors': {'scales_per_octave': 2, 'aspect_ratios': [[1, 1]]},
      'rpn_targets': {'matching': {'low_quality_matches': 'all'}},
      'sampling': {'num_mask_rois': 32},
    },
    'input': {'batch_size': 4},
  }
  assert saved['model']['anchors'] == {'octaves': 2, 'aspects': [[1, 1]]}


STEPS, EPOCHS = 'training.num_steps=7', 'training.num_epochs=2'


def test_the_command_line_chooses_between_steps_and_epochs(tmp_path):
  """Steps there outrank a file's epochs; the file may have both."""
  path = tmp_path / 'own.py'
  path.write_text(
    'from maskrcnn_jax import config\n'
    'def get_config():\n'
    f'  return config.load_config("shapes", ["{EPOCHS}"])\n'
  )
  own = config_lib.load_config(str(path))
  assert own.training.num_epochs == 2
  assert own.training.num_steps > 7
  own = config_lib.load_config(str(path), [STEPS])
  assert own.training.num_epochs is None
  assert own.training.num_steps == 7
  own = config_lib.load_config('shapes', [STEPS, 'training.num_epochs=None'])
  assert own.training.num_steps == 7


@pytest.mark.parametrize(
  'overrides, argument',
  [
    ([STEPS, EPOCHS], 'training.num_epochs'),
    (
      ['evaluation.every_epochs=1', 'evaluation.every_steps=5'],
      'evaluation.every_epochs',
    ),
  ],
)
def test_a_length_is_given_once(overrides, argument):
  with pytest.raises(UserError) as error:
    config_lib.load_config('coco', overrides)
  assert error.value.argument == argument
  assert argument.replace('epochs', 'steps') in error.value.wanted
