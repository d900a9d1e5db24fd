"""Copy-paste: draws, rules, and the recordings of torchvision."""

import example_records
import golden_files
import numpy as np
import slow_augment
import tensorflow as tf
from PIL import Image

from maskrcnn_jax.input_pipeline import (
  augment,
  copy_paste,
  cutting,
  order,
  placement,
  transforms,
  warp,
)


def keys(count):
  return np.array([order.example_seed(0, 0, 1, row) for row in range(count)])


def test_partners_are_drawn_from_all_records_by_key():
  rows, seeds = copy_paste.partners(keys(4000), 10, 0.7)
  is_pasted = rows != order.FILLER
  assert np.mean(is_pasted) == np.clip(np.mean(is_pasted), 0.67, 0.73)
  counts = np.bincount(rows[is_pasted], minlength=10) / is_pasted.sum()
  np.testing.assert_allclose(counts, [0.1] * 10, atol=0.025)
  assert len(np.unique(seeds, axis=0)) == 4000
  again, others = copy_paste.partners(keys(4000)[1000:1003], 10, 0.7)
  np.testing.assert_array_equal(again, rows[1000:1003])
  np.testing.assert_array_equal(others, seeds[1000:1003])
  assert np.all(copy_paste.partners(keys(9), 10, 1.0)[0] != order.FILLER)
  assert np.all(copy_paste.partners(keys(9), 10, 0.0)[0] == order.FILLER)


def test_any_number_of_objects_is_as_likely():
  found = [copy_paste.choose_objects(key, 4) for key in keys(5000)]
  numbers = np.bincount([len(x) for x in found]) / 5000
  np.testing.assert_allclose(numbers, [0.2] * 5, atol=0.025)
  chosen = np.bincount(np.concatenate(found)) / 5000
  np.testing.assert_allclose(chosen, [0.5] * 4, atol=0.03)
  for each in found[:50]:
    np.testing.assert_array_equal(each, np.unique(each))
  assert copy_paste.choose_objects(keys(1)[0], 0).tolist() == []


