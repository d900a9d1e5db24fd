"""Masks cut and pasted, against numbers by hand and definitions in loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.ops import masks as op


def random_masks(n=4, size=12, seed=0):
  return np.random.RandomState(seed).uniform(size=(n, size, size)).astype('f4')


def random_boxes(n, seed=1, side=60.0):
  corners = np.random.RandomState(seed).uniform(0, side, (n, 2, 2))
  corners.sort(axis=1)
  return corners.reshape(n, 4).astype(np.float32)


def crop_by_definition(mask, instance_box, roi, size):
  """Habana's routine: a border of 2 zeros, coordinates moved by 2."""
  mask = np.pad(mask.astype(np.float64), 2)
  last = len(mask) - 1
  roi, box = roi.astype(np.float64), instance_box.astype(np.float64)
  scales = (len(mask) - 4) / (box[2:] - box[:2] + 1e-8)
  starts = (roi[:2] - box[:2]) * scales + 2
  sides = (roi[2:] - roi[:2]) * scales
  out = np.zeros((size, size))
  for i, j in np.ndindex(size, size):
    y, x = starts + (np.array([i, j]) + 0.5) * sides / size
    y0, x0 = max(np.floor(y), 0), max(np.floor(x), 0)
    for row, row_weight in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
      for column, column_weight in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
        cell = mask[int(min(row, last)), int(min(column, last))]
        out[i, j] += row_weight * column_weight * cell
  return out


def paste_by_definition(mask, box, canvas):
  """Detectron's steps, one pixel at a time."""
  size = len(mask) + 2
  mask = np.pad(mask.astype(np.float64), 1)
  y1, x1, y2, x2 = box.astype(np.float64)
  grow = size / (size - 2)
  cy, cx = (y1 + y2) / 2, (x1 + x2) / 2
  half_h, half_w = (y2 - y1) / 2 * grow, (x2 - x1) / 2 * grow
  y1, y2 = int(cy - half_h), int(cy + half_h)
  x1, x2 = int(cx - half_w), int(cx + half_w)
  height, width = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
  out = np.zeros(canvas, bool)
  for i in range(max(y1, 0), min(y2 + 1, canvas[0])):
    for j in range(max(x1, 0), min(x2 + 1, canvas[1])):
      y = np.clip((i - y1 + 0.5) * size / height - 0.5, 0, size - 1)
      x = np.clip((j - x1 + 0.5) * size / width - 0.5, 0, size - 1)
      y0, x0 = int(min(y, size - 2)), int(min(x, size - 2))
      rows = np.array([1 - (y - y0), y - y0])
      columns = np.array([1 - (x - x0), x - x0])
      value = rows @ mask[y0 : y0 + 2, x0 : x0 + 2] @ columns
      out[i, j] = value > 0.5
  return out


def test_crop_of_a_ramp_by_hand():
  # Cells 0..3 along x, over a box 8 pixels wide: half a cell to a pixel.
  ramp = np.tile(np.arange(4, dtype=np.float32) / 4, (4, 1))[None]
  instance_boxes = np.array([[0.0, 10.0, 8.0, 18.0]], np.float32)
  rois = np.array([[2.0, 10.0, 4.0, 14.0], [2.0, 14.0, 4.0, 22.0]], np.float32)
  out = op.crop_masks(ramp, instance_boxes, rois, np.array([0, 0]), size=2)
  np.testing.assert_allclose(out[0], [[0.125, 0.375]] * 2, rtol=1e-5)
  # Cell 3 holds 0.75, and everything from cell 4 on is zero.
  np.testing.assert_allclose(out[1], [[0.75, 0.0]] * 2, atol=1e-5)


def test_crop_matches_the_definition():
  masks, instance_boxes = random_masks(), random_boxes(4)
  rois = np.concatenate([random_boxes(20, seed=2), instance_boxes])
  rois += np.array([-5, 3, 8, 12], np.float32)  # Some reach outside.
  indices = np.arange(len(rois)) % 4
  out = op.crop_masks(masks, instance_boxes, rois, indices, size=5)
  for n, index in enumerate(indices):
    expected = crop_by_definition(
      masks[index], instance_boxes[index], rois[n], 5
    )
    np.testing.assert_allclose(out[n], expected, atol=1e-4)


def test_crop_moves_with_its_boxes():
  masks, boxes, rois = random_masks(), random_boxes(4), random_boxes(4, seed=3)
  shift = np.array([16, 32, 16, 32], np.float32)
  np.testing.assert_allclose(
    op.crop_masks(masks, boxes + shift, rois + shift, np.arange(4)),
    op.crop_masks(masks, boxes, rois, np.arange(4)),
    atol=1e-3,
  )


