"""Import, export and use of pretrained weights."""

import contextlib
import functools
import io
import pathlib
import signal

import jax
import narrow_models
import numpy as np
import pytest

from maskrcnn_jax.checkpoints import store
from maskrcnn_jax.cli import main as command
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.export import state_dict
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.training import pretrained, train_state
from maskrcnn_jax.weights import (
  download,
  load_report,
  published,
  tensor_files,
  torchvision,
)


def make_model(num_classes=4):
  return narrow_models.make_model(depth=18, num_classes=num_classes)


@functools.cache
def model_tensors():
  return torchvision.state_dict(narrow_models.random_variables(make_model()))


@pytest.fixture(name='imported', scope='module')
def fixture_imported(source, tmp_path_factory):
  """A workdir made by the command, and the text that it printed."""
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  text = io.StringIO()
  with contextlib.redirect_stdout(text):
    assert run('import_weights', source=source, output=workdir) == 0
  return workdir, text.getvalue()


def run(verb, **flags):
  return command.main([verb, *(f'--{k}={v}' for k, v in flags.items())])


def test_a_round_trip_by_the_command(imported, tmp_path, capsys):
  (workdir, shown), back = imported, tmp_path / 'back.safetensors'
  assert 'weights.pth (model)' in shown
  assert f'loaded: {len(model_tensors())} ' in shown
  assert '--config=coco:torchvision --config.model.' in shown
  assert '--config.model.backbone.width=8' in shown
  assert '--config.model.mask_convs=1' in shown
  assert '--config.model.box_convs' not in shown  # Equal to the config's.
  variables, config = store.restore(workdir)
  assert config.model.num_classes == 4
  expected = narrow_models.random_variables(make_model())
  jax.tree.map(np.testing.assert_array_equal, variables, expected)
  assert store.latest_step(workdir) == 0
  assert run('export_weights', checkpoint=workdir, output=back) == 0
  assert f'{len(model_tensors())} tensors' in capsys.readouterr().out
  arrays = tensor_files.read(back).arrays
  assert arrays.keys() == model_tensors().keys()
  for name, array in model_tensors().items():
    np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def test_existing_outputs_are_not_overwritten(
  source, imported, tmp_path, capsys
):
  workdir = tmp_path / 'run'
  workdir.mkdir()
  (workdir / 'mine.txt').write_text('mine')
  assert run('import_weights', source=source, output=workdir) == 2
  assert str(workdir) in capsys.readouterr().err
  assert [x.name for x in workdir.iterdir()] == ['mine.txt']
  assert run('export_weights', checkpoint=imported[0], output=source) == 2
  assert str(source) in capsys.readouterr().err


@pytest.mark.parametrize('error', [OSError(28, 'full'), KeyboardInterrupt()])
def test_a_failed_import_leaves_nothing(source, tmp_path, monkeypatch, error):
  def fail(*_):
    # Nothing here waits for the end of a step to obey a signal.
    assert signal.getsignal(signal.SIGTERM) == before
    raise error

  before = signal.getsignal(signal.SIGTERM)
  monkeypatch.setattr(store.CheckpointWriter, 'save', fail)
  for _ in range(2):  # Neither is refused because of the first one's rests.
    with pytest.raises(type(error)) as raised:
      pretrained.import_weights(source, tmp_path / 'run')
    assert raised.value is error
  assert not [*tmp_path.iterdir()]


def test_a_pickle_that_runs_a_command(tmp_path, capsys):
  source, workdir = tmp_path / 'weights.pkl', tmp_path / 'run'
  source.write_bytes(
    b'cposix\nsystem\n(Vtouch ' + str(tmp_path).encode() + b'/executed\ntR.'
  )
  # The first bytes of a pickle of protocol 2.
  source.write_bytes(b'\x80\x02' + source.read_bytes())
  assert run('import_weights', source=source, output=workdir) == 2
  error = capsys.readouterr().err
  assert str(source) in error and 'posix.system' in error
  assert not workdir.exists() and not (tmp_path / 'executed').exists()


def test_a_config_and_its_fields_can_be_given(source, tmp_path):
  pretrained.import_weights(
    source,
    tmp_path / 'run',
    None,
    ['model.detections.max_detections=7', 'model.dtype=bfloat16'],
  )
  config = store.restore(tmp_path / 'run')[1]
  assert config.model.detections.max_detections == 7
  assert config.model.backbone.width == 8
  with pytest.raises(UserError) as error:
    pretrained.import_weights(source, tmp_path / 'other', 'coco:torchvision')
  assert error.value.path == str(source)
  assert not (tmp_path / 'other').exists()


