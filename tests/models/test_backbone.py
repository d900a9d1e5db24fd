"""Backbones and the feature pyramid."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from golden_files import assert_near

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models import backbones, fpn, layers, norms, resnet
from maskrcnn_jax.models.backbones import BackboneOptions
from maskrcnn_jax.models.convnext import ConvNeXt, ConvNeXtOptions
from maskrcnn_jax.models.resnet import ResNet, ResNetOptions
from maskrcnn_jax.models.vit import SimpleFeaturePyramid, ViT, ViTOptions
from maskrcnn_jax.ops import convolution
from maskrcnn_jax.training import train_state, train_step

CANVAS = (96, 160)


def count(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


def initialized(module, *arguments):
  """Shapes of outputs and variables; nothing is computed."""
  return jax.eval_shape(module.init_with_output, jax.random.key(0), *arguments)


# Parameters without the classifier, as published with torchvision's weights.
@pytest.mark.parametrize(
  'depth, num_parameters, expansion',
  [
    (18, 11_176_512, 1),
    (34, 21_284_672, 1),
    (50, 23_508_032, 4),
    (101, 42_500_160, 4),
    (152, 58_143_808, 4),
  ],
)
def test_every_depth_has_its_shapes_and_parameters(
  depth, num_parameters, expansion
):
  options = ResNetOptions(depth, norm='batch', frozen_stages=0)
  images = jnp.zeros((2, *CANVAS, 3))
  features, variables = initialized(ResNet(options), images)
  assert {level: x.shape for level, x in features.items()} == {
    2: (2, 24, 40, 64 * expansion),
    3: (2, 12, 20, 128 * expansion),
    4: (2, 6, 10, 256 * expansion),
    5: (2, 3, 5, 512 * expansion),
  }
  assert count(variables['params']) == num_parameters
  pyramid, _ = initialized(fpn.FPN(32), features)
  # The coarsest level is rounded up: half of 3 is 2.
  assert {level: x.shape for level, x in pyramid.items()} == {
    2: (2, 24, 40, 32),
    3: (2, 12, 20, 32),
    4: (2, 6, 10, 32),
    5: (2, 3, 5, 32),
    6: (2, 2, 3, 32),
  }


def test_width_scales_every_stage():
  features, _ = initialized(
    ResNet(ResNetOptions(18, width=8)), jnp.zeros((1, 32, 32, 3))
  )
  assert [x.shape[-1] for x in features.values()] == [8, 16, 32, 64]


@pytest.mark.parametrize('frozen_stages', range(6))
def test_frozen_stages_have_a_frozen_norm(frozen_stages):
  options = ResNetOptions(18, norm='group', frozen_stages=frozen_stages)
  _, variables = initialized(ResNet(options), jnp.zeros((1, 32, 32, 3)))
  stages = ['stem', 'stage2', 'stage3', 'stage4', 'stage5']
  frozen = set(variables.get('batch_stats', {}))
  assert frozen == set(stages[:frozen_stages])


def small_resnet(**options):
  """A ResNet-18 and variables with no zero, so that nothing is hidden."""
  model = ResNet(ResNetOptions(18, width=4, **options))
  images = np.random.default_rng(0).normal(size=(3, 32, 32, 3))
  images = images.astype(np.float32)
  variables = jax.jit(model.init)(jax.random.key(0), images)
  variables['params'] = jax.tree.map(lambda x: x + 0.1, variables['params'])
  return model, variables, images


@pytest.mark.slow
def test_frozen_stages_do_not_learn():
  model, variables, images = small_resnet(frozen_stages=2)

  @jax.jit
  @jax.grad
  def gradient(params):
    features = model.apply({**variables, 'params': params}, images)
    return sum(jnp.sum(x) for x in features.values())

  gradients = gradient(variables['params'])
  for name, stage in gradients.items():
    for array in jax.tree.leaves(stage):
      assert np.any(array) != (name in ('stem', 'stage2'))


@pytest.mark.slow
def test_images_that_are_not_valid_change_no_feature():
  model, variables, images = small_resnet(norm='batch', frozen_stages=0)
  run = jax.jit(
    functools.partial(model.apply, train=True, mutable=['batch_stats'])
  )
  valid = np.array([True, True, False])
  expected, expected_stats = run(variables, images, valid)
  changed = np.concatenate([images[:2], images[2:] + 100.0])
  actual, stats = run(variables, changed, valid)
  for level, features in expected.items():
    np.testing.assert_array_equal(actual[level][:2], features[:2])
    assert np.any(actual[level][2] != features[2])
  for x, y in zip(jax.tree.leaves(stats), jax.tree.leaves(expected_stats)):
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('depth', [18, 50])
def test_parameters_are_float32_at_other_precisions(depth):
  options = ResNetOptions(depth, norm='group')
  images = jnp.zeros((1, *CANVAS, 3), jnp.bfloat16)
  features, variables = initialized(ResNet(options, dtype='bfloat16'), images)
  pyramid, fpn_variables = initialized(fpn.FPN(32, dtype='bfloat16'), features)
  for array in jax.tree.leaves((features, pyramid)):
    assert array.dtype == jnp.bfloat16
  for array in jax.tree.leaves((variables, fpn_variables)):
    assert array.dtype == jnp.float32


def test_unknown_depth_is_rejected():
  with pytest.raises(UserError) as error:
    ResNetOptions(20)
  assert error.value.argument == 'model.backbone.depth'
  assert error.value.given == 20 and '50' in error.value.wanted


def test_pyramid_matches_its_definition():
  rng = np.random.default_rng(0)
  sizes = {2: (9, 12), 3: (5, 6), 4: (3, 3)}
  features = {
    level: rng.normal(size=(2, *size, 3)).astype(np.float32)
    for level, size in sizes.items()
  }
  model = fpn.FPN(channels=4, max_level=6)
  run = jax.jit(model.init_with_output)
  pyramid, variables = run(jax.random.key(0), features)
  params = variables['params']

  def convolve(x, name):
    layer = params[name]
    return convolution.convolve(x, layer['kernel']) + layer['bias']

  top_down = {}
  for level in (4, 3, 2):
    top_down[level] = np.array(convolve(features[level], f'lateral{level}'))
    if level < 4:
      for y, x in np.ndindex(*sizes[level]):
        top_down[level][:, y, x] += top_down[level + 1][:, y // 2, x // 2]
    expected = convolve(top_down[level], f'output{level}')
    np.testing.assert_allclose(pyramid[level], expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(pyramid[5], pyramid[4][:, ::2, ::2])
  np.testing.assert_array_equal(pyramid[6], pyramid[4][:, :1, :1])
  assert sorted(pyramid) == [2, 3, 4, 5, 6]


def test_upsampling_cuts_odd_sizes():
  x = jnp.arange(4.0).reshape(1, 2, 2, 1)
  upsampled = fpn.upsample(x, (1, 3, 4, 1))
  np.testing.assert_array_equal(
    upsampled[0, ..., 0], [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]
  )


def test_upsampling_by_products_is_repetition():
  """The form for TPUs: each cell is one product by 1, plus zeros."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 5, 16)) * 10.0 ** rng.integers(-30, 30, 16)
  x = jnp.bfloat16(x)
  products, repeated = fpn._double_by_products(x), fpn._repeat(x)
  assert products.dtype == x.dtype
  np.testing.assert_array_equal(products, repeated)
  wide = jnp.float32(rng.normal(size=x.shape))
  gradient = jnp.float32(rng.normal(size=repeated.shape))
  actual, expected = (
    jax.vjp(double, wide)[1](gradient)[0]
    for double in (fpn._double_by_products, fpn._repeat)
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
  'platform, dtype, has_products',
  [
    ('tpu', 'bfloat16', True),
    ('tpu', 'float32', False),
    ('cpu', 'bfloat16', False),
  ],
)
def test_upsampling_by_products_is_for_tpus(platform, dtype, has_products):
  def gradient(x):
    return jax.grad(lambda x: jnp.sum(fpn.upsample(x, (1, 5, 8, 16)) ** 2))(x)

  traced = jax.jit(gradient).trace(jnp.zeros((1, 3, 4, 16), dtype))
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  assert text.count('stablehlo.convolution') == 2 * has_products