def test_padding_changes_no_crop_and_stays_finite():
  masks, boxes, rois = random_masks(), random_boxes(4), random_boxes(6, seed=3)
  indices = np.array([0, 1, 2, 3, 3, 2])
  expected = op.crop_masks(masks, boxes, rois, indices)
  padded_masks = np.pad(masks, ((0, 3), (0, 0), (0, 0)))
  padded_boxes = np.pad(boxes, ((0, 3), (0, 0)))
  padded_rois = np.pad(rois, ((0, 5), (0, 0)))
  # Padded RoIs meet a padded instance and a real one, and a real RoI a padded.
  padded_rois[6] = rois[0]
  padded_indices = np.concatenate([indices, [4, 4, 5, 0, 0]])

  def loss(masks, rois):
    out = op.crop_masks(masks, padded_boxes, rois, padded_indices)
    return jnp.sum(out), out

  gradients, out = jax.grad(loss, argnums=(0, 1), has_aux=True)(
    padded_masks, padded_rois
  )
  np.testing.assert_array_equal(out[:6], expected)
  np.testing.assert_array_equal(out[6], 0.0)
  assert np.all(np.isfinite(out))
  assert all(np.all(np.isfinite(x)) for x in gradients)


def test_jit_and_vmap_change_nothing():
  masks, boxes = random_masks(), random_boxes(4)
  crop = (op.crop_masks, masks, boxes, random_boxes(4, seed=3), np.arange(4))
  paste = (lambda *x: op.paste_masks(*x, (32, 48)), masks, boxes)
  for function, *arguments in (crop, paste):
    expected = np.float32(function(*arguments))
    once = np.float32(jax.jit(function)(*arguments))
    np.testing.assert_allclose(once, expected, atol=1e-5)
    twice = [np.stack([x, x[::-1]]) for x in arguments]
    mapped = np.float32(jax.vmap(function)(*twice))
    np.testing.assert_allclose(mapped[0], expected, atol=1e-5)


def test_paste_of_a_full_mask_by_hand():
  masks = np.ones((1, 28, 28), np.float32)
  boxes = np.array([[10.0, 20.0, 38.0, 48.0]], np.float32)
  pasted = np.asarray(op.paste_masks(masks, boxes, (64, 64)))[0]
  # Grown to pixels 9..39, 31 pixels for 30 cells: the value passes 0.5 at the
  # middle between a zero cell and a full one, pixels 10..38.
  expected = np.zeros((64, 64), bool)
  expected[10:39, 20:49] = True
  np.testing.assert_array_equal(pasted, expected)


def test_paste_matches_the_definition():
  masks, boxes = random_masks(12, size=7), random_boxes(12)
  boxes += np.array([-12, -7, 3, 9], np.float32)  # Some leave the canvas.
  boxes[-1] = boxes[-1][[2, 3, 0, 1]]  # Inverted: nothing to paste.
  boxes[-2, 2:] = boxes[-2, :2] + 0.25  # Less than a pixel.
  canvas = (50, 44)
  out = op.paste_masks(masks, boxes, canvas)
  assert out.dtype == bool
  for n in range(len(masks)):
    expected = paste_by_definition(masks[n], boxes[n], canvas)
    np.testing.assert_array_equal(out[n], expected)
  assert not out[-1].any()


def test_paste_moves_with_its_boxes():
  masks = random_masks()
  boxes = random_boxes(4, side=30.0) + np.float32(8.0)
  out = np.asarray(op.paste_masks(masks, boxes, (64, 64)))
  moved = op.paste_masks(masks, boxes + np.float32(16.0), (64, 64))
  np.testing.assert_array_equal(moved, np.roll(out, (16, 16), axis=(1, 2)))


def test_padding_pastes_nothing_and_changes_nothing():
  masks, boxes = random_masks(), random_boxes(4)
  padded = op.paste_masks(
    np.pad(masks, ((0, 2), (0, 0), (0, 0))),
    np.pad(boxes, ((0, 2), (0, 0))),
    (32, 48),
  )
  expected = op.paste_masks(masks, boxes, (32, 48))
  np.testing.assert_array_equal(padded[:4], expected)
  assert not np.any(padded[4:])


def test_errors_say_what_is_wanted():
  masks, boxes = random_masks(), random_boxes(4)
  indices = np.arange(4)
  for name, function, *arguments in (
    ('masks', op.paste_masks, masks[0], boxes, (8, 8)),
    ('boxes', op.paste_masks, masks, boxes[:3], (8, 8)),
    ('masks', op.crop_masks, masks[0], boxes, boxes, indices),
    ('instance_boxes', op.crop_masks, masks, boxes[:3], boxes, indices),
    ('rois', op.crop_masks, masks, boxes, boxes[:3], indices),
  ):
    with pytest.raises(ValueError, match=f'^{name} '):
      function(*arguments)
