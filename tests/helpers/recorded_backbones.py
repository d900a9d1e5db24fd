"""Weights, slices and gradients of the recordings of backbones.

Weights are not stored: each tensor follows from its name and shape.
"""

import json
import zlib

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import recorded_detectron2
from golden_files import assert_near

from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.weights import load_report, state_dicts
from maskrcnn_jax.weights.tensor_files import Tensors

# Of positions, absolute and relative.
_FACTORS = {'pos_embed': 0.3, 'rel_pos_h': 0.1, 'rel_pos_w': 0.1}


def description(name, source):
  """A recorded `.json` file."""
  return json.loads(
    (golden_files.folder() / source / f'{name}.json').read_text()
  )


def zeros(tensors):
  """Tensors of a list of (name, shape), which take no memory."""
  return {
    name: np.broadcast_to(np.float32(0), shape) for name, shape in tensors
  }


def convnext_formula(tensors):
  """The recorded weights of a ConvNeXt, from a list of (name, shape)."""
  norms = {
    name.rpartition('.')[0]
    for name, shape in tensors
    if name.endswith('.weight') and len(shape) == 1
  }
  result = {}
  for name, shape in tensors:
    seed = zlib.crc32(name.encode())
    values = np.random.RandomState(seed).standard_normal(shape)
    scope, _, leaf = name.rpartition('.')
    if leaf in ('gamma', 'layer_scale'):
      values = 0.5 + 0.1 * values
    elif len(shape) >= 2:
      values = np.sqrt(2 / np.prod(shape[1:])) * values
    elif scope in norms:
      values = 1 + 0.05 * values if leaf == 'weight' else 0.05 * values
    else:
      values = 0.01 * values
    result[name] = values.astype(np.float32)
  return result


def vit_formula(spec):
  """The recorded weights of a ViTDet, from its description."""
  norms = {
    x['name'].rpartition('.')[0]
    for x in spec['tensors']
    if x['name'].endswith('.weight') and len(x['shape']) == 1
  }
  result = {}
  for tensor in spec['tensors']:
    name, shape = tensor['name'], tensor['shape']
    leaf = name.rpartition('.')[2]
    if leaf in _FACTORS:
      seed = zlib.crc32(name.encode())
      values = np.random.RandomState(seed).standard_normal(shape)
      result[name] = (values * _FACTORS[leaf]).astype(np.float32)
    else:
      result[name] = recorded_detectron2.formula(name, shape, norms, spec)
  return result


def check_weights(actual, tensors):
  """Compares weights with the recorded sums and first values."""
  assert [*actual] == [x['name'] for x in tensors]
  for recorded in tensors:
    array = actual[recorded['name']]
    total = np.sum(array, dtype=np.float64)
    size = np.sum(np.abs(array), dtype=np.float64)
    assert abs(total - recorded['sum']) <= 1e-6 * size
    first = recorded['first3']
    np.testing.assert_allclose(array.ravel()[: len(first)], first, rtol=1e-6)


def make_model(config, method='pyramid'):
  """Mask R-CNN of a config section, and its variables' shapes."""
  model = MaskRCNN.from_config(config)
  shapes = jax.eval_shape(
    lambda key: model.init(
      {'params': key},
      jnp.zeros((1, 64, 64, 3)),
      jnp.zeros((1, 2)),
      method=method,
    ),
    jax.random.key(0),
  )
  return model, {'batch_stats': {}, **shapes}


def load(arrays, form, variables):
  """Variables with these arrays; the rest keeps its shapes."""
  return load_report.load(Tensors('recorded', arrays), form, variables)


def cotangent(name, shape):
  """What a map is multiplied with in the recorded loss, `[h, w, channels]`.

  Args:
    name: such as `cotangent_p2`.
    shape: of the map, (height, width, channels).
  """
  height, width, channels = shape
  seed = zlib.crc32(name.encode())
  values = np.random.RandomState(seed).standard_normal(
    (channels, height, width)
  )
  return values.transpose(1, 2, 0).astype(np.float32)


def check_map(recorded, name, actual, tolerance):
  """Compares a map `[h, w, channels]` with what is recorded of it."""
  actual = np.asarray(actual)
  height, width, channels = actual.shape
  assert tuple(recorded[f'{name}_shape']) == (channels, height, width)
  x = actual.astype(np.float64)
  stats = [x.mean(), x.std(), x.min(), x.max(), np.abs(x).mean()]
  largest = np.abs(x).max()
  np.testing.assert_allclose(
    stats, recorded[f'{name}_stats'], rtol=0, atol=tolerance * largest
  )
  planes = actual.transpose(2, 0, 1)
  y, x = max(0, height // 2 - 2), max(0, width // 2 - 2)
  for part, window in (
    ('center', planes[:, y : y + 4, x : x + 4]),
    ('tl', planes[:, :4, :4]),
    ('br', planes[:, -4:, -4:]),
  ):
    expected = recorded[f'{name}_{part}']
    error = np.abs(window[: len(expected)] - expected).max()
    assert error <= tolerance * largest, f'{name} {part} is off by {error:.2g}'
  if name in recorded:
    assert_near(planes, recorded[name], tolerance, name)


def torch_gradients(gradients, form, channels=0):
  """Gradients under the names and in the layout of a format, flattened.

  Args:
    gradients: of the parameters.
    form: format of the names.
    channels: of the RoI features; 0: there are none.
  """
  return {
    form.name(path): state_dicts.to_torch(
      path, np.asarray(gradient), channels
    ).ravel()
    for path, gradient in load_report.flatten({'params': gradients}).items()
  }


def check_gradients(recorded, names, gradients, tolerances):
  """Compares gradients with the recorded norms and first five entries.

  Args:
    recorded: arrays of the recording.
    names: theirs, in the order of the recording.
    gradients: of `torch_gradients`.
    tolerances: of norms, and of first entries as shares of the row's largest.
  """
  rows = zip(names, recorded['param_gradnorms'], recorded['param_grad_first5'])
  for name, norm, first in rows:
    gradient = gradients[name]
    actual = np.linalg.norm(gradient.astype(np.float64))
    assert abs(actual - norm) <= tolerances[0] * norm, name
    if not np.any(first):
      continue  # A position of the class token, which takes no part.
    error = np.abs(gradient[: len(first)] - first[: gradient.size])
    largest = max(np.abs(first).max(), norm / np.sqrt(gradient.size))
    assert error.max() <= tolerances[1] * largest, name