@pytest.mark.parametrize('stride_in_1x1', [False, True])
def test_the_stride_of_a_bottleneck(stride_in_1x1):
  """On the first 1x1, every second row and column is unused."""
  block = resnet.Bottleneck(
    conv=functools.partial(layers.Conv, use_bias=False),
    norm=functools.partial(norms.Norm, kind='group', group_channels=1),
    features=4,
    stride=2,
    has_projection=True,
    stride_in_1x1=stride_in_1x1,
  )
  x = jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
  variables = jax.jit(block.init, static_argnums=(2, 3))(
    jax.random.key(0), x, None, False
  )
  # No bias is 0.
  variables = jax.tree.map(lambda x: x + 0.1, variables)

  def total(x):
    y = block.apply(variables, x, None, False)
    assert y.shape == (1, 4, 4, 16)
    return jnp.sum(y * jnp.arange(y.size).reshape(y.shape))

  gradient = np.abs(jax.jit(jax.grad(total))(x))[0].sum(axis=-1)
  seen = gradient > 0.0
  assert seen[::2, ::2].all()
  assert seen[1::2].any() == seen[:, 1::2].any() == (not stride_in_1x1)


def test_a_pyramid_with_norm():
  module = fpn.FPN(channels=4, max_level=4, norm=norms.NormOptions('batch'))
  features = {
    2: jax.random.normal(jax.random.key(0), (2, 8, 8, 3)),
    3: jax.random.normal(jax.random.key(1), (2, 4, 4, 6)),
  }
  variables = jax.jit(module.init)(jax.random.key(2), features)
  layer_names = {'lateral2', 'lateral3', 'output2', 'output3'}
  assert {*variables['params']} == layer_names | {
    f'{name}_norm' for name in layer_names
  }
  assert {*variables['params']['output2']} == {'kernel'}
  run = functools.partial(module.apply, train=True, mutable=['batch_stats'])
  pyramid, updated = jax.jit(run)(variables, features)
  assert {level: x.shape for level, x in pyramid.items()} == {
    2: (2, 8, 8, 4),
    3: (2, 4, 4, 4),
    4: (2, 2, 2, 4),
  }
  # Normalised, without a ReLU.
  for level in (2, 3):
    np.testing.assert_allclose(
      pyramid[level].mean(axis=(0, 1, 2)), 0, atol=1e-5
    )
    np.testing.assert_allclose(pyramid[level].std(axis=(0, 1, 2)), 1, rtol=1e-3)
  stored = updated['batch_stats']['output2_norm']['mean']
  assert np.any(stored != 0.0)


