"""Fine-tuning: configs completed from source and data; reset predictors."""

import dataclasses
import functools
import hashlib
import json

import example_records
import file_server
import jax
import labelme_set
import narrow_models
import numpy as np
import pytest
import tiny_checkpoint

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.checkpoints import store
from maskrcnn_jax.datasets import records
from maskrcnn_jax.datasets.run_data import RunData
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.training import finetuning, pretrained, train_state
from maskrcnn_jax.weights import (
  coco_classes,
  download,
  load_report,
  published,
  tensor_files,
  torchvision,
)

NUM_SOURCE = 4
OWN = {1: 'cat', 2: 'dog'}


def make_model(num_classes=NUM_SOURCE):
  return narrow_models.make_model(depth=18, num_classes=num_classes)


@functools.cache
def source_variables():
  return narrow_models.random_variables(make_model())


@pytest.fixture(name='workdir', scope='module')
def fixture_workdir(tmp_path_factory):
  """One of our checkpoints of the same model, with class names."""
  workdir = tmp_path_factory.mktemp('run')
  config = config_lib.load_config('shapes')
  with config.unlocked():
    config.model.backbone.width = 8
    config.model.bgr = True
    config.model.anchors.scale = 5.0
  state = train_state.TrainState(
    step=np.int32(3), opt_state=(), **source_variables()
  )
  classes = {1: 'disc', 2: 'square', 3: 'cross'}
  with store.CheckpointWriter(workdir) as writer:
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


def test_the_model_is_taken_from_a_file(source, pattern, caplog):
  caplog.set_level('INFO')
  config = complete(pattern, source)
  model = MaskRCNN.from_config(config.model)
  # From the file, by its shapes and by its system.
  assert model.backbone.depth == 18
  assert model.backbone.width == narrow_models.WIDTH
  assert model.mask_convs == 1
  assert not model.plus_one
  assert model.anchors.rounded
  assert model.roi_align.samples_per_bin == 2
  # From the config of the run.
  assert model.backbone.frozen_stages == 2
  assert model.rpn_targets.matching.low_quality_matches == 'one'
  assert model.detections.score_threshold == 0.05
  # From the records, where the largest id is 3.
  assert model.num_classes == 4
  assert '0 background, 1 1, 3 3' in caplog.text
  assert source in caplog.text


def test_the_model_is_taken_from_a_checkpoint(workdir, pattern):
  model = MaskRCNN.from_config(complete(pattern, workdir).model)
  assert model.bgr
  assert model.anchors.scale == 5.0
  assert model.backbone.norm == 'batch'
  # The default, since the config of the checkpoint lacks the field.
  assert model.roi_align.samples_per_bin == 1
  shapes = config_lib.load_config('shapes').model
  assert model.pyramid_channels == shapes.pyramid_channels


def test_overrides_of_the_user_win(source, pattern):
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


def test_a_run_continues_with_its_own_model(workdir, source, pattern, tmp_path):
  saved = complete(pattern, workdir, 'model.num_classes=7')
  store.claim_workdir(tmp_path, saved)
  # Without the source, as in an evaluation.
  config = complete(pattern, '', workdir=tmp_path)
  assert config.model.num_classes == 7
  assert config.model.anchors.scale == 5.0
  store.check_workdir(tmp_path, config)


def test_other_configs_do_not_change(tmp_path):
  config = config_lib.load_config('shapes')
  before = config.to_dict()
  finetuning.complete(config, tmp_path)
  assert config.to_dict() == before


def test_a_source_is_needed(pattern, tmp_path):
  for source in ('', str(tmp_path / 'none.pth')):
    with pytest.raises(UserError) as error:
      complete(pattern, source)
    assert error.value.argument == 'training.pretrained'
    assert error.value.path == (source or None)


V2 = 'torchvision/maskrcnn_resnet50_fpn_v2_coco'


