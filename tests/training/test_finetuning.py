"""A config becomes that of its source and its data; predictors start anew."""

import functools
import json

import example_records
import foreign_models
import jax
import numpy as np
import pytest
import tiny_checkpoint

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.checkpoints import store as checkpoint
from maskrcnn_jax.datasets import records
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.training import finetuning, pretrained, steps, train_step
from maskrcnn_jax.weights import account as account_lib
from maskrcnn_jax.weights import coco_classes, tensor_writing, torchvision

NUM_SOURCE = 4
OWN = {1: 'cat', 2: 'dog'}


def make_model(num_classes=NUM_SOURCE):
  return foreign_models.make_model(depth=18, num_classes=num_classes)


@functools.cache
def source_variables():
  return foreign_models.random_variables(make_model())


@pytest.fixture(name='source', scope='module')
def fixture_source(tmp_path_factory):
  """Weights under torchvision's names, of four classes."""
  path = tmp_path_factory.mktemp('files') / 'weights.pth'
  tensor_writing.write(path, torchvision.state_dict(source_variables()))
  return str(path)


@pytest.fixture(name='workdir', scope='module')
def fixture_workdir(tmp_path_factory):
  """A checkpoint of the same model by us, with names of its classes."""
  workdir = tmp_path_factory.mktemp('run')
  config = config_lib.load_config('shapes')
  with config.unlocked():
    config.model.backbone.width = 8
    config.model.bgr = True
    config.model.anchors.scale = 5.0
  state = train_step.TrainState(
    step=np.int32(3), opt_state=(), **source_variables()
  )
  classes = {1: 'disc', 2: 'square', 3: 'cross'}
  with checkpoint.CheckpointWriter(workdir) as writer:
    writer.save(3, state, tiny_checkpoint.POSITION, config, classes)
  return str(workdir)


@pytest.fixture(name='pattern', scope='module')
def fixture_pattern(tmp_path_factory):
  """Records of classes 1 and 3."""
  path = tmp_path_factory.mktemp('records') / 'train.tfrecord'
  image, boxes, masks = example_records.rectangles(32, 40, 2)
  encoded = example_records.png(image)
  content = [
    example_records.record(encoded, 7, (32, 40), boxes, masks, classes=[3, 1])
  ]
  records.write_records(path, content)
  return str(path)


def complete(pattern, source, *overrides, name='coco:finetune', workdir='none'):
  overrides = [
    f'input.file_pattern={pattern}',
    f'evaluation.file_pattern={pattern}',
    f'training.pretrained={source}',
    *overrides,
  ]
  config = config_lib.load_config(name, overrides)
  finetuning.complete(config, workdir, overrides)
  return config


def test_the_model_becomes_that_of_a_file(source, pattern, caplog):
  caplog.set_level('INFO')
  config = complete(pattern, source)
  model = MaskRCNN.from_config(config.model)
  # Of the file, by shapes and by what torchvision computes.
  assert model.backbone.depth == 18
  assert model.backbone.width == foreign_models.WIDTH
  assert model.mask_convs == 1
  assert not model.plus_one
  assert model.anchors.rounded
  assert model.roi_align.samples_per_bin == 2
  # Of the run.
  assert model.backbone.frozen_stages == 2
  assert model.rpn_targets.matching.low_quality_matches == 'one'
  assert model.detections.score_threshold == 0.05
  # Of the records: the largest id is 3.
  assert model.num_classes == 4
  assert 'model.num_classes is 4: 0 background, 1 1, 3 3' in caplog.text
  assert f'The model is as {source} needs it' in caplog.text
  assert 'model.plus_one' in caplog.text or 'and' in caplog.text


def test_the_model_becomes_that_of_a_checkpoint(workdir, pattern):
  model = MaskRCNN.from_config(complete(pattern, workdir).model)
  assert model.bgr
  assert model.anchors.scale == 5.0
  assert model.backbone.norm == 'batch'
  # The default of a field that the config of the checkpoint does not have.
  assert model.roi_align.samples_per_bin == 1
  shapes = config_lib.load_config('shapes').model
  assert model.pyramid_channels == shapes.pyramid_channels


def test_what_the_user_says_wins(source, pattern):
  config = complete(
    pattern,
    source,
    'model.plus_one=true',
    'model.num_classes=9',
    'model.backbone.frozen_stages=5',
  )
  assert config.model.plus_one
  assert config.model.num_classes == 9
  assert config.model.backbone.frozen_stages == 5
  assert config.model.anchors.rounded


