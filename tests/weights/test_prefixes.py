"""Prefixes of the names of a state dict, and keys it is stored under."""

import functools
import pickle

import jax
import narrow_models
import numpy as np
import pytest

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import external, torchvision

MODEL = narrow_models.make_model(depth=18)
BODY = 'backbone.body.'
COUNTER = np.zeros((), np.int64)
LOSS = np.ones(3, np.float32)
KERNEL = np.ones((2, 2, 1, 1), np.float32)


@functools.cache
def tensors():
  return torchvision.state_dict(narrow_models.random_variables(MODEL))


def below(prefix, arrays=None):
  return {f'{prefix}{k}': v for k, v in (arrays or tensors()).items()}


def backbone():
  return {
    name.removeprefix(BODY): x
    for name, x in tensors().items()
    if name.startswith(BODY)
  }


def write(folder, content):
  path = folder / 'weights.pkl'
  path.write_bytes(pickle.dumps(content))
  return path


@pytest.mark.parametrize(
  'prefix, taken',
  [
    ('_orig_mod.', ['_orig_mod.']),
    ('module.', ['module.']),
    ('model.', ['model.']),
    ('_orig_mod.module.', ['_orig_mod.', 'module.']),
    ('module._orig_mod.', ['_orig_mod.', 'module.']),
    ('module.model._orig_mod.', ['_orig_mod.', 'module.model.']),
    ('detector.net.', ['detector.net.']),
  ],
)
@pytest.mark.parametrize('counted', [False, True])
def test_a_prefix_is_taken_off_and_reported(tmp_path, prefix, taken, counted):
  beside = {'n_averaged': COUNTER, 'loss.weight': LOSS} if counted else {}
  path = write(tmp_path, {'state_dict': below(prefix) | beside, 'epoch': 3})
  fresh = narrow_models.random_variables(MODEL, seed=1)
  variables, report = external.load(path, fresh)
  jax.tree.map(
    np.testing.assert_array_equal,
    variables,
    narrow_models.random_variables(MODEL),
  )
  assert report.prefix == (*taken,)
  assert f'prefix: {", ".join(taken)} ' in str(report)
  assert report.training_state == ['epoch', *beside]
  inferred = external.infer_model(path)
  assert 'model.backbone.depth=18' in inferred.overrides


def test_a_compiled_part_of_a_model(tmp_path):
  arrays = {
    name.replace('backbone.', 'backbone._orig_mod.'): x
    for name, x in tensors().items()
  }
  _, report = external.load(
    write(tmp_path, arrays), narrow_models.random_variables(MODEL)
  )
  assert report.prefix == ('_orig_mod.',)
  assert len(report.loaded) == len(tensors())


@pytest.mark.parametrize('key', ['ema', 'net', 'module', 'model_ema'])
def test_keys_of_state_dicts(tmp_path, key):
  path = write(tmp_path, {'epoch': 1, key: tensors()})
  file, form = external.read(path)
  assert file.arrays.keys() == tensors().keys()
  assert (file.others, form.kind) == (['epoch'], 'model')
  assert not file.prefix


def test_trained_weights_win_over_their_average(tmp_path):
  average = {k: 0 * v for k, v in tensors().items()}
  path = write(tmp_path, {'ema': average, 'model': tensors()})
  file, _ = external.read(path)
  assert file.others == ['ema']
  name = f'{BODY}conv1.weight'
  np.testing.assert_array_equal(file.arrays[name], tensors()[name])


def test_a_counter_beside_plain_names(tmp_path):
  path = write(tmp_path, tensors() | {'n_averaged': COUNTER})
  _, report = external.load(path, narrow_models.random_variables(MODEL))
  assert report.training_state == ['n_averaged']
  assert not report.prefix


def test_a_backbone_with_a_prefix(tmp_path):
  arrays = below('encoder.', backbone()) | {'projector.weight': KERNEL[0, 0]}
  variables, report = external.load(
    write(tmp_path, arrays), narrow_models.random_variables(MODEL, seed=1)
  )
  np.testing.assert_array_equal(
    variables['params']['backbone']['stem']['conv']['kernel'],
    backbone()['conv1.weight'].transpose(2, 3, 1, 0),
  )
  assert (report.kind, report.prefix) == ('backbone', ('encoder.',))
  assert report.unexpected == ['projector.weight']


def test_a_backbone_of_another_network_is_not_taken(tmp_path):
  arrays = below('backbone.', backbone()) | {'neck.convs.0.weight': KERNEL}
  path = write(tmp_path, arrays)
  with pytest.raises(UserError) as error:
    external.read(path)
  assert error.value.path == str(path)
  assert error.value.given == 'backbone.'
  assert error.value.item == ('neck.convs.0.weight',)


def test_a_layer_beside_a_model_is_refused(tmp_path):
  path = write(tmp_path, below('model.') | {'track.weight': KERNEL})
  with pytest.raises(UserError) as error:
    external.load(path, narrow_models.random_variables(MODEL))
  assert error.value.item == ('track.weight',)


@pytest.mark.parametrize('part', [tensors, backbone])
def test_two_networks_are_ambiguous(tmp_path, part):
  path = write(tmp_path, below('student.', part()) | below('teacher.', part()))
  with pytest.raises(UserError) as error:
    external.read(path)
  assert error.value.item == ('student.', 'teacher.')


def test_names_that_a_prefix_alone_tells_apart(tmp_path):
  path = write(tmp_path, tensors() | below('_orig_mod.'))
  with pytest.raises(UserError) as error:
    external.read(path)
  assert error.value.item == ('_orig_mod.',)
