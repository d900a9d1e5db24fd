"""RoIAlign against numbers by hand, and against its definition in loops."""

import functools
import itertools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.ops import roi_align as op
from maskrcnn_jax.ops.roi_align import RoiAlignOptions

ALL_OPTIONS = [
  RoiAlignOptions(
    half_pixel=half_pixel, min_side=min_side, zero_outside=zero_outside
  )
  for half_pixel, min_side, zero_outside in itertools.product(
    (False, True), (0.0, 1.0), (False, True)
  )
] + [
  RoiAlignOptions(samples_per_bin=2),
  RoiAlignOptions(samples_per_bin=2, min_side=1.0, zero_outside=True),
  RoiAlignOptions(samples_per_bin=2, half_pixel=True, zero_outside=True),
]
BOXES = np.array(
  [
    [1.0, 1.0, 5.0, 6.0],
    [0.3, 2.2, 6.9, 4.1],
    [0.0, 0.0, 7.0, 9.0],  # The whole map.
    [0.0, 0.0, 0.0, 0.0],  # Padding.
    [3.0, 3.0, 3.4, 3.2],  # Less than a cell.
    [5.0, 6.0, 2.0, 1.0],  # Inverted.
    [-4.1, -3.2, 2.3, 3.1],  # Outside at the start ...
    [5.1, 7.2, 12.1, 14.3],  # ... and at the end.
    [6.0, 8.0, 7.0, 9.0],  # The last cell.
  ],
  np.float32,
)

ALIGN = jax.jit(op.pyramid_roi_align, static_argnums=(2, 3))


def bilinear(features, y, x, zero_outside):
  """Value at (y, x) of a map `[h, w, c]`, by the definition."""
  height, width, channels = features.shape
  if zero_outside:
    if y < -1 or y > height or x < -1 or x > width:
      return np.zeros(channels)
    y, x = max(y, 0.0), max(x, 0.0)
  value = np.zeros(channels)
  y0, x0 = max(np.floor(y), 0), max(np.floor(x), 0)
  for row, row_weight in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
    for column, column_weight in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
      cell = features[int(min(row, height - 1)), int(min(column, width - 1))]
      value += row_weight * column_weight * cell
  return value


def by_definition(features, boxes, size, options):
  """RoIAlign with one loop for every axis, in float64."""
  samples = options.samples_per_bin
  shift = 0.5 if options.half_pixel else 0.0
  features = features.astype(np.float64)
  out = np.zeros((len(boxes), size, size, features.shape[-1]))
  for n, (y1, x1, y2, x2) in enumerate(boxes.astype(np.float64)):
    height, width = y2 - y1, x2 - x1
    if options.min_side:
      height = max(height, options.min_side)
      width = max(width, options.min_side)
    for row, column in np.ndindex(size, size):
      for i, j in np.ndindex(samples, samples):
        y = y1 - shift + (row + (i + 0.5) / samples) * height / size
        x = x1 - shift + (column + (j + 0.5) / samples) * width / size
        out[n, row, column] += bilinear(features, y, x, options.zero_outside)
  return out / samples**2


def random_map(height=7, width=9, channels=3, seed=0):
  values = np.random.RandomState(seed).standard_normal(
    (height, width, channels)
  )
  return values.astype(np.float32)