class Side:
  """One image of a recorded pair: pixels, masks, boxes and labels."""

  def __init__(self, recorded, number):
    self.image = recorded[f'{number}/image']
    count, *size = recorded[f'{number}/mask_shape'].tolist()
    self.size = tuple(size)
    self.masks = unpack(recorded, f'{number}/mask', count, self.size)
    self.boxes = golden_files.swap_axes(recorded[f'{number}/boxes'])
    self.labels = recorded[f'{number}/labels'].astype(np.int32)

  def resized(self, size):
    """As torchvision brings a source to the size of its target.

    Pixels by Pillow's bilinear filter, masks by the nearest pixels' corners.
    """
    if self.size == size:
      return self
    side = object.__new__(Side)
    side.image = np.asarray(
      Image.fromarray(self.image).resize(size[::-1], Image.BILINEAR)
    )
    ys, xs = (np.arange(n) * o // n for n, o in zip(size, self.size))
    side.masks = self.masks[:, ys][:, :, xs]
    side.boxes = self.boxes * np.tile(np.array(size) / self.size, 2)
    side.size, side.labels = size, self.labels
    return side


def unpack(recorded, name, count, size):
  bits = np.unpackbits(recorded[f'{name}_bits'], axis=1)
  return bits[:, : np.prod(size)].reshape(count, *size)


def dilated(mask, radius=2):
  """A mask and all pixels of squares around its own."""
  height, width = mask.shape
  padded = np.pad(mask, radius)
  steps = range(2 * radius + 1)
  parts = [padded[y : y + height, x : x + width] for y in steps for x in steps]
  return np.any(parts, axis=0)


def cut(side, chosen, hidden=None, with_cover=False):
  """Objects of a side as they are on a canvas of its size."""
  fractions = side.boxes[chosen] / np.tile(side.size, 2)
  placed = placement.place(augment.Draw(), side.size, side.size)
  arranged = warp.as_arrays(placed, fractions, transforms.TransformOptions())
  # The recorded rule for boxes: tight on the mask, always.
  arranged['whole'][:] = with_cover
  encoded = [example_records.png(side.masks[x]) for x in chosen]
  found = cutting.cut_objects(
    *(tf.constant(encoded, tf.string), side.size, arranged, side.size, 112),
    # An object is removed when nothing is left of it.
    *(augment.AugmentOptions(occluded_area=0), hidden, with_cover),
  )
  kept = found['kept'].numpy()
  return found | {'labels': side.labels[chosen]}, kept


@golden_files.each('copypaste_torchvision_*.npz', 'detectron2')
def test_pasting_as_torchvision(recorded):
  for number in (0, 1):
    target = Side(recorded, number)
    source = Side(recorded, 1 - number).resized(target.size)
    chosen = recorded[f'{number}/pasted_objects']
    pasted, are_kept = cut(source, chosen, with_cover=True)
    assert are_kept.all()
    cover = np.any(source.masks[chosen], axis=0)
    np.testing.assert_array_equal(pasted['cover'], cover)
    hidden = dilated(cover) if recorded['blending'] else cover
    left, kept = cut(target, np.arange(len(target.labels)), hidden)
    # Boxes there end at the last pixel and are dropped if a side is then 0.
    corners = left['boxes'].numpy().reshape(-1, 2, 2)
    kept &= np.all(corners[:, 1] - corners[:, 0] > 1, axis=-1)
    count, *_ = recorded[f'{number}/out_mask_shape'].tolist()
    masks = unpack(recorded, f'{number}/out_mask', count, target.size)
    remaining = kept.sum()
    expected = golden_files.swap_axes(recorded[f'{number}/out_boxes'])
    tight = expected[:remaining] + np.array([0, 0, 1, 1])
    np.testing.assert_array_equal(left['boxes'].numpy()[kept], tight)
    labels = np.concatenate([left['labels'][kept], pasted['labels']])
    np.testing.assert_array_equal(labels, recorded[f'{number}/out_labels'])
    for mask, box in zip(masks, tight):
      assert slow_augment.tight_box(mask) == box.tolist()
    pasted_boxes = pasted['boxes'].numpy()
    np.testing.assert_allclose(
      pasted_boxes, expected[remaining:], rtol=1e-5, atol=1e-4
    )
    check_image(target, source, hidden, recorded[f'{number}/out_image'])


def check_image(target, source, cover, expected):
  row = {
    'images': tf.constant(target.image),
    'image_sizes': tf.constant(target.size, tf.float32),
    'instances': instances(target),
  }
  made = copy_paste.paste(
    row,
    {
      'images': tf.constant(source.image),
      'cover': tf.constant(cover),
      'instances': instances(source),
    },
    max_instances=8,
  )
  difference = np.abs(made['images'].numpy().astype(int) - expected)
  # Pillow and torch round a resized source differently.
  assert difference.max() <= 1
  np.testing.assert_array_equal(difference[~cover], 0)
  classes = np.concatenate([target.labels, source.labels])[:8]
  np.testing.assert_array_equal(made['instances']['classes'], classes)


def instances(side):
  return {
    'boxes': tf.constant(side.boxes, tf.float32),
    'classes': tf.constant(side.labels),
    'masks': tf.zeros([len(side.labels), 4, 4], tf.uint8),
  }


def test_the_size_grows_with_the_pasted_objects():
  row = {
    'images': tf.fill([8, 8, 1], 1),
    'image_sizes': tf.constant([4.0, 5.0]),
    'instances': {'boxes': tf.constant([[0.0, 0, 2, 2]])},
  }
  for box, size in (
    ([1.0, 2.0, 5.5, 4.0], [6, 5]),
    ([1.0, 2.0, 3.0, 4.0], [4, 5]),
  ):
    source = {
      'images': tf.fill([8, 8, 1], 2),
      'cover': tf.eye(8) > 0,
      'instances': {'boxes': tf.constant([box])},
    }
    made = copy_paste.paste(row, source, 9)
    assert made['image_sizes'].numpy().tolist() == size
    np.testing.assert_array_equal(made['images'][..., 0], 1 + np.eye(8))
  source['instances']['boxes'] = tf.zeros([0, 4])
  made = copy_paste.paste(row, source, 9)
  assert made['image_sizes'].numpy().tolist() == [4, 5]