# Parameters without the classifier, with the four norms of the outputs.
@pytest.mark.parametrize(
  'blocks, width, num_parameters',
  [
    (9, 96, 27_821_472),
    (27, 96, 49_456_032),
    (27, 128, 87_568_256),
    (27, 192, 196_233_024),
  ],
)
def test_every_convnext_has_its_shapes_and_parameters(
  blocks, width, num_parameters
):
  widths = tuple(width * 2**i for i in range(4))
  options = ConvNeXtOptions((3, 3, blocks, 3), widths)
  features, variables = initialized(
    ConvNeXt(options), jnp.zeros((2, *CANVAS, 3))
  )
  assert {level: x.shape for level, x in features.items()} == {
    2: (2, 24, 40, width),
    3: (2, 12, 20, 2 * width),
    4: (2, 6, 10, 4 * width),
    5: (2, 3, 5, 8 * width),
  }
  assert count(variables['params']) == num_parameters
  assert {*variables} == {'params'}


# Without the row of the class token, which takes no part.
@pytest.mark.parametrize(
  'width, depth, heads, num_parameters, num_pyramid',
  [
    (768, 12, 12, 85_889_024 - 768, 5_560_000),
    (1024, 24, 16, 303_432_704 - 1024, 7_805_184),
  ],
)
def test_every_vit_has_its_shapes_and_parameters(
  width, depth, heads, num_parameters, num_pyramid
):
  blocks = tuple(depth * i // 4 - 1 for i in range(1, 5))
  model = ViT(ViTOptions(width, depth, heads, global_blocks=blocks))
  features, variables = initialized(model, jnp.zeros((2, *CANVAS, 3)))
  assert {k: x.shape for k, x in features.items()} == {4: (2, 6, 10, width)}
  assert count(variables['params']) == num_parameters
  pyramid, variables = initialized(SimpleFeaturePyramid(), features)
  assert {level: x.shape for level, x in pyramid.items()} == {
    2: (2, 24, 40, 256),
    3: (2, 12, 20, 256),
    4: (2, 6, 10, 256),
    5: (2, 3, 5, 256),
    6: (2, 2, 3, 256),
  }
  assert count(variables['params']) == num_pyramid


def small_convnext(**options):
  """A ConvNeXt and parameters of which none is 0, for three images."""
  model = ConvNeXt(ConvNeXtOptions((1, 1, 2, 1), (4, 6, 8, 10), **options))
  return with_arrays(model)


def small_vit(**options):
  """The same with a ViT of two blocks, the second global."""
  return with_arrays(ViT(ViTOptions(8, 2, 2, 3, (1,), **options)))


def with_arrays(model):
  images = np.random.default_rng(0).normal(size=(3, 32, 32, 3))
  images = images.astype(np.float32)
  params = jax.jit(model.init)(jax.random.key(0), images)['params']
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape), params)
  return model, jax.tree.map(np.float32, params), images


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize('make', [small_convnext, small_vit])
def test_remat_changes_no_gradient(make):
  def gradients(remat):
    model, params, images = make(remat=remat)

    def loss(params):
      features = model.apply({'params': params}, images)
      return sum(jnp.mean(jnp.square(x)) for x in features.values())

    text = str(jax.make_jaxpr(jax.grad(loss))(params))
    assert ('remat' in text) == remat
    return jax.jit(jax.grad(loss))(params)

  plain, again = gradients(False), gradients(True)
  for x, y in zip(jax.tree.leaves(plain), jax.tree.leaves(again)):
    assert_near(x, y, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('make, last', [(small_convnext, 5), (small_vit, 4)])
def test_drop_path_skips_blocks_of_single_images_in_training(make, last):
  model, params, images = make(drop_path=0.9)
  run = jax.jit(
    lambda key: model.apply(
      {'params': params}, images, train=True, rngs={'drop_path': key}
    )
  )
  key = jax.random.key(1)
  first, same, other = run(key), run(key), run(jax.random.key(2))
  np.testing.assert_array_equal(first[last], same[last])
  assert np.any(first[last] != other[last])
  if last == 5:  # The first block is never skipped.
    np.testing.assert_array_equal(first[2], other[2])
  evaluated = jax.jit(model.apply)({'params': params}, images)
  without, _, _ = make()
  expected = jax.jit(without.apply)({'params': params}, images)
  np.testing.assert_array_equal(evaluated[last], expected[last])


def test_errors_name_the_field_of_a_backbone():
  for make, field, given in (
    (lambda: BackboneOptions(kind='vgg'), 'kind', 'vgg'),
    (lambda: ConvNeXtOptions((3, 3, 9)), 'convnext.blocks', (3, 3, 9)),
    (lambda: ConvNeXtOptions(drop_path=1.0), 'convnext.drop_path', 1.0),
    (lambda: ViTOptions(heads=7), 'vit.heads', 7),
    (lambda: ViTOptions(depth=2), 'vit.global_blocks', (2, 5, 8, 11)),
  ):
    with pytest.raises(UserError) as error:
      make()
    assert error.value.argument == f'model.backbone.{field}'
    assert error.value.given == given


class Patches(nn.Module):
  """A backbone of this test: maps of one convolution each."""

  options: BackboneOptions
  dtype: str

  @nn.compact
  def __call__(self, images, valid=None, train=False):
    return {
      level: layers.PatchConv(8, 2**level, dtype=self.dtype)(images)
      for level in range(2, 6)
    }


def test_another_kind_is_a_module_and_a_row(monkeypatch):
  row = backbones.Kind(lambda options: options, Patches, fpn.FPN)
  monkeypatch.setitem(backbones.KINDS, 'patches', row)
  model = tiny_model.make_model(backbone={'kind': 'patches'})
  batch = tiny_model.make_batch()

  def run(key):
    variables = train_state.init_variables(model, key)
    return variables['params'], model.apply(
      variables, batch['images'], batch['image_sizes'], method='detect'
    )

  params, detections = jax.eval_shape(run, jax.random.key(0))
  assert detections.masks.shape == (2, 100, 28, 28)
  sides = {x.shape[0] for x in jax.tree.leaves(params['backbone'])}
  assert sides == {8, 4, 16, 32}  # Of biases, and of the patches of a level.
  # None of its parameters has a layer, or is frozen.
  assert model.backbone.num_layers is None
  assert model.backbone.num_frozen == 0


# Sections of `model.backbone`.
TINY = {
  'convnext': {
    'kind': 'convnext',
    'convnext': {
      'blocks': (1, 1, 1, 1),
      'widths': (8, 8, 16, 16),
      'drop_path': 0.5,
      'remat': True,
    },
  },
  'vit': {
    'kind': 'vit',
    'vit': {
      'width': 16,
      'depth': 2,
      'heads': 2,
      'window': 3,
      'global_blocks': (1,),
      'table_side': 4,
      'drop_path': 0.2,
      'remat': True,
    },
  },
}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize('kind', TINY)
def test_a_mask_rcnn_learns(kind):
  model = tiny_model.make_model(
    backbone=TINY[kind], head_norm={'kind': 'layer', 'epsilon': 1e-6}
  )
  batch = tiny_model.make_batch()
  state, optimizer = tiny_model.make_state(
    model, batch, kind='adamw', learning_rate=0.003, layer_decay=0.7
  )
  step = jax.jit(functools.partial(train_step.train_step, model, optimizer))
  totals = []
  for _ in range(12):
    state, metrics = step(state, batch, jax.random.key(0))
    assert metrics['finite']
    totals.append(float(metrics['total_loss']))
  assert np.all(np.isfinite(totals))
  assert np.mean(totals[-3:]) < 0.8 * totals[0]


def test_groups_of_a_resnext():
  """ResNeXt-101-32x8d has 86,742,336 parameters without its classifier."""
  options = ResNetOptions(
    101, groups=32, group_width=8, norm='batch', frozen_stages=0
  )
  _, variables = initialized(ResNet(options), jnp.zeros((1, 32, 32, 3)))
  assert count(variables['params']) == 86_742_336
  conv = variables['params']['stage3']['block1']['conv2']['kernel']
  assert conv.shape == (3, 3, 16, 512)
