"""Parts that published weights need, beyond those of the seed."""

import functools

import jax
import jax.numpy as jnp
import narrow_models
import numpy as np
import pytest
import quick
import tiny_model

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models import heads, layers, resnet
from maskrcnn_jax.models.fpn import FPN
from maskrcnn_jax.ops import images as image_ops
from maskrcnn_jax.training import train_step
from maskrcnn_jax.weights import load_report

BATCH = layers.NormOptions('batch')


def initialized(module, *arguments, **options):
  """Variables whose biases are not all 0."""
  init = quick.jit(functools.partial(module.init, **options))
  variables = init(jax.random.key(0), *arguments)
  return jax.tree.map(lambda x: x + 0.1, variables)


@pytest.mark.parametrize('stride_in_1x1', [False, True])
def test_the_stride_of_a_bottleneck(stride_in_1x1):
  """On the first 1x1, every second row and column is never looked at."""
  block = resnet.Bottleneck(
    conv=functools.partial(layers.Conv, use_bias=False),
    norm=functools.partial(layers.Norm, kind='group', group_channels=1),
    features=4,
    stride=2,
    has_projection=True,
    stride_in_1x1=stride_in_1x1,
  )
  x = jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
  variables = initialized(block, x, valid=None, train=False)

  def total(x):
    y = block.apply(variables, x, None, False)
    assert y.shape == (1, 4, 4, 16)
    return jnp.sum(y * jnp.arange(y.size).reshape(y.shape))

  gradient = np.abs(quick.jit(jax.grad(total))(x))[0].sum(axis=-1)
  seen = gradient > 0.0
  assert seen[::2, ::2].all()
  assert seen[1::2].any() == seen[:, 1::2].any() == (not stride_in_1x1)


@pytest.mark.parametrize('group_channels, groups', [(4, 16), (1, 32)])
def test_groups_of_group_norm(group_channels, groups):
  """Of 64 channels, Detectron2 makes 32 groups."""
  x = np.random.default_rng(0).normal(size=(2, 3, 3, 64)).astype(np.float32)
  norm = layers.Norm('group', 1e-5, group_channels=group_channels)
  actual = norm.apply(norm.init(jax.random.key(0), x), x)
  parts = x.astype(np.float64).reshape(2, 9, groups, -1)
  mean = parts.mean(axis=(1, 3), keepdims=True)
  variance = parts.var(axis=(1, 3), keepdims=True)
  expected = (parts - mean) / np.sqrt(variance + 1e-5)
  np.testing.assert_allclose(actual, expected.reshape(x.shape), atol=1e-5)


def test_blue_first():
  """The mean and the deviation belong to the colour, not to the place."""
  pixels = np.full((1, 1, 2, 3), (51.0, 102.0, 204.0), np.float32)
  actual = image_ops.normalize(
    pixels, np.float32([[1, 1]]), (0.1, 0.2, 0.3), (1.0, 2.0, 4.0), bgr=True
  )
  np.testing.assert_allclose(actual[0, 0, 0], [0.125, 0.1, 0.1], rtol=1e-6)
  assert not np.any(actual[0, 0, 1])


def test_two_convolutions_of_the_region_proposal_head():
  """Each with a ReLU: a value of 1 is below the first one's bias of -2."""
  head = heads.RPNHead(anchors_per_cell=1, channels=1, num_convs=2)
  x = np.array([1.0, 5.0], np.float32).reshape(1, 1, 2, 1)
  params = head.init(jax.random.key(0), {2: x})['params']
  assert {*params} == {'conv', 'conv2', 'objectness', 'box_deltas'}
  params = jax.tree.map(jnp.zeros_like, params)
  for name, bias in (('conv', -2.0), ('conv2', 0.5), ('objectness', 0.0)):
    middle = params[name]['kernel'].shape[0] // 2
    kernel = params[name]['kernel'].at[middle, middle].set(2.0)
    params[name] = {'kernel': kernel, 'bias': jnp.full(1, bias)}
  logits = head.apply({'params': params}, {2: x}).objectness_logits[2]
  # 2 * relu(2 * relu(2 x - 2) + 0.5)
  np.testing.assert_allclose(logits[0], [1.0, 33.0])


def box_head():
  return heads.BoxHead(
    num_classes=3, channels=5, num_convs=2, num_dense=1, norm=BATCH
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


def test_a_box_head_is_what_its_layers_are():
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
  variables = initialized(head, x)

  @quick.jit
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


def test_a_pyramid_with_norm():
  fpn = FPN(channels=4, max_level=4, norm=BATCH)
  features = {
    2: jax.random.normal(jax.random.key(0), (2, 8, 8, 3)),
    3: jax.random.normal(jax.random.key(1), (2, 4, 4, 6)),
  }
  variables = quick.jit(fpn.init)(jax.random.key(2), features)
  layer_names = {'lateral2', 'lateral3', 'output2', 'output3'}
  assert {*variables['params']} == layer_names | {
    f'{name}_norm' for name in layer_names
  }
  assert {*variables['params']['output2']} == {'kernel'}
  run = functools.partial(fpn.apply, train=True, mutable=['batch_stats'])
  pyramid, updated = quick.jit(run)(variables, features)
  assert {level: x.shape for level, x in pyramid.items()} == {
    2: (2, 8, 8, 4),
    3: (2, 4, 4, 4),
    4: (2, 2, 2, 4),
  }
  # Normalised, and not cut at 0 by a ReLU.
  for level in (2, 3):
    np.testing.assert_allclose(
      pyramid[level].mean(axis=(0, 1, 2)), 0, atol=1e-5
    )
    np.testing.assert_allclose(pyramid[level].std(axis=(0, 1, 2)), 1, rtol=1e-3)
  stored = updated['batch_stats']['output2_norm']['mean']
  assert np.any(stored != 0.0)


def test_an_unknown_norm_is_refused():
  with pytest.raises(UserError) as error:
    layers.NormOptions('layer')
  assert error.value.argument == 'model.head_norm.kind'
  assert error.value.wanted == ['none', 'frozen', 'batch', 'group']


@pytest.mark.slow
def test_a_step_of_the_second_version():
  """All of it at once: finite, and every layer outside of the backbone moves.

  The blocks of the backbone begin as the identity, without a gradient, and a
  scale of 1 may be too far from its small gradient to move.
  """
  model = tiny_model.make_model(norm='batch', **narrow_models.SECOND)
  batch = tiny_model.make_batch()
  state, optimizer = tiny_model.make_state(model, batch)
  step = functools.partial(train_step.train_step, model, optimizer)
  updated, metrics = quick.jit(step)(state, batch)
  assert metrics['finite']
  before, after = (load_report.flatten(x.variables()) for x in (state, updated))
  moved = {name for name in before if np.any(before[name] != after[name])}
  for leaf in ('kernel', 'mean', 'variance'):
    names = {name for name in before if name.endswith(f'/{leaf}')}
    names = {name for name in names if not name.startswith('backbone/')}
    assert names and names <= moved
