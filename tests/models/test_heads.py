"""The heads for proposals, boxes and masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models import heads, layers, norms
from maskrcnn_jax.weights import load_report


def blank(head, *arguments):
  """Parameters that let nothing but biases through."""
  variables = jax.eval_shape(head.init, jax.random.key(0), *arguments)
  return jax.tree.map(lambda x: jnp.zeros(x.shape), variables['params'])


def run(head, params, *arguments):
  return jax.jit(head.apply)({'params': params}, *arguments)


def test_rpn_outputs_have_the_order_of_the_anchors():
  pyramid = {2: jnp.zeros((2, 3, 4, 5)), 3: jnp.zeros((2, 2, 2, 5))}
  head = heads.RPNHead(anchors_per_cell=3, channels=6)
  params = blank(head, pyramid)
  params['objectness']['bias'] = jnp.arange(3.0)
  params['box_deltas']['bias'] = jnp.arange(12.0)
  outputs = run(head, params, pyramid)
  for level, num_cells in {2: 12, 3: 4}.items():
    logits = outputs.objectness_logits[level]
    assert logits.shape == (2, 3 * num_cells)
    np.testing.assert_array_equal(logits, np.tile(np.arange(3), (2, num_cells)))
    deltas = outputs.box_deltas[level]
    expected = np.tile(np.arange(12).reshape(3, 4), (2, num_cells, 1))
    np.testing.assert_array_equal(deltas, expected)


def pass_on(layer, factor=1.0, bias=0.0):
  """Parameters of a convolution that multiplies each cell by a factor."""
  middle = layer['kernel'].shape[0] // 2
  kernel = layer['kernel'].at[middle, middle].set(factor)
  return {'kernel': kernel, 'bias': jnp.full(1, bias)}


def test_rpn_cells_come_row_by_row():
  head = heads.RPNHead(anchors_per_cell=1, channels=1)
  x = np.zeros((1, 3, 4, 1), np.float32)
  x[0, 1, 2] = 1.0
  params = blank(head, {2: x})
  for name in ('conv', 'objectness'):
    params[name] = pass_on(params[name])
  logits = run(head, params, {2: x}).objectness_logits[2]
  np.testing.assert_array_equal(np.flatnonzero(logits), [1 * 4 + 2])


def test_box_deltas_are_ordered_by_class():
  features = jnp.zeros((2, 3, 7, 7, 5))
  head = heads.BoxHead(num_classes=4, channels=6)
  params = blank(head, features)
  params['box_deltas']['bias'] = jnp.arange(16.0)
  params['class_logits']['bias'] = jnp.arange(4.0)
  outputs = run(head, params, features)
  assert outputs.class_logits.shape == (2, 3, 4)
  np.testing.assert_array_equal(outputs.class_logits[1, 2], np.arange(4))
  assert outputs.box_deltas.shape == (2, 3, 4, 4)
  np.testing.assert_array_equal(
    outputs.box_deltas[1, 2], np.arange(16).reshape(4, 4)
  )


def all_masks(params, x):
  """The mask head from the paper: `[n, 2 * size, 2 * size, num_classes]`."""
  layout = ('NHWC', 'HWIO', 'NHWC')

  def convolve(x, layer):
    x = lax.conv_general_dilated(
      x, layer['kernel'], (1, 1), 'SAME', dimension_numbers=layout
    )
    return x + layer['bias']

  for name in ('conv1', 'conv2'):
    x = jax.nn.relu(convolve(x, params[name]))
  x = lax.conv_transpose(
    x,
    jnp.swapaxes(params['deconv']['kernel'], 2, 3),
    (2, 2),
    'VALID',
    dimension_numbers=layout,
    transpose_kernel=True,
  )
  x = jax.nn.relu(x + params['deconv']['bias'])
  return convolve(x, params['mask_logits'])


def test_mask_of_a_class_is_its_channel_among_all():
  rng = np.random.default_rng(0)
  features = rng.normal(size=(2, 3, 4, 4, 5)).astype(np.float32)
  classes = np.int32([[0, 3, 1], [2, 2, 0]])
  head = heads.MaskHead(num_classes=4, channels=6, num_convs=2)
  params = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32) / 4,
    blank(head, features, classes),
  )
  logits = run(head, params, features, classes)
  assert logits.shape == (2, 3, 8, 8)
  everything = jax.jit(all_masks)(params, features.reshape(6, 4, 4, 5))
  expected = np.asarray(everything)[np.arange(6), ..., classes.reshape(-1)]
  np.testing.assert_allclose(
    logits.reshape(6, 8, 8), expected, rtol=0, atol=1e-5
  )


@pytest.mark.parametrize('dtype', layers.PRECISIONS)
def test_parameters_and_outputs_are_float32(dtype):
  features = jnp.zeros((1, 2, 14, 14, 8), layers.output_dtype(dtype))
  key = jax.random.key(0)
  results = [
    jax.eval_shape(module.init_with_output, key, *arguments)
    for module, *arguments in (
      (heads.RPNHead(dtype=dtype), {2: features[0]}),
      (heads.BoxHead(dtype=dtype), features),
      (heads.MaskHead(dtype=dtype), features, jnp.zeros((1, 2), jnp.int32)),
    )
  ]
  for array in jax.tree.leaves(results):
    assert array.dtype == jnp.float32


def test_two_convolutions_of_the_region_proposal_head():
  """Each with a ReLU: a value of 1 is below the first one's bias of -2."""
  head = heads.RPNHead(anchors_per_cell=1, channels=1, num_convs=2)
  x = np.array([1.0, 5.0], np.float32).reshape(1, 1, 2, 1)
  params = blank(head, {2: x})
  assert {*params} == {'conv', 'conv2', 'objectness', 'box_deltas'}
  for name, bias in (('conv', -2.0), ('conv2', 0.5), ('objectness', 0.0)):
    params[name] = pass_on(params[name], 2.0, bias)
  logits = run(head, params, {2: x}).objectness_logits[2]
  # 2 * relu(2 * relu(2 x - 2) + 0.5)
  np.testing.assert_allclose(logits[0], [1.0, 33.0])