def complete_default(pattern):
  """`coco:finetune` without weights of one's own, completed."""
  overrides = [
    f'input.file_pattern={pattern}',
    f'evaluation.file_pattern={pattern}',
  ]
  config = config_lib.load_config('coco:finetune', overrides)
  finetuning.complete(config, 'none', overrides)
  return config


def test_without_a_file_the_second_torchvision_model_is_downloaded(
  pattern, tmp_path, monkeypatch
):
  model = narrow_models.make_model(
    norm='batch', frozen_stages=0, num_classes=91, **narrow_models.SECOND
  )
  path = tmp_path / 'v2.pth'
  variables = narrow_models.random_variables(model)
  tensor_files.write(path, torchvision.state_dict(variables))
  content = path.read_bytes()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  with file_server.serve({'v2.pth': content}) as server:
    weights = dataclasses.replace(
      published.TABLE[V2],
      url=f'{server.url}/v2.pth',
      checksum=f'sha256:{hashlib.sha256(content).hexdigest()[:8]}',
    )
    monkeypatch.setitem(published.TABLE, V2, weights)
    first = complete_default(pattern)
  assert first.training.pretrained == V2
  # Again, without a network. The model is that of the weights.
  for config in (first, complete_default(pattern)):
    own = MaskRCNN.from_config(config.model)
    assert (own.rpn_convs, own.box_convs, own.box_dense) == (2, 4, 1)
    assert own.head_norm.kind == own.backbone.norm == 'batch'
    assert own.backbone.width == narrow_models.WIDTH
    assert own.num_classes == 4  # That of the records.


