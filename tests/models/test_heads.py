"""The heads for proposals, boxes and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from maskrcnn_jax.models import heads, layers


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


def test_rpn_cells_come_row_by_row():
  head = heads.RPNHead(anchors_per_cell=1, channels=1)
  x = np.zeros((1, 3, 4, 1), np.float32)
  x[0, 1, 2] = 1.0
  params = blank(head, {2: x})
  for name in ('conv', 'objectness'):
    kernel = params[name]['kernel']
    middle = kernel.shape[0] // 2
    params[name]['kernel'] = kernel.at[middle, middle].set(1.0)
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