def random_pyramid(batch=2, canvas=(64, 96), channels=3, seed=0):
  rng = np.random.RandomState(seed)
  shapes = {
    level: [-(-side // 2**level) for side in canvas] for level in range(2, 7)
  }
  return {
    level: rng.standard_normal((batch, *shape, channels)).astype(np.float32)
    for level, shape in shapes.items()
  }


def random_boxes(shape, canvas=(64, 96), seed=1):
  rng = np.random.RandomState(seed)
  corners = rng.uniform(size=(*shape, 2, 2)) * np.array(canvas)
  corners.sort(axis=-2)
  return corners.reshape(*shape, 4).astype(np.float32)


@pytest.mark.parametrize(
  'half_pixel, first_row',
  [(False, [7.5, 8.0, 8.5, 9.0]), (True, [4.5, 5.0, 5.5, 6.0])],
)
def test_ramp_by_hand(half_pixel, first_row):
  ramp = np.arange(25, dtype=np.float32).reshape(5, 5, 1)
  out = op.roi_align(
    ramp,
    np.array([[1.0, 1.0, 3.0, 3.0]], np.float32),
    4,
    RoiAlignOptions(half_pixel=half_pixel),
  )
  # Bins are half a cell: 0.5 to the right, 5 x 0.5 downward.
  expected = np.array(first_row) + np.arange(4)[:, None] * 2.5
  np.testing.assert_allclose(out[0, :, :, 0], expected, rtol=1e-6)


@pytest.mark.parametrize('options', ALL_OPTIONS)
def test_value_and_gradient_match_the_definition(options):
  features = random_map()
  height, width, channels = features.shape
  cotangent = random_map(len(BOXES) * 3, 3, channels, seed=1)
  cotangent = cotangent.reshape(-1, 3, 3, channels)

  @jax.jit
  def value_and_gradient(features):
    align = functools.partial(op.roi_align, boxes=BOXES, size=3)
    out, pull_back = jax.vjp(
      lambda features: align(features, options=options), features
    )
    return out, pull_back(cotangent)[0]

  out, gradient = value_and_gradient(features)
  expected = by_definition(features, BOXES, 3, options)
  np.testing.assert_allclose(out, expected, atol=2e-5)
  # RoIAlign is linear: on an identity it shows every cell's weight.
  identity = np.eye(height * width).reshape(height, width, -1)
  weights = by_definition(identity, BOXES, 3, options)
  expected = np.einsum('nijp,nijc->pc', weights, cotangent)
  np.testing.assert_allclose(
    gradient, expected.reshape(features.shape), atol=5e-5
  )


def test_shifting_map_and_boxes_changes_nothing():
  features = random_map(12, 14)
  boxes = np.array([[2.2, 1.0, 6.1, 5.5], [3.0, 4.0, 5.0, 7.25]], np.float32)
  shifted = np.roll(features, (3, 4), axis=(0, 1))
  shift = np.array([3, 4, 3, 4], np.float32)
  np.testing.assert_allclose(
    op.roi_align(shifted, boxes + shift, 7),
    op.roi_align(features, boxes, 7),
    atol=1e-5,
  )


def test_transposing_map_boxes_and_size_transposes_the_output():
  features = random_map()
  out = op.roi_align(features, BOXES, (4, 2))
  assert out.shape == (len(BOXES), 4, 2, 3)
  transposed = op.roi_align(
    features.transpose(1, 0, 2), BOXES[:, [1, 0, 3, 2]], (2, 4)
  )
  np.testing.assert_allclose(transposed.transpose(0, 2, 1, 3), out, atol=1e-5)


@pytest.mark.parametrize(
  'level, sides',
  [
    (2, (0, 1, 111.9)),
    (3, (112, 223.9)),
    (4, (224, 447.9)),
    (5, (448, 895.9)),
    (6, (896, 5000)),
  ],
)
def test_levels_by_hand(level, sides):
  for side in sides:
    box = np.array([10.0, 20.0, 10.0 + side, 20.0 + side], np.float32)
    assert op.assign_levels(box) == level


def test_levels_of_boxes_without_area_and_of_other_shapes():
  boxes = [
    [100.0, 0.0, 0.0, 500.0],  # Inverted along one axis.
    [0.0, 0.0, 0.0, 500.0],
    [0.0, 0.0, 56.0, 896.0],  # The area of 224 x 224.
    [56.0, 896.0, 0.0, 0.0],  # Inverted along both: a positive area.
  ]
  levels = op.assign_levels(np.float32(boxes))
  np.testing.assert_array_equal(levels, [2, 2, 4, 4])


def test_level_options():
  side = np.float32(224.0 * (1 - 3e-7))
  box = np.array([0.0, 0.0, side, side], np.float32)
  assert op.assign_levels(box) == 3
  assert op.assign_levels(box, RoiAlignOptions(level_epsilon=1e-6)) == 4
  assert op.assign_levels(box, RoiAlignOptions(max_level=2)) == 2
  assert op.assign_levels(box, RoiAlignOptions(min_level=5)) == 5


@pytest.mark.parametrize(
  'options',
  [
    RoiAlignOptions(),
    RoiAlignOptions(
      samples_per_bin=2, min_side=1.0, zero_outside=True, max_level=5
    ),
  ],
  ids=['habana', 'torchvision'],
)
def test_pyramid_takes_every_box_from_its_level(options):
  pyramid = random_pyramid()
  # Over all levels, and over the border.
  boxes = random_boxes((2, 12)) * np.geomspace(1, 40, 12, dtype='f4')[:, None]
  out = ALIGN(pyramid, boxes, 3, options)
  levels = np.asarray(op.assign_levels(boxes, options))
  assert set(levels.flat) == set(range(2, options.max_level + 1))
  for image, n in np.ndindex(*levels.shape):
    level = int(levels[image, n])
    expected = by_definition(
      pyramid[level][image], boxes[image, n][None] / 2**level, 3, options
    )
    np.testing.assert_allclose(out[image, n], expected[0], atol=2e-3)


def test_an_export_for_any_number_of_images_changes_nothing():
  pyramid, boxes = random_pyramid(), random_boxes((2, 5))
  (batch,) = jax.export.symbolic_shape('batch')
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype),
    (pyramid, boxes),
  )
  align = jax.jit(lambda *x: op.pyramid_roi_align(*x, 3))
  exported = jax.export.export(align)(*shapes)
  for first in (0, 1):
    some = {level: x[first:] for level, x in pyramid.items()}, boxes[first:]
    np.testing.assert_array_equal(exported.call(*some), align(*some))


