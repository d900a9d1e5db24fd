"""Detectron2's rule of pasting: recordings, loops over pixels, and by hand."""

import golden_files
import jax
import numpy as np
import pytest
from golden_files import swap_axes
from pycocotools import mask as coco_mask

from maskrcnn_jax import visualize
from maskrcnn_jax.evaluation import coco_results, mask_edges
from maskrcnn_jax.evaluation import mask_pasting as op
from maskrcnn_jax.export import detect
from maskrcnn_jax.structures import Detections

RULE = 'continuous'


def paste_by_edges(masks, boxes, image_size):
  return op.paste_masks(masks, boxes, image_size, RULE)


def paste_by_export(masks, boxes, image_size):
  return np.array(
    [detect.paste(*x, image_size, RULE) for x in zip(masks, boxes)]
  )


def paste_every_pixel(masks, boxes, image_size):
  """Oracle: the value at the centre of every pixel, by the definition."""
  size = masks.shape[-1]
  padded = np.pad(masks.astype(np.float32), ((0, 0), (1, 1), (1, 1)))
  pictures = np.zeros((len(masks), *image_size), bool)
  for picture, mask, box in zip(pictures, padded, boxes.astype(np.float64)):
    axes = []
    for axis in range(2):
      centers = np.arange(image_size[axis]) + 0.5 - box[axis]
      side = box[axis + 2] - box[axis]
      # Cell i of the padded mask has its centre at i - 0.5 cells.
      axes.append(centers * size / side + 0.5)
    for row, y in enumerate(axes[0]):
      for column, x in enumerate(axes[1]):
        if 0 < y < size + 1 and 0 < x < size + 1:
          picture[row, column] = _bilinear(mask, y, x) >= np.float32(0.5)
  return pictures


def _bilinear(mask, y, x):
  top, left = int(y), int(x)
  down, across = np.float32(y - top), np.float32(x - left)
  left_value, right_value = (
    mask[top : top + 2, left] * (1 - across)
    + mask[top : top + 2, left + 1] * across
  )
  return left_value * (1 - down) + right_value * down


all_of_them = pytest.mark.parametrize(
  'paste', [paste_by_edges, paste_by_export, paste_every_pixel]
)


def unpacked(recorded, name):
  """Masks `[n, height, width]` bool of packed bits."""
  size = recorded['image_hw'].tolist()
  bits = np.unpackbits(recorded[name], axis=1)[:, : np.prod(size)]
  return bits.reshape(-1, *size).astype(bool)


@all_of_them
@golden_files.each('ops_paste_masks*.npz', 'detectron2')
def test_recorded_masks(recorded, paste):
  size = tuple(recorded['image_hw'].tolist())
  pasted = paste(recorded['masks'], swap_axes(recorded['boxes']), size)
  expected, edges = (unpacked(recorded, x) for x in ('out_bits', 'edge_bits'))
  # Values within 1e-5 of one half, where rounding decides.
  assert np.mean(edges) < 0.05
  np.testing.assert_array_equal(pasted[~edges], expected[~edges])
  unsure = edges.any(axis=(1, 2))
  areas = pasted.sum(axis=(1, 2))
  np.testing.assert_array_equal(areas[~unsure], recorded['out_area'][~unsure])


@pytest.mark.parametrize('sampling', ['s0', 's2'])
@golden_files.each('e2e_*.npz', 'detectron2')
def test_recorded_run_lengths(recorded, sampling):
  """Probabilities and boxes of whole models give the recorded texts."""
  masks = recorded[f'{sampling}/mask_prob_28']
  boxes = swap_axes(recorded[f'{sampling}/out_boxes'])
  if len(boxes) < len(recorded[f'{sampling}/det_boxes']):
    pytest.skip('Detections without area were dropped.')
  size = tuple(recorded['original_hw'].tolist())
  counts = op.encode_masks(masks, boxes[: len(masks)], size, RULE)
  expected = recorded[f'{sampling}/out_mask_rle'][: len(masks)]
  assert counts == expected.tolist()


