"""The exported program: the numbers of `detect`, for any batch size."""

import re

import drawn_checkpoint
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from jax import export

from maskrcnn_jax.export import program
from maskrcnn_jax.inference import detection
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.ops import convolution, cpu_convolution

CANVAS = (64, 96)


@pytest.fixture(scope='module')
def model():
  return MaskRCNN.from_config(tiny_run.make_config('', '').model)


@pytest.fixture(scope='module')
def variables(model):
  return drawn_checkpoint.draw_variables(model)


@pytest.fixture(scope='module')
def weights(variables):
  return program.flatten_weights(variables)


def draw_batch(batch_size, dtype=np.uint8):
  """Images of noise at the top left of the canvas."""
  rng = np.random.default_rng(batch_size)
  images = rng.integers(0, 256, (batch_size, *CANVAS, 3)).astype(dtype)
  return images, np.float32([[60 - i, 80] for i in range(batch_size)])


def custom_calls(exported):
  return {*re.findall(r'custom_call @([\w.]+)', exported.mlir_module())}


def assert_is_detect(exported, model, variables, weights, batch):
  found = exported.call(weights, *batch)
  wanted = detection.detect(model, variables, *batch)
  assert np.any(wanted.valid)
  assert found.keys() == {*program.OUTPUTS}
  for name, value in found.items():
    expected = np.asarray(getattr(wanted, name))
    # Boxes reach over the canvas, so a small coordinate is a difference.
    atol = max(1e-5, 1e-6 * np.max(expected))
    np.testing.assert_allclose(
      value, expected, rtol=1e-5, atol=atol, err_msg=name
    )


def _exported(model, weights, batch_size, image_dtype, platforms, **options):
  shapes = program.input_shapes(weights, CANVAS, batch_size, image_dtype)
  return program.export_detection(model, shapes, platforms, **options)


def test_weights_are_named_by_their_path(weights, variables):
  assert len(weights) == len(jax.tree.leaves(variables))
  assert list(weights) == sorted(weights)
  np.testing.assert_array_equal(
    weights['params/fpn/output2/kernel'],
    variables['params']['fpn']['output2']['kernel'],
  )


@pytest.mark.slow
def test_one_program_takes_any_number_of_images(model, variables, weights):
  exported = _exported(model, weights, None, 'uint8', ('cpu',))
  exported = export.deserialize(exported.serialize())
  for batch_size in (1, 3):
    batch = draw_batch(batch_size)
    assert_is_detect(exported, model, variables, weights, batch)


def test_a_program_of_two_float_images(model, variables, weights):
  exported = _exported(
    model, weights, 2, 'float32', ('cpu',), for_tensorflow=True
  )
  batch = draw_batch(2, np.float32)
  assert_is_detect(exported, model, variables, weights, batch)
  with pytest.raises(ValueError, match='2'):
    exported.call(weights, *draw_batch(3, np.float32))


def test_a_program_for_three_platforms_has_no_platform_calls(model, weights):
  exported = _exported(model, weights, None, 'uint8', ('cpu', 'cuda', 'tpu'))
  assert exported.platforms == ('cpu', 'cuda', 'tpu')
  # Asserts a batch of at least 1; known to every compiler of StableHLO.
  assert custom_calls(exported) == {'shape_assertion'}


def test_a_program_for_tensorflow_has_no_top_k(model, weights):
  exported = _exported(
    model, weights, 1, 'uint8', ('cpu', 'tpu'), for_tensorflow=True
  )
  assert custom_calls(exported) == set()
  text = re.sub(r'loc\(.*', '', exported.mlir_module())  # Names its sources.
  assert 'stablehlo.sort' in text and 'top_k' not in text


@pytest.mark.parametrize('k', [1, 3, 7])
def test_sorted_top_k_equals_top_k(k):
  rng = np.random.default_rng(k)
  x = rng.integers(-2, 3, (2, 7)).astype(np.float32)  # With many ties.
  x[0, 2], x[1, 4], x[1, 5] = -np.inf, np.inf, -np.inf
  for found, wanted in zip(
    program._sorted_top_k(jnp.asarray(x), k=k), jax.lax.top_k(x, k)
  ):
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize('is_symbolic', [False, True])
def test_exporting_a_convolution_with_a_cpu_form(is_symbolic):
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(3, 3, 32, 32)).astype(np.float32)
  images = rng.normal(size=(128, 6, 6, 32)).astype(np.float32)
  assert cpu_convolution.group_size(images, kernel)
  (batch,) = export.symbolic_shape('batch')
  exported = export.export(
    jax.jit(lambda x: convolution.convolve(x, kernel)),
    platforms=('cpu', 'cuda', 'tpu'),
  )(
    jax.ShapeDtypeStruct(
      (batch if is_symbolic else 128, *images.shape[1:]), np.float32
    )
  )
  found = export.deserialize(exported.serialize()).call(images)
  wanted = convolution.convolve(images, kernel)
  np.testing.assert_allclose(found, wanted, atol=1e-4)  # Values of about 17.