def test_padded_boxes_are_finite_and_change_nothing():
  pyramid = random_pyramid()
  boxes = random_boxes((2, 5))
  padded = np.pad(boxes, ((0, 0), (0, 3), (0, 0)))

  def loss(pyramid, boxes):
    out = op.pyramid_roi_align(pyramid, boxes, 3)
    return jnp.sum(out[:, :5] ** 2), out

  gradient_and_out = jax.jit(jax.grad(loss, has_aux=True))
  gradient, out = gradient_and_out(pyramid, boxes)
  padded_gradient, padded_out = gradient_and_out(pyramid, padded)
  assert np.all(np.isfinite(padded_out))
  np.testing.assert_allclose(padded_out[:, :5], out, atol=1e-6)
  for level in pyramid:
    np.testing.assert_allclose(
      padded_gradient[level], gradient[level], atol=1e-4
    )


def test_gradient_is_finite_where_all_boxes_are_padding():
  def loss(pyramid, boxes):
    return jnp.sum(op.pyramid_roi_align(pyramid, boxes, 3))

  gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(
    random_pyramid(), np.zeros((2, 4, 4), np.float32)
  )
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradients))
  np.testing.assert_array_equal(gradients[1], 0.0)  # None flows to boxes.


def test_far_outside_is_finite():
  boxes = np.array(
    [[-1e9, -1e9, -1e8, -1e8], [1e9, 1e9, 1e10, 1e10], [0, 0, 1e12, 1e12]],
    np.float32,
  )
  assert np.all(np.isfinite(op.roi_align(random_map(), boxes, 3)))


def test_jit_and_vmap_change_nothing():
  features = np.stack([random_map(), random_map(seed=1)])
  boxes = np.stack([BOXES, BOXES[::-1]])
  mapped = jax.jit(jax.vmap(lambda x, boxes: op.roi_align(x, boxes, 3)))
  out = mapped(features, boxes)
  for image in range(2):
    expected = op.roi_align(features[image], boxes[image], 3)
    np.testing.assert_allclose(out[image], expected, atol=1e-5)


def test_bfloat16_features_keep_their_dtype_and_exact_positions():
  features, boxes = random_map(), BOXES + np.float32(0.01)
  rounded = jnp.asarray(features, jnp.bfloat16)
  out = op.roi_align(rounded, boxes, 3)
  assert out.dtype == jnp.bfloat16
  expected = op.roi_align(rounded.astype(jnp.float32), boxes, 3)
  # Only the result is rounded: 8 bits of mantissa.
  np.testing.assert_allclose(out.astype(jnp.float32), expected, rtol=2**-8)


def test_gradients_are_summed_in_the_type_of_the_option():
  # 300 boxes on one cell: in bfloat16 a sum of ones stops at 256.
  features = jnp.zeros((4, 4, 1), jnp.bfloat16)
  boxes = np.tile(np.float32([0, 0, 2, 2]), (300, 1))

  def total(features, dtype):
    options = RoiAlignOptions(dtype=dtype)
    out = op.roi_align(features, boxes, 1, options)
    assert out.dtype == (dtype or features.dtype)
    return jnp.sum(out.astype(jnp.float32))

  for dtype, expected in ((None, 256.0), ('float32', 300.0)):
    gradient = jax.grad(total)(features, dtype).astype(jnp.float32)
    assert np.abs(gradient[1, 1, 0] - expected) <= 1.0


def test_errors_say_what_is_wanted():
  pyramid, boxes = random_pyramid(), random_boxes((2, 3))
  to_level7 = RoiAlignOptions(max_level=7)
  for wanted, function, *arguments in (
    (r'^boxes ', op.pyramid_roi_align, pyramid, boxes[0], 3),
    (r'^pyramid .*\[7\]', op.pyramid_roi_align, pyramid, boxes, 3, to_level7),
    (r'^pyramid\[2\] ', op.pyramid_roi_align, pyramid, boxes[:1], 3),
    (r'^features ', op.roi_align, pyramid[2], boxes[0], 3),
  ):
    with pytest.raises(ValueError, match=wanted):
      function(*arguments)


def test_sets_of_boxes_are_those_alone_and_their_gradients_add_up():
  pyramid, sizes = random_pyramid(), (3, (2, 4))
  boxes = random_boxes((2, 5)), random_boxes((2, 7), seed=1)

  def loss(out, seed):
    weights = np.random.default_rng(seed).normal(size=out.shape)
    return jnp.sum(out * weights.astype(np.float32))

  def losses(pyramid):
    out = op.pyramid_roi_aligns(pyramid, boxes, sizes)
    return sum(loss(x, seed) for seed, x in enumerate(out)), out

  def loss_alone(pyramid, index):
    out = op.pyramid_roi_align(pyramid, boxes[index], sizes[index])
    return loss(out, index), out

  gradient, out = jax.jit(jax.grad(losses, has_aux=True))(pyramid)
  alone = jax.jit(jax.grad(loss_alone, has_aux=True), static_argnums=1)
  gradients, expected = zip(*(alone(pyramid, index) for index in range(2)))
  for x, y in zip(out, expected, strict=True):
    np.testing.assert_array_equal(x, y)
  for level, x in gradient.items():
    total = gradients[0][level] + gradients[1][level]
    np.testing.assert_allclose(x, total, atol=1e-5)