def test_a_run_goes_on_with_its_own_model(workdir, source, pattern, tmp_path):
  saved = complete(pattern, workdir, 'model.num_classes=7')
  checkpoint.claim_workdir(tmp_path, saved)
  # Without the source: as an evaluation is asked for.
  config = complete(pattern, '', workdir=tmp_path)
  assert config.model.num_classes == 7
  assert config.model.anchors.scale == 5.0
  checkpoint.check_workdir(tmp_path, config)


def test_a_config_that_does_not_fine_tune_stays_as_it_is(tmp_path):
  config = config_lib.load_config('shapes')
  before = config.to_dict()
  finetuning.complete(config, tmp_path)
  assert config.to_dict() == before


def test_a_source_is_needed(pattern, tmp_path):
  with pytest.raises(ValueError, match=r'set training\.pretrained to a'):
    complete(pattern, '')
  with pytest.raises(ValueError, match=r'training\.pretrained: There is no'):
    complete(pattern, tmp_path / 'none.pth')


def test_classes_come_from_the_annotations_too(source, pattern, tmp_path):
  categories = [{'id': 0, 'name': 'cat'}, {'id': 6, 'name': 'dog'}]
  truth = {'images': [], 'annotations': [], 'categories': categories}
  (tmp_path / 'val.json').write_text(json.dumps(truth))
  path = f'evaluation.annotations_file={tmp_path}/val.json'
  # Background, and category 6 is class 7.
  assert complete(pattern, source, path).model.num_classes == 8


def test_without_records_for_evaluation(source, pattern):
  config = complete(pattern, source, 'evaluation.file_pattern=none/val*')
  assert config.model.num_classes == 4


def test_records_without_objects_tell_no_classes(source, tmp_path):
  image, _, _ = example_records.rectangles(32, 40, 0)
  path = tmp_path / 'train.tfrecord'
  encoded = example_records.png(image)
  records.write_records(path, [example_records.record(encoded, 7, (32, 40))])
  with pytest.raises(ValueError, match=r'set model\.num_classes to the'):
    complete(path, source)


def options(source, finetune=True):
  return steps.TrainingOptions(1, pretrained=source, finetune=finetune)


def test_predictors_are_kept_for_the_same_classes_only(workdir, source):
  same = {1: 'disc', 2: 'square', 3: 'cross'}
  assert not finetuning.fit(options(workdir), same).renewed
  assert finetuning.fit(options(workdir), {**same, 3: 'star'}).renewed
  assert not finetuning.fit(options(workdir), {}).renewed  # Nobody knows.
  assert not finetuning.fit(options(source), same).renewed
  assert finetuning.fit(options(source, False), same) == account_lib.WHOLE


def test_classes_of_coco_are_known_of_a_file_with_91(tmp_path):
  model = make_model(coco_classes.NUM_CLASSES)
  tensors = torchvision.state_dict(foreign_models.random_variables(model))
  path = str(tmp_path / 'coco.pth')
  tensor_writing.write(path, tensors)
  fit = finetuning.fit(options(path), dict(enumerate(map(str, range(1, 91)))))
  assert fit.renewed == account_lib.PREDICTORS
  assert not finetuning.fit(options(path), coco_classes.NAMES).renewed


@pytest.mark.parametrize('kind', ['file', 'checkpoint'])
def test_a_state_for_other_classes_has_all_but_the_predictors(
  kind, source, workdir
):
  model = make_model(3)
  fresh = foreign_models.random_variables(model, seed=1)
  state = train_step.TrainState(step=np.int32(0), opt_state=(), **fresh)
  path = source if kind == 'file' else workdir
  training = options(path)
  state, account = pretrained.start_from(
    path, state, finetuning.fit(training, OWN)
  )
  actual = account_lib.flatten(state.variables())
  old = account_lib.flatten(source_variables())
  fresh = account_lib.flatten(fresh)
  renewed = []
  for name, array in actual.items():
    expected = old[name]
    if name.rpartition('/')[0] in account_lib.PREDICTORS:
      expected = fresh[name]
      renewed.append(name)
    np.testing.assert_array_equal(array, expected, err_msg=name)
  assert len(renewed) == 6
  name = 'weights.pth' if kind == 'file' else f'{workdir} (step 3)'
  assert f'{len(actual) - 6} tensors of {name} -> model' in account
  assert '6 variables do not fit and start from initial values:' in account
  assert all(f'\n  {name}: is (' in account for name in renewed)
  assert 'box_head/class_logits/bias: is (4,), wanted (3,)' in account
  assert isinstance(state.params['fpn']['lateral2']['kernel'], jax.Array)
