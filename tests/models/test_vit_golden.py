"""ViT and the simple feature pyramid against recordings of Detectron2."""

import functools

import golden_files
import jax
import jax.numpy as jnp
import narrow_models
import pytest
import recorded_backbones as recorded
from golden_files import assert_near

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.models import layers
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.models.vit import Block
from maskrcnn_jax.ops import attention
from maskrcnn_jax.optimization import parameters
from maskrcnn_jax.weights import load_report, state_dicts, vit
from maskrcnn_jax.weights.tensor_files import Tensors

MAPS = 1e-5
LOSS = 1e-5
GRADIENTS = (1e-3, 1e-3)


def names_of(pattern):
  found = golden_files.files(pattern, 'vitdet')
  return [pytest.param(path.stem, id=path.stem) for path in found]


@functools.cache
def loaded():
  """Model, parameters and format of the recorded backbone."""
  spec = recorded.description('weights_spec_backbone', 'vitdet')
  arrays = recorded.vit_formula(spec)
  recorded.check_weights(arrays, spec['tensors'])
  form = vit.find_format(arrays)
  inferred = state_dicts.infer_model(Tensors('recorded', arrays), form)
  model, variables = recorded.make_model(
    config_lib.load_config(inferred.config, inferred.overrides).model
  )
  variables, _ = recorded.load(arrays, form, variables)
  return model, variables['params'], form


@functools.cache
def compiled():
  model, _, _ = loaded()

  @functools.partial(jax.grad, has_aux=True)
  def run(params, image):
    size = jnp.float32([image.shape[1:3]])
    pyramid, state = model.apply(
      {'params': params},
      image,
      size,
      method='pyramid',
      capture_intermediates=lambda module, _: isinstance(
        module, (Block, layers.PatchConv)
      ),
    )
    loss = sum(
      100 * jnp.mean(x[0] * recorded.cotangent(f'cotangent_p{n}', x.shape[1:]))
      for n, x in pyramid.items()
    )
    parts = state['intermediates']['backbone']
    parts = {name: part['__call__'][0][0] for name, part in parts.items()}
    return loss, (loss, pyramid, parts)

  return jax.jit(run)


@pytest.mark.slow
@pytest.mark.parametrize('name', names_of('backbone_*.npz'))
def test_maps_loss_and_gradients(name):
  (path,) = golden_files.files(f'{name}.npz', 'vitdet')
  arrays = golden_files.load(path)
  _, params, form = loaded()
  gradients, (loss, pyramid, parts) = compiled()(params, arrays['image'][None])
  patches = parts['patch']
  recorded.check_map(arrays, 'patch_embed', patches, MAPS)
  positions = params['backbone']['pos_embed']
  tokens = patches + attention.resize_positions(positions, patches.shape[:2])
  recorded.check_map(arrays, 'tokens', tokens, MAPS)
  numbers = golden_files.numbers(arrays, r'block_(\d+)_stats')
  assert len(numbers) == len(parts) - 1
  for number in numbers:
    block = parts[f'block{number + 1}']
    recorded.check_map(arrays, f'block_{number}', block, MAPS)
    rows = arrays.get(f'block_{number}_rows')
    if rows is not None:
      assert_near(block[::3, ::3], rows, MAPS)
  levels = golden_files.numbers(arrays, r'p(\d)_stats')
  assert levels == sorted(pyramid)
  for level in levels:
    recorded.check_map(arrays, f'p{level}', pyramid[level][0], MAPS)
  assert_near(loss, arrays['loss'], LOSS)
  names = recorded.description(name, 'vitdet')['parameter_names']
  gradients = recorded.torch_gradients(gradients, form)
  assert gradients.keys() == {*names}
  recorded.check_gradients(arrays, names, gradients, GRADIENTS)


@pytest.mark.parametrize('name', names_of('names_vit_*.json'))
def test_every_tensor_is_accounted_for(name):
  described = recorded.description(name, 'vitdet')
  arrays = recorded.zeros(described['tensors'])
  form = vit.find_format(arrays)
  file = Tensors('recorded', arrays)
  inferred = state_dicts.infer_model(file, form)
  # Rows of COCO's 80 classes are spread to its ids later.
  assert 'model.num_classes=91' in inferred.overrides
  overrides = [*inferred.overrides, 'model.num_classes=81']
  config = config_lib.load_config(inferred.config, overrides)
  model = MaskRCNN.from_config(config.model)
  shapes = state_dicts.FileShapes(file, form)
  ours = load_report.flatten(narrow_models.shapes(model))
  for path, x in ours.items():
    shape = shapes.shape(path)
    if path.startswith('mask_head/mask_logits'):
      shape = (*shape[:-1], shape[-1] + 1)
    elif path.startswith('box_head/box_deltas'):
      shape = (*shape[:-1], shape[-1] + 4)
    assert shape == x.shape, path
  assert {form.name(path) for path in ours} == arrays.keys()
  assert described['num_parameters'] == sum(x.size for x in arrays.values())


@pytest.mark.parametrize('name', names_of('lr_decay_vit_*.json'))
def test_layers_of_parameters(name):
  described = recorded.description(name, 'vitdet')
  names = described['parameters']
  form = vit.find_format(names)
  size = name.removeprefix('lr_decay_')
  tensors = recorded.description(f'names_{size}', 'vitdet')['tensors']
  file = Tensors('recorded', recorded.zeros(tensors))
  inferred = state_dicts.infer_model(file, form)
  model, variables = recorded.make_model(
    config_lib.load_config(inferred.config, inferred.overrides).model
  )
  assert model.backbone.num_layers == described['num_layers'] + 1
  decays = parameters.decayed_parameters(
    variables['params'], 'all_but_backbone_norms'
  )
  decays = load_report.flatten({'params': decays})
  for path in load_report.flatten(variables):
    scope, *below = path.split('/')
    layer = None
    if scope == 'backbone':
      layer = model.backbone.layer_of(tuple(below))
    exponent = 0 if layer is None else model.backbone.num_layers - layer
    rate = described['decay_rate'] ** exponent
    recorded_rate, recorded_decay = names[form.name(path)]
    assert rate == pytest.approx(recorded_rate), path
    decay = described['base']['weight_decay'] * decays[path]
    assert decay == pytest.approx(recorded_decay), path
  inner = [x for x in names if x.startswith('backbone.')]
  assert len(inner) == len(load_report.flatten(variables))