def box_head():
  return heads.BoxHead(
    num_classes=3,
    channels=5,
    num_convs=2,
    num_dense=1,
    norm=norms.NormOptions('batch'),
  )


def test_parameters_of_a_box_head_with_convolutions():
  variables = jax.eval_shape(
    box_head().init, jax.random.key(0), jnp.zeros((1, 2, 7, 7, 4))
  )
  shapes = {k: x.shape for k, x in load_report.flatten(variables).items()}
  # A norm behind it takes the place of the bias.
  layer = {'kernel': (3, 3, 4, 4)}
  norm = dict.fromkeys(('scale', 'bias', 'mean', 'variance'), (4,))
  expected = {
    'conv1': layer,
    'norm1': norm,
    'conv2': layer,
    'norm2': norm,
    'fc6': {'kernel': (7 * 7 * 4, 5), 'bias': (5,)},
    'class_logits': {'kernel': (5, 3), 'bias': (3,)},
    'box_deltas': {'kernel': (5, 12), 'bias': (12,)},
  }
  assert shapes == {
    f'{layer}/{leaf}': shape
    for layer, leaves in expected.items()
    for leaf, shape in leaves.items()
  }


def test_box_head_matches_its_definition():
  """With stored statistics: convolution, norm, ReLU; twice; dense, ReLU."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 4, 4, 4)).astype(np.float32)
  head = box_head()
  variables = head.init(jax.random.key(0), x)
  variables = jax.tree.map(
    lambda x: np.float32(0.5 + rng.uniform(size=x.shape)), variables
  )
  actual = head.apply(variables, x).class_logits
  params, stats = variables['params'], variables['batch_stats']
  y = x.reshape(6, 4, 4, 4).astype(np.float64)
  for index in (1, 2):
    padded = np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = params[f'conv{index}']['kernel']
    y = sum(
      padded[:, i : i + 4, j : j + 4] @ kernel[i, j]
      for i in range(3)
      for j in range(3)
    )
    norm, stored = params[f'norm{index}'], stats[f'norm{index}']
    y = (y - stored['mean']) / np.sqrt(stored['variance'] + 1e-5)
    y = np.maximum(y * norm['scale'] + norm['bias'], 0.0)
  for name in ('fc6', 'class_logits'):
    y = y.reshape(6, -1) @ params[name]['kernel'] + params[name]['bias']
    y = np.maximum(y, 0.0) if name == 'fc6' else y
  np.testing.assert_allclose(actual.reshape(6, 3), y, rtol=1e-4)


def test_padded_rois_are_in_no_statistics():
  head = box_head()
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 4, 5, 5, 4)).astype(np.float32)
  valid = np.array([[1, 1, 0, 1], [1, 0, 0, 0]], bool)
  variables = jax.jit(head.init)(jax.random.key(0), x)

  @jax.jit
  def run(x, valid):
    outputs, updated = head.apply(
      variables, x, valid, train=True, mutable=['batch_stats']
    )
    return outputs.class_logits, updated

  logits, updated = run(x, valid)
  other = np.where(valid[..., None, None, None], x, 7.0)
  other_logits, other_updated = run(other, valid)
  np.testing.assert_allclose(logits[valid], other_logits[valid], rtol=1e-5)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5),
    updated,
    other_updated,
  )
  # Without any, what is stored stays.
  logits, updated = run(x, np.zeros_like(valid))
  assert np.all(np.isfinite(logits))
  jax.tree.map(
    np.testing.assert_array_equal,
    updated['batch_stats'],
    variables['batch_stats'],
  )


@pytest.mark.parametrize('upsample', [2, 4])
def test_upsampled_masks_match_the_definition(upsample):
  """Transposed 2x2 convolutions with ReLU, then the channel of the class."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1, 2, 3, 3, 4)).astype(np.float32)
  classes = np.array([[1, 2]])
  head = heads.MaskHead(
    num_classes=3, channels=5, num_convs=0, upsample=upsample
  )
  variables = head.init(jax.random.key(0), x, classes)
  variables = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), variables
  )
  masks = head.apply(variables, x, classes)
  assert masks.shape == (1, 2, 3 * upsample, 3 * upsample)
  params = variables['params']
  layers = [params['deconv'], params.get('deconv2')][: upsample // 2]
  last = params['mask_logits']
  for roi, label in enumerate(classes[0]):
    y = x[0, roi]
    for layer in layers:
      larger = np.zeros((2 * len(y), 2 * len(y), 5))
      for i, j in np.ndindex(2, 2):
        larger[i::2, j::2] = y @ layer['kernel'][i, j] + layer['bias']
      y = np.maximum(larger, 0.0)
    expected = y @ last['kernel'][0, 0, :, label] + last['bias'][label]
    np.testing.assert_allclose(masks[0, roi], expected, rtol=1e-4, atol=1e-4)


def test_other_upsampling_is_refused():
  head = heads.MaskHead(upsample=3)
  with pytest.raises(UserError) as error:
    head.init(jax.random.key(0), jnp.zeros((1, 1, 2, 2, 4)), jnp.ones((1, 1)))
  assert error.value.argument == 'model.mask_upsample'
  assert error.value.given == 3
