"""Weights of others as workdirs, workdirs as weights for others."""

import contextlib
import functools
import io

import foreign_models
import jax
import numpy as np
import pytest

from maskrcnn_jax.checkpoints import store as checkpoint
from maskrcnn_jax.cli import main as command
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.training import conversion, pretrained, train_step
from maskrcnn_jax.weights import account as account_lib
from maskrcnn_jax.weights import tensor_files, tensor_writing, torchvision


def make_model(num_classes=4):
  return foreign_models.make_model(depth=18, num_classes=num_classes)


@functools.cache
def model_tensors():
  return torchvision.state_dict(foreign_models.random_variables(make_model()))


@pytest.fixture(name='source', scope='module')
def fixture_source(tmp_path_factory):
  path = tmp_path_factory.mktemp('files') / 'weights.pth'
  tensor_writing.write(path, model_tensors())
  return path


@pytest.fixture(name='imported', scope='module')
def fixture_imported(source, tmp_path_factory):
  """A workdir that the command made, and what it said."""
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  text = io.StringIO()
  with contextlib.redirect_stdout(text):
    assert run('import_weights', source=source, output=workdir) == 0
  return workdir, text.getvalue()


def run(verb, **flags):
  return command.main([verb, *(f'--{k}={v}' for k, v in flags.items())])


def test_there_and_back_by_the_command(imported, tmp_path, capsys):
  (workdir, shown), back = imported, tmp_path / 'back.safetensors'
  assert f'{len(model_tensors())} tensors of weights.pth -> model' in shown
  assert 'The model is --config=coco:torchvision --config.model.' in shown
  assert '--config.model.backbone.width=8' in shown
  assert '--config.model.mask_convs=1' in shown
  assert '--config.model.box_convs' not in shown  # As in the config.
  variables, config = checkpoint.restore(workdir)
  assert config.model.num_classes == 4
  expected = foreign_models.random_variables(make_model())
  jax.tree.map(np.testing.assert_array_equal, variables, expected)
  assert checkpoint.latest_step(workdir) == 0
  assert run('export_weights', checkpoint=workdir, output=back) == 0
  assert f'{len(model_tensors())} tensors of' in capsys.readouterr().out
  arrays = tensor_files.read(back).arrays
  assert arrays.keys() == model_tensors().keys()
  for name, array in model_tensors().items():
    np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def test_what_is_there_is_left_alone(source, imported, tmp_path, capsys):
  workdir = tmp_path / 'run'
  workdir.mkdir()
  (workdir / 'mine.txt').write_text('mine')
  assert run('import_weights', source=source, output=workdir) == 2
  assert f'{workdir} is not empty; it is left as it is' in (
    capsys.readouterr().err
  )
  assert [x.name for x in workdir.iterdir()] == ['mine.txt']
  assert run('export_weights', checkpoint=imported[0], output=source) == 2
  assert 'is there already and is left as it is' in capsys.readouterr().err


def test_a_pickle_that_runs_a_command(tmp_path, capsys):
  source, workdir = tmp_path / 'weights.pkl', tmp_path / 'run'
  source.write_bytes(
    b'cposix\nsystem\n(Vtouch ' + str(tmp_path).encode() + b'/executed\ntR.'
  )
  # As the first byte of a pickle of today.
  source.write_bytes(b'\x80\x02' + source.read_bytes())
  assert run('import_weights', source=source, output=workdir) == 2
  error = capsys.readouterr().err
  assert error.startswith(
    f'maskrcnn-jax import_weights: {source} names posix.system, which is '
    'neither a tensor nor a container.'
  )
  assert not workdir.exists() and not (tmp_path / 'executed').exists()


def test_a_config_and_its_fields_can_be_given(source, tmp_path):
  conversion.import_weights(
    source,
    tmp_path / 'run',
    None,
    ['model.detections.max_detections=7', 'model.dtype=bfloat16'],
  )
  config = checkpoint.restore(tmp_path / 'run')[1]
  assert config.model.detections.max_detections == 7
  assert config.model.backbone.width == 8
  with pytest.raises(ValueError, match='does not fit the model'):
    conversion.import_weights(source, tmp_path / 'other', 'coco:torchvision')
  assert not (tmp_path / 'other').exists()