def test_weights_that_cannot_be_had(pattern, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  with file_server.serve({}) as closed:
    url = f'{closed.url}/v2.pth'
  weights = dataclasses.replace(published.TABLE[V2], url=url)
  monkeypatch.setitem(published.TABLE, V2, weights)
  with pytest.raises(UserError) as error:
    complete_default(pattern)
  assert error.value.argument == 'training.pretrained'
  assert error.value.path == V2
  # The file, where to put it, and the field for another one.
  for text in (url, str(download.cached(weights)), 'training.pretrained=FILE'):
    assert text in str(error.value)


def test_weights_are_looked_for_before_images_are_read(tmp_path):
  paths = map(str, labelme_set.write(tmp_path / 'data', 2))
  overrides = [f'training.pretrained={tmp_path}/none.pth']
  config = config_lib.load_config('coco:finetune', overrides)
  with pytest.raises(UserError) as error:
    finetuning.complete(config, tmp_path / 'run', overrides, RunData(*paths))
  assert error.value.argument == 'training.pretrained'
  assert not (tmp_path / 'run').exists()


def test_classes_also_come_from_the_annotations(source, pattern, tmp_path):
  categories = [{'id': 0, 'name': 'cat'}, {'id': 6, 'name': 'dog'}]
  truth = {'images': [], 'annotations': [], 'categories': categories}
  (tmp_path / 'val.json').write_text(json.dumps(truth))
  path = f'evaluation.annotations_file={tmp_path}/val.json'
  # Background, and category 6 is class 7.
  assert complete(pattern, source, path).model.num_classes == 8


def test_without_records_for_evaluation(source, pattern):
  config = complete(pattern, source, 'evaluation.file_pattern=none/val*')
  assert config.model.num_classes == 4


def test_records_without_objects_are_refused(source, tmp_path):
  image, _, _ = example_records.rectangles(32, 40, 0)
  path = tmp_path / 'train.tfrecord'
  encoded = example_records.png(image)
  records.write_records(path, [example_records.record(encoded, 7, (32, 40))])
  with pytest.raises(UserError) as error:
    complete(path, source)
  assert error.value.argument == 'input.file_pattern'
  assert error.value.path == str(path)


def test_class_ids_far_beyond_their_number_are_refused(source, tmp_path):
  image, boxes, masks = example_records.rectangles(32, 40, 2)
  path, encoded = tmp_path / 'train.tfrecord', example_records.png(image)
  content = example_records.record(
    encoded, 7, (32, 40), boxes, masks, classes=[15567, 74673216]
  )
  records.write_records(path, [content])
  with pytest.raises(UserError) as error:
    complete(path, source)
  assert error.value.argument == 'model.num_classes'
  assert (error.value.path, error.value.item) == (str(path), 15567)
  assert '74673216' in str(error.value)


def test_predictors_are_kept_for_the_same_classes_only(workdir, source):
  same = {1: 'disc', 2: 'square', 3: 'cross'}
  other = {**same, 3: 'star'}

  def resets(path, classes):
    return finetuning.load_options(path, True, classes).reset_predictors

  assert not resets(workdir, same)
  assert resets(workdir, other)
  assert not resets(workdir, {})  # Unknown classes.
  assert not resets(source, same)
  strict = finetuning.load_options(source, False, same)
  assert strict == load_report.STRICT


@pytest.mark.parametrize(
  'kind, finetune, classes, level',
  [
    ('checkpoint', False, {1: 'disc', 2: 'square', 3: 'Cross'}, None),
    ('checkpoint', False, {1: '1', 2: '2', 3: '3'}, None),  # Without names.
    ('checkpoint', False, {1: 'square', 2: 'disc', 3: 'cross'}, 'WARNING'),
    ('checkpoint', True, {1: 'square', 2: 'disc', 3: 'cross'}, 'INFO'),
    ('file', False, {1: 'square', 2: 'disc', 3: 'cross'}, None),
    ('file', True, {1: 'square', 2: 'disc', 3: 'cross'}, 'WARNING'),
  ],
)
def test_predictors_of_other_classes_are_logged(
  workdir, source, caplog, kind, finetune, classes, level
):
  caplog.set_level('INFO')
  path = source if kind == 'file' else workdir
  finetuning.load_options(path, finetune, classes)
  assert [x.levelname for x in caplog.records] == ([level] if level else [])
  if kind == 'checkpoint' and level:
    assert "1 is 'disc' there and 'square' here" in caplog.text


def test_a_file_with_91_classes_has_those_of_coco(tmp_path):
  model = make_model(coco_classes.NUM_CLASSES)
  tensors = torchvision.state_dict(narrow_models.random_variables(model))
  path = str(tmp_path / 'coco.pth')
  tensor_files.write(path, tensors)
  for classes, reset in (
    (dict(enumerate(map(str, range(1, 91)))), True),
    (coco_classes.NAMES, False),
  ):
    found = finetuning.load_options(path, True, classes)
    assert found.reset_predictors == reset


@pytest.mark.parametrize('kind', ['file', 'checkpoint'])
def test_a_state_for_other_classes_resets_only_the_predictors(
  kind, source, workdir
):
  model = make_model(3)
  fresh = narrow_models.random_variables(model, seed=1)
  state = train_state.TrainState(step=np.int32(0), opt_state=(), **fresh)
  path = source if kind == 'file' else workdir
  state, report = pretrained.start_from(
    path, state, finetuning.load_options(path, True, OWN)
  )
  actual = load_report.flatten(state.variables())
  old = load_report.flatten(source_variables())
  fresh = load_report.flatten(fresh)
  reset = []
  for name, array in actual.items():
    expected = old[name]
    if name.rpartition('/')[0] in load_report.PREDICTORS:
      expected = fresh[name]
      reset.append(name)
    np.testing.assert_array_equal(array, expected, err_msg=name)
  assert len(reset) == 6
  name = 'weights.pth' if kind == 'file' else f'{workdir} (step 3)'
  assert name in report
  assert f'loaded: {len(actual) - 6} ' in report
  assert 'mismatched: 6 ' in report
  assert all(f'\n    {name}: ' in report for name in reset)
  assert isinstance(state.params['fpn']['lateral2']['kernel'], jax.Array)
