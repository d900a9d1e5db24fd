"""NMS by pasted masks, against a slow oracle of pictures."""

import jax
import numpy as np
import pytest
from found import make_found

from maskrcnn_jax.evaluation import mask_nms, mask_pasting

SIZE = (60, 80)


def draw_found(seed, count=40):
  """Detections whose boxes overlap, of three classes, some scores equal."""
  rng = np.random.default_rng(seed)
  centers = rng.uniform(20, 40, (count, 2))
  sides = rng.uniform(0, 40, (count, 2))
  boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1)
  masks = 0.4 + rng.random((count, 7, 7), np.float32)
  masks[::3] = np.tri(7)  # Half of the box.
  masks[::5] = 0.0
  scores = rng.integers(1, 12, count) / 12
  return make_found(boxes, scores, rng.integers(1, 4, count), masks)


def slow_keep(found, iou_threshold):
  """Rows that are kept, from pictures of the size of the image."""
  pictures = mask_pasting.paste_masks(found.masks, found.boxes, SIZE)
  kept = []
  for row in sorted(range(len(pictures)), key=lambda i: -found.scores[i]):
    for other in kept:
      if found.classes[row] != found.classes[other]:
        continue
      both = np.sum(pictures[row] & pictures[other])
      either = np.sum(pictures[row] | pictures[other])
      if either and both / either > iou_threshold:
        break
    else:
      kept.append(row)
  return kept


@pytest.mark.parametrize('iou_threshold', [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize('seed', range(3))
def test_rows_are_those_of_the_definition(seed, iou_threshold):
  found = draw_found(seed)
  expected = slow_keep(found, iou_threshold)
  rows = mask_nms.keep(found, SIZE, iou_threshold)
  assert rows.tolist() == expected
  assert len(expected) < 40 or iou_threshold == 1.0
  few = mask_nms.keep(found, SIZE, iou_threshold, max_detections=5)
  assert few.tolist() == expected[:5]


def test_crossing_objects_of_one_box_by_hand():
  # Two diagonals, one of them twice, and one of another class.
  line = np.eye(28, dtype=np.float32)
  masks = np.stack([line, line[::-1], line, line])
  found = make_found(
    [[0, 0, 56, 56]] * 4, [0.9, 0.8, 0.7, 0.6], [1, 1, 1, 2], masks
  )
  assert mask_nms.keep(found, SIZE, 0.5).tolist() == [0, 1, 3]
  nothing = make_found(np.zeros((0, 4)), [], [], np.zeros((0, 28, 28)))
  assert mask_nms.keep(nothing, SIZE, 0.5).tolist() == []


def test_a_batch_keeps_its_rows():
  parts = [draw_found(seed) for seed in (0, 1)]
  batch = {
    'valid': np.array([True, True, False]),
    'scales': np.full((3, 2), 2.0),
    'original_sizes': np.tile(SIZE, (3, 1)),
  }
  detections = jax.tree.map(lambda *x: np.stack(x), *parts, parts[0])
  # Input pixels.
  detections = detections.replace(boxes=2 * detections.boxes)
  detections.valid[1, 30:] = False
  kept = mask_nms.suppress(detections, batch, 0.5, 12)
  expected = np.zeros((3, 40), bool)
  expected[0, slow_keep(parts[0], 0.5)[:12]] = True
  cut = jax.tree.map(lambda x: x[:30], parts[1])
  expected[1, slow_keep(cut, 0.5)[:12]] = True
  expected[2] = True  # Not scored.
  np.testing.assert_array_equal(kept.valid, expected)
  np.testing.assert_array_equal(kept.masks, detections.masks)
  assert detections.valid[0].all()
