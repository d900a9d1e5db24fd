"""ConvNeXt against recordings of torchvision, timm and the original."""

import functools
import re

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recorded_backbones as recorded

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.models.convnext import ConvNeXt
from maskrcnn_jax.optimization import parameters
from maskrcnn_jax.weights import convnext, load_report, state_dicts
from maskrcnn_jax.weights.tensor_files import Tensors

MAPS = 1e-5
LOSS = 1e-5
GRADIENTS = (1e-3, 1e-3)


def names_of(pattern):
  found = golden_files.files(pattern, 'convnext')
  return [pytest.param(path.stem, id=path.stem) for path in found]


@functools.cache
def loaded(implementation, variant):
  """Model and variables with the recorded weights."""
  spec = recorded.description(
    f'weights_spec_{implementation}_{variant}', 'convnext'
  )['tensors']
  arrays = recorded.convnext_formula([(x['name'], x['shape']) for x in spec])
  recorded.check_weights(arrays, spec)
  form = convnext.find_format(arrays)
  inferred = state_dicts.infer_model(Tensors('recorded', arrays), form)
  # Only the original's detectors have norms of the outputs.
  has_norms = implementation == 'original'
  overrides = [
    *inferred.overrides,
    f'model.backbone.convnext.output_norms={str(has_norms).lower()}',
  ]
  model, variables = recorded.make_model(
    config_lib.load_config(inferred.config, overrides).model
  )
  variables, report = recorded.load(arrays, form, variables)
  assert not any(x.startswith('backbone/') for x in report.missing)
  return model, variables['params']['backbone'], form


@functools.cache
def compiled(options):
  """Gradients, terms of the loss, maps; torchvision's is timm's program."""
  body = ConvNeXt(options)

  @functools.partial(jax.grad, has_aux=True)
  def run(params, image):
    maps = [*body.apply({'params': params}, image).values()]
    terms = [
      100 * jnp.mean(x[0] * recorded.cotangent(f'cotangent_{i}', x.shape[1:]))
      for i, x in enumerate(maps)
    ]
    return sum(terms), (terms, maps)

  return jax.jit(run)


def normalized(image):
  mean = np.float32([0.485, 0.456, 0.406])
  std = np.float32([0.229, 0.224, 0.225])
  return ((image / np.float32(255) - mean) / std)[None]


@pytest.mark.slow
@pytest.mark.parametrize('name', names_of('features_*.npz'))
def test_maps_loss_and_gradients(name):
  _, implementation, variant, *_ = name.split('_')
  (path,) = golden_files.files(f'{name}.npz', 'convnext')
  arrays = golden_files.load(path)
  model, params, form = loaded(implementation, variant)
  run = compiled(model.backbone.convnext)
  gradients, (terms, maps) = run(params, normalized(arrays['image']))
  numbers = golden_files.numbers(arrays, r'out_(\d)_stats')
  assert numbers == [*range(len(maps))]
  for number, x in enumerate(maps):
    recorded.check_map(arrays, f'out_{number}', x[0], MAPS)
  # Terms cancel: one recorded loss is -0.64, of products that add up to 413.
  error = abs(sum(terms) - arrays['loss'])
  assert error <= LOSS * np.sum(np.abs(terms))
  names = recorded.description(name, 'convnext')['parameter_names']
  gradients = recorded.torch_gradients({'backbone': gradients}, form)
  assert gradients.keys() == {*names}
  recorded.check_gradients(arrays, names, gradients, GRADIENTS)


@pytest.mark.parametrize('name', names_of('names_*.json'))
def test_every_tensor_is_accounted_for(name):
  described = recorded.description(name, 'convnext')
  arrays = recorded.zeros(described['tensors'])
  form = convnext.find_format(arrays)
  file = Tensors('recorded', arrays)
  inferred = state_dicts.infer_model(file, form)
  _, variables = recorded.make_model(
    config_lib.load_config(inferred.config, inferred.overrides).model
  )
  shapes = state_dicts.FileShapes(file, form)
  ours = load_report.flatten(variables)
  covered = {
    form.name(path): shapes.shape(path) == x.shape
    for path, x in ours.items()
    if path.startswith('backbone/') and not form.lacks(path)
  }
  assert all(covered.values())
  rest = arrays.keys() - covered.keys()
  assert all(re.match(r'(head|classifier|norm)\.', x) for x in rest)
  counted = described.get('num_parameters')
  assert counted is None or counted == sum(x.size for x in arrays.values())


@pytest.mark.parametrize('name', names_of('name_map_*.json'))
def test_names_of_three_implementations(name):
  described = recorded.description(name, 'convnext')
  columns = [dict(zip(described['columns'], x)) for x in described['rows']]
  forms = {
    system: convnext.find_format([row[system] for row in columns])
    for system in described['columns']
  }
  size = name.removeprefix('name_map_')
  tensors = recorded.description(f'names_original_{size}', 'convnext')
  form = forms['original']
  arrays = recorded.zeros(tensors['tensors'])
  inferred = state_dicts.infer_model(Tensors('recorded', arrays), form)
  _, variables = recorded.make_model(
    config_lib.load_config(inferred.config, inferred.overrides).model
  )
  rows = {row['original']: row for row in columns}
  paths = [
    path
    for path in load_report.flatten(variables)
    if path.startswith('backbone/') and not form.lacks(path)
  ]
  for path in paths:
    row = rows.pop(form.name(path))
    for system, other in forms.items():
      assert other.name(path) == row[system]
  assert not [x for x in rows if not x.startswith(('norm.', 'head.'))]


@pytest.mark.parametrize('name', names_of('lr_decay_*.json'))
def test_rates_and_decays_of_parameters(name):
  """Layer-wise learning-rate decay, and decay of all but 1-d parameters."""
  described = recorded.description(name, 'convnext')
  size = name.split('_')[2]
  tensors = recorded.description(f'names_original_{size}', 'convnext')
  arrays = recorded.zeros(tensors['tensors'])
  form = convnext.find_format(arrays)
  inferred = state_dicts.infer_model(Tensors('recorded', arrays), form)
  model, variables = recorded.make_model(
    config_lib.load_config(inferred.config, inferred.overrides).model
  )
  params, backbone = variables['params'], model.backbone
  assert backbone.num_layers == described['num_layers'] + 1
  rates = parameters.rate_factors(
    params, described['decay_rate'], backbone.num_layers, backbone.layer_of
  )
  decays = parameters.decayed_parameters(params, 'kernels')
  rates, decays = (
    load_report.flatten({'params': tree}) for tree in (rates, decays)
  )
  expected = {
    name.removeprefix('backbone.'): values
    for name, values in described['parameters'].items()
    if name.startswith('backbone.')
  }
  for path, rate in rates.items():
    if not path.startswith('backbone/'):
      assert rate == 1.0
      continue
    recorded_rate, recorded_decay = expected.pop(form.name(path))
    assert rate == pytest.approx(recorded_rate)
    decay = described['base_weight_decay'] * decays[path]
    assert decay == pytest.approx(recorded_decay), path
  assert not expected