@pytest.mark.slow
def test_a_backbone_leaves_the_heads_at_their_initial_values(tmp_path):
  prefix = 'backbone.body.'
  backbone = {
    name.removeprefix(prefix): x
    for name, x in model_tensors().items()
    if name.startswith(prefix)
  }
  tensor_files.write(tmp_path / 'resnet.npz', backbone)
  heads = [
    'model.pyramid_channels=16',
    'model.box_channels=32',
    'model.mask_channels=16',
    'model.mask_convs=1',
  ]
  text = pretrained.import_weights(
    tmp_path / 'resnet.npz', tmp_path / 'run', overrides=heads
  )
  assert 'missing: ' in text and '(box_head, fpn, mask_head' in text
  variables, _ = store.restore(tmp_path / 'run')
  kernel = variables['params']['backbone']['stem']['conv']['kernel']
  np.testing.assert_array_equal(
    kernel, backbone['conv1.weight'].transpose(2, 3, 1, 0)
  )
  deviation = np.std(variables['params']['rpn_head']['conv']['kernel'])
  assert 0.008 < deviation < 0.012  # Initialized with 0.01.


def test_models_that_torchvision_does_not_have(source, tmp_path):
  overrides = ['model.bgr=true', 'model.backbone.stride_in_1x1=true']
  pretrained.import_weights(source, tmp_path / 'run', overrides=overrides)
  with pytest.raises(UserError) as error:
    state_dict.export_weights(tmp_path / 'run', tmp_path / 'back.pth')
  assert error.value.argument == 'model.bgr'
  assert 'model.backbone.stride_in_1x1' in str(error.value)
  assert not (tmp_path / 'back.pth').exists()


def test_fields_that_change_detection_are_listed(source, tmp_path):
  pretrained.import_weights(
    source,
    tmp_path / 'run',
    overrides=['model.plus_one=true', 'model.detections.iou_threshold=0.6'],
  )
  text = state_dict.export_weights(tmp_path / 'run', tmp_path / 'back.pth')
  _, _, *fields = text.splitlines()
  assert [x.split()[0] for x in fields] == [
    'model.detections.iou_threshold',
    'model.plus_one',
  ]
  assert '0.6' in fields[0] and '0.5' in fields[0]
  assert (tmp_path / 'back.pth').exists()


def make_state(model, seed):
  variables = narrow_models.random_variables(model, seed)
  return train_state.TrainState(step=np.int32(0), opt_state=(), **variables)


@pytest.mark.parametrize('kind', ['file', 'workdir'])
def test_a_run_starts_from_a_file_or_a_workdir(source, imported, kind):
  path = source if kind == 'file' else imported[0]
  model = make_model()
  pretrained.check(str(path), model)
  state, report = pretrained.start_from(str(path), make_state(model, seed=1))
  expected = narrow_models.random_variables(model)
  jax.tree.map(np.testing.assert_array_equal, state.variables(), expected)
  assert f'loaded: {len(load_report.flatten(expected))} ' in report


def test_a_run_from_another_model_is_refused(source, imported, tmp_path):
  other = make_state(make_model(num_classes=5), seed=1)
  for path in (source, imported[0]):
    with pytest.raises(UserError) as error:
      pretrained.start_from(str(path), other)
    assert (error.value.given, error.value.wanted) == (5, 4)
  path = str(tmp_path / 'none.pth')
  with pytest.raises(UserError) as error:
    pretrained.check(path, make_model())
  assert error.value.argument == 'training.pretrained'
  assert error.value.path == path


def test_an_evaluation_takes_a_file(source, imported):
  config = store.restore(imported[0])[1]
  model = MaskRCNN.from_config(config.model)
  variables, step = pretrained.whole_model(str(source), model, config)
  assert step == 0
  expected = narrow_models.random_variables(make_model())
  jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_weights_by_name(source, tmp_path, monkeypatch):
  """As initial weights, in an evaluation and in an import."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  name, model = 'torchvision/drawn', make_model()
  weights = published.Weights(name, 'https://nowhere/drawn.pth', 'none')
  monkeypatch.setitem(published.TABLE, name, weights)
  place = download.cached(weights)
  place.parent.mkdir(parents=True)
  place.write_bytes(pathlib.Path(source).read_bytes())
  pretrained.check(name, model)
  state, report = pretrained.start_from(name, make_state(model, seed=1))
  expected = narrow_models.random_variables(model)
  jax.tree.map(np.testing.assert_array_equal, state.variables(), expected)
  assert 'drawn.pth (model)' in report
  variables, _ = pretrained.whole_model(name, model, None)
  jax.tree.map(np.testing.assert_array_equal, variables, expected)
  assert run('import_weights', source=name, output=tmp_path / 'run') == 0
  variables, config = store.restore(tmp_path / 'run')
  jax.tree.map(np.testing.assert_array_equal, variables, expected)
  # A restored config names none.
  assert not config.training.pretrained
