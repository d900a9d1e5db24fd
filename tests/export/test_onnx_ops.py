"""NMS, RoIAlign, pooling and others as ONNX operators, in every runtime."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import onnx_runtimes
import pytest

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.ops import convolution, nms, roi_align

pytest.importorskip('onnx', reason="onnx is missing: pip install '.[test]'")
from maskrcnn_jax.export import onnx_ops, onnx_program

BOTH = pytest.mark.parametrize('runtime', onnx_runtimes.RUNTIMES)


def run(runtime, function, **inputs):
  """The outputs of a function of JAX, converted and run."""
  inputs = {name: np.asarray(x) for name, x in inputs.items()}
  shapes = {
    k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in inputs.items()
  }

  def named(_, *values):
    found = function(*values)
    return found if isinstance(found, dict) else {'found': found}

  model = onnx_program.convert(named, {}, shapes, 'test', {})
  # Integers are int64 in a file.
  inputs = {
    k: x.astype(np.int64) if x.dtype == np.int32 else x
    for k, x in inputs.items()
  }
  return onnx_runtimes.run(model, inputs, runtime)


def kept_by(runtime, boxes, scores, valid, threshold, limit=None):
  """Masks of `keep` in a runtime and of `nms`, both `[groups, n]`."""
  limit = limit or boxes.shape[1]
  arrays = {'boxes': boxes, 'scores': scores, 'valid': valid}
  found = run(
    runtime, lambda *x: onnx_ops.keep(*x, threshold, limit), **arrays
  )['found']
  wanted = np.zeros_like(valid)
  for group in range(len(boxes)):
    rows, filled = nms.nms(
      *(boxes[group], scores[group], valid[group], threshold, limit)
    )
    wanted[group, np.asarray(rows)[np.asarray(filled)]] = True
  return found, wanted


def draw_boxes(rng, groups, n):
  """Boxes with corners on a grid, so that IoUs are simple and often equal."""
  starts = rng.integers(0, 12, (groups, n, 2))
  return np.float32(
    np.concatenate([starts, starts + rng.integers(0, 7, starts.shape)], -1)
  )


@BOTH
@pytest.mark.parametrize('threshold', [0.5, 0.7, 1 / 3])
def test_nms_with_ties_and_empty_boxes(runtime, threshold):
  rng = np.random.default_rng(3)
  boxes = draw_boxes(rng, 3, 60)
  boxes[0, :10] = boxes[0, 10]  # Equal boxes.
  boxes[1, 5:20, 2:] = boxes[1, 5:20, :2]  # Points.
  boxes[2, ::3] = boxes[2, ::3, [2, 3, 0, 1]].T  # Corners the other way.
  scores = rng.integers(1, 8, (3, 60)).astype(np.float32)  # Many ties.
  valid = rng.random((3, 60)) < 0.9
  found, wanted = kept_by(runtime, boxes, scores, valid, threshold)
  assert 20 < wanted.sum() < valid.sum()
  np.testing.assert_array_equal(found, wanted)


@BOTH
@pytest.mark.parametrize(
  'threshold, other', [(0.5, [0, 0, 4, 2]), (0.75, [0, 0, 3, 4])]
)
def test_an_iou_equal_to_the_threshold_does_not_suppress(
  runtime, threshold, other
):
  boxes = np.float32([[[0, 0, 4, 4], other]])
  scores, valid = np.float32([[2, 1]]), np.ones((1, 2), bool)
  found, wanted = kept_by(runtime, boxes, scores, valid, threshold)
  assert wanted.tolist() == found.tolist() == [[True, True]]
  # A bit more overlap, or a bit lower threshold.
  below = threshold - 1e-3
  found, wanted = kept_by(runtime, boxes, scores, valid, below)
  assert wanted.tolist() == found.tolist() == [[True, False]]


@BOTH
def test_nms_of_nothing_valid_and_of_a_limit(runtime):
  rng = np.random.default_rng(5)
  boxes, scores = draw_boxes(rng, 2, 30), rng.random((2, 30), np.float32)
  valid = np.stack([np.zeros(30, bool), np.ones(30, bool)])
  found, wanted = kept_by(runtime, boxes, scores, valid, 0.9, limit=4)
  np.testing.assert_array_equal(found, wanted)
  assert found.sum(axis=1).tolist() == [0, 4]


@BOTH
def test_equal_values_of_top_k_come_by_their_index(runtime):
  x = np.random.default_rng(0).integers(0, 3, (2, 500)).astype(np.float32)

  def best(x):
    values, rows = jax.lax.top_k(x, 100)
    return {'values': values, 'rows': rows}

  found, wanted = run(runtime, best, x=x), best(x)
  np.testing.assert_array_equal(found['values'], wanted['values'])
  if runtime == 'onnxruntime':  # OpenVINO takes equal ones in any order.
    np.testing.assert_array_equal(found['rows'], wanted['rows'])


ALL_ALIGN = [
  roi_align.RoiAlignOptions(
    samples_per_bin=samples,
    half_pixel=half_pixel,
    min_side=min_side,
    zero_outside=zero_outside,
    max_level=4,
  )
  for samples, half_pixel, min_side, zero_outside in itertools.product(
    (1, 2), (False, True), (0.0, 1.0), (False, True)
  )
]
ALL_ALIGN += [
  roi_align.RoiAlignOptions(
    adaptive_side=35, half_pixel=half_pixel, zero_outside=True, max_level=4
  )
  for half_pixel in (False, True)
]


@BOTH
@pytest.mark.parametrize('options', ALL_ALIGN)
def test_roi_align_of_a_pyramid(runtime, options):
  rng = np.random.default_rng(1)
  pyramid = {
    level: rng.normal(size=(2, 256 >> level, 384 >> level, 3))
    for level in (2, 3, 4)
  }
  pyramid = {k: x.astype(np.float32) for k, x in pyramid.items()}
  corners = rng.random((2, 60, 2, 2)) * [256, 384]
  boxes = np.concatenate([corners.min(2), corners.max(2)], -1)
  boxes[0, :8] = [
    [0, 0, 256, 384],  # Everything.
    [0, 0, 0, 0],  # Padding.
    [0, 0, 1, 1],
    [255.5, 383.5, 256, 384],  # At the end, less than a cell of any level.
    [256, 384, 256, 384],
    [254, 3, 256, 380],
    [60, 70, 59.5, 69.5],  # Inverted, as boxes of less than a pixel may be.
    [0, 381, 256, 384],
  ]
  boxes = boxes.astype(np.float32)
  levels = roi_align.assign_levels(boxes, options)
  assert {*np.ravel(levels)} == {2, 3, 4}
  names = {f'level{k}': x for k, x in pyramid.items()}

  def align(boxes, *maps):
    return onnx_ops.pyramid_roi_align(
      dict(zip(pyramid, maps)), boxes, 7, options
    )

  found = run(runtime, align, boxes=boxes, **names)['found']
  wanted = roi_align.pyramid_roi_align(pyramid, boxes, 7, options)
  np.testing.assert_allclose(found, wanted, atol=2e-4)


@BOTH
@pytest.mark.parametrize('padding', ['symmetric', 'same'])
@pytest.mark.parametrize('size', [(8, 10), (7, 9)])
def test_pooling_and_strided_convolutions(runtime, padding, size):
  rng = np.random.default_rng(2)
  # Negative, so that padding with zeros would show.
  x = -rng.random((2, *size, 4), np.float32) - 1
  kernels = [
    rng.normal(size=(k, k, 4, 4)).astype(np.float32) for k in (1, 3, 7)
  ]

  def layers(x):
    found = {'pool': convolution.max_pool(x, padding)}
    for kernel in kernels:
      for stride in (1, 2):
        found[f'{kernel.shape[0]}/{stride}'] = convolution.convolve(
          *(x, kernel, stride, padding)
        )
    return found

  found, wanted = run(runtime, layers, x=x), layers(x)
  for name, value in wanted.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4)


@BOTH
def test_operations_around_an_open_batch_layout(runtime):
  rng = np.random.default_rng(4)
  x = rng.normal(size=(2, 4, 6, 8)).astype(np.float32)
  kernel = rng.normal(size=(3, 3, 8, 8)).astype(np.float32)
  factor = rng.random((2, 8), np.float32)
  rows = np.int32([[1, 0, 3], [2, 2, 0]])

  def mixed(x, factor, rows):
    y = jax.nn.relu(convolution.convolve(x, kernel) * 0.5 + x)
    z = jnp.repeat(y, 2, axis=1) * factor[:, None, None]
    groups = y.reshape(2, 24, 2, 4)
    return {
      'joined': jnp.concatenate([y, x], axis=3).sum(axis=3),
      'mean': jnp.mean(groups, axis=(1, 3)),
      'repeated': z[:, 1:7:3],
      'taken': jnp.take_along_axis(y, rows[:, :, None, None], axis=1),
      'chosen': jnp.where((y > 0) & (rows[:, :1, None, None] > 1), y, -1.0),
      'flags': jnp.where(y > x, y > 1, jnp.isfinite(1 / y)),
      'product': jnp.einsum('nhwc,nc->nhw', y, factor),
      'turned': y[:, ::-1, :, ::-1],
      'part': jnp.split(y, [2, 5], axis=3)[1],
      'first': jnp.split(y, [1], axis=1)[0] + 1,
      'padded': jnp.pad(y[..., 0], [(0, 0), (1, 2), (0, 0)]),
      'softmax': jax.nn.softmax(y),
    }

  found = run(runtime, mixed, x=x, factor=factor, rows=rows)
  for name, value in mixed(x, factor, rows).items():
    assert found[name].dtype == value.dtype
    np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)


def test_an_unknown_operation_is_refused_by_name():
  def loop(_, x):
    return {'y': jax.lax.fori_loop(0, x.shape[0] * 2, lambda i, y: y * y, x)}

  with pytest.raises(UserError) as caught:
    shapes = {'x': jax.ShapeDtypeStruct((3,), np.float32)}
    onnx_program.convert(loop, {}, shapes, 'test', {})
  assert caught.value.argument == 'format'
  assert 'scan' in caught.value.given