@pytest.mark.slow
def test_a_backbone_leaves_the_heads_at_their_initial_values(tmp_path):
  prefix = 'backbone.body.'
  backbone = {
    name.removeprefix(prefix): x
    for name, x in model_tensors().items()
    if name.startswith(prefix)
  }
  tensor_writing.write(tmp_path / 'resnet.npz', backbone)
  heads = [
    'model.pyramid_channels=16',
    'model.box_channels=32',
    'model.mask_channels=16',
    'model.mask_convs=1',
  ]
  text = conversion.import_weights(
    tmp_path / 'resnet.npz', tmp_path / 'run', overrides=heads
  )
  assert 'keep their initial values (box_head, fpn, mask_head' in text
  variables, _ = checkpoint.restore(tmp_path / 'run')
  kernel = variables['params']['backbone']['stem']['conv']['kernel']
  np.testing.assert_array_equal(
    kernel, backbone['conv1.weight'].transpose(2, 3, 1, 0)
  )
  deviation = np.std(variables['params']['rpn_head']['conv']['kernel'])
  assert 0.008 < deviation < 0.012  # As it is drawn.


def test_what_torchvision_cannot_be(source, tmp_path):
  overrides = ['model.bgr=true', 'model.backbone.stride_in_1x1=true']
  conversion.import_weights(source, tmp_path / 'run', overrides=overrides)
  with pytest.raises(ValueError, match='cannot be a model of torch') as error:
    conversion.export_weights(tmp_path / 'run', tmp_path / 'back.pth')
  assert 'model.bgr is True, there False, model.backbone.stride_in_1x1' in (
    str(error.value)
  )
  assert not (tmp_path / 'back.pth').exists()


def test_other_arithmetic_is_named(source, tmp_path):
  conversion.import_weights(
    source,
    tmp_path / 'run',
    overrides=['model.plus_one=true', 'model.detections.iou_threshold=0.6'],
  )
  text = conversion.export_weights(tmp_path / 'run', tmp_path / 'back.pth')
  assert '2 fields are not those of coco:torchvision' in text
  assert '\n  model.plus_one is True, there False' in text
  assert 'model.detections.iou_threshold is 0.6, there 0.5' in text
  assert (tmp_path / 'back.pth').exists()


def make_state(model, seed):
  variables = foreign_models.random_variables(model, seed)
  return train_step.TrainState(step=np.int32(0), opt_state=(), **variables)


@pytest.mark.parametrize('kind', ['file', 'workdir'])
def test_a_run_starts_from_either(source, imported, kind):
  path = source if kind == 'file' else imported[0]
  model = make_model()
  pretrained.check(str(path), model)
  state, account = pretrained.start_from(str(path), make_state(model, seed=1))
  expected = foreign_models.random_variables(model)
  jax.tree.map(np.testing.assert_array_equal, state.variables(), expected)
  assert f'{len(account_lib.flatten(expected))} tensors of' in account


def test_a_run_from_another_model_is_refused(source, imported, tmp_path):
  other = make_state(make_model(num_classes=5), seed=1)
  for path in (source, imported[0]):
    with pytest.raises(ValueError, match='trained for 4 classes'):
      pretrained.start_from(str(path), other)
  with pytest.raises(ValueError, match=r'training\.pretrained: There is no'):
    pretrained.check(str(tmp_path / 'none.pth'), make_model())


def test_an_evaluation_takes_a_file(source, imported):
  config = checkpoint.restore(imported[0])[1]
  model = MaskRCNN.from_config(config.model)
  variables, step = pretrained.whole_model(str(source), model, config)
  assert step == 0
  expected = foreign_models.random_variables(make_model())
  jax.tree.map(np.testing.assert_array_equal, variables, expected)