def test_results_and_pictures_follow_the_detections():
  masks = np.ones((1, 28, 28), np.float32)
  boxes = np.array([[2, 2, 6, 6]], np.float32)
  areas = {}
  for rule in ('whole_pixels', RULE):
    found = Detections(
      boxes=boxes,
      scores=np.ones(1, np.float32),
      classes=np.ones(1, np.int32),
      masks=masks,
      valid=np.ones(1, bool),
      mask_pasting=rule,
    )
    (result,) = coco_results.image_results(found, 1, (9, 9))
    areas[rule] = coco_mask.area(result['segmentation'])
    assert found.run_lengths((9, 9)) == [result['segmentation']]
    assert found.full_masks((9, 9)).sum() == areas[rule]
    batch = {
      'image_ids': np.array([1]),
      'original_sizes': np.array([[9, 9]]),
      'scales': np.ones((1, 2)),
      'valid': np.ones(1, bool),
    }
    encoder = coco_results.ResultEncoder()
    whole = jax.tree.map(lambda x: x[None], found)
    encoder.add(whole, batch)
    assert encoder.collect() == [result]
    assert whole.image(0).mask_pasting == rule
    picture = visualize.draw(np.zeros((9, 9, 3), np.uint8), found, enlarge=8)
    areas[rule, 'picture'] = np.sum(picture.any(axis=-1))
  assert areas[RULE] == 16
  assert areas['whole_pixels'] > 16
  assert areas[RULE, 'picture'] < areas['whole_pixels', 'picture']


@all_of_them
def test_by_hand(paste):
  # One cell over the pixels 2 to 5: its value holds in the middle, and half of
  # it at the edges of the box, which lie between pixels.
  boxes = np.array([[2, 2, 6, 6]] * 2, np.float32)
  masks = np.array([[[1.0]], [[0.8]]], np.float32)
  whole, less = paste(masks, boxes, (8, 8))
  # Centres 0.5, 1.5 pixels from the edge of a box of 4: 0.625 and 0.875 of the
  # value along an axis, 0.39, 0.55 and 0.77 of it over both.
  inner = [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]
  np.testing.assert_array_equal(whole[2:6, 2:6], inner)
  assert whole.sum() == 12
  np.testing.assert_array_equal(np.flatnonzero(less.any(axis=0)), [3, 4])
  assert less.sum() == 4


@all_of_them
def test_a_half_is_inside(paste):
  """Pixels whose centres lie on the edge of a box have half of its value."""
  boxes = np.array([[1.5, 1.5, 4.5, 4.5]], np.float32)
  pasted = paste(np.ones((1, 28, 28), np.float32), boxes, (8, 8))[0]
  expected = np.zeros((8, 8), bool)
  expected[1:5, 1:5] = True
  # The corners have a quarter.
  expected[[1, 1, 4, 4], [1, 4, 1, 4]] = False
  np.testing.assert_array_equal(pasted, expected)


@pytest.mark.parametrize('size', [1, 3, 28])
@pytest.mark.parametrize('image_size', [(45, 52), (1, 1), (90, 3), (3, 70)])
def test_every_pixel_is_that_of_the_oracle(size, image_size):
  rng = np.random.default_rng(size)
  masks = rng.random((12, size, size)).astype(np.float32)
  masks[0] = 1.0
  sides = max(image_size)
  corners = rng.uniform(-0.5, 1, (12, 2)) * sides
  boxes = np.concatenate([corners, corners + rng.random((12, 2)) * sides], 1)
  boxes[0] = [-9, -9, image_size[0] + 9, image_size[1] + 9]  # All of the image.
  boxes[1] = [0, 0, *image_size]
  boxes[2] = [*image_size, *np.add(image_size, 30)]  # From the last corner on.
  boxes[3] = [0.4, 0.4, 0.6, 0.9]  # Within a pixel.
  boxes = boxes.astype(np.float32)
  expected = paste_every_pixel(masks, boxes, image_size)
  np.testing.assert_array_equal(
    paste_by_edges(masks, boxes, image_size), expected
  )
  np.testing.assert_array_equal(
    paste_by_export(masks, boxes, image_size), expected
  )
  texts = op.encode_masks(masks, boxes, image_size, RULE)
  for text, mask in zip(texts, expected):
    counts = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert text == counts['counts'].decode()


def test_an_empty_box_holds_nothing():
  boxes = np.array([[3.2, 1, 3.2, 9], [5, 5, 2, 2]], np.float32)
  masks = np.ones((2, 28, 28), np.float32)
  for paste in (paste_by_edges, paste_by_export):
    assert not paste(masks, boxes, (12, 12)).any()


def test_an_unknown_rule_is_refused():
  with pytest.raises(ValueError, match='rule'):
    mask_edges.find_edges(np.ones((1, 2, 2)), np.ones((1, 4)), (4, 4), 'other')
