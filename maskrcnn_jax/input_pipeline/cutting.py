"""Masks and boxes of what an augmented image shows of its objects.

Full masks are decoded one at a time, mapped to the canvas, less what is hidden,
and cut to their boxes, inside tf.data.
"""

import tensorflow as tf

from maskrcnn_jax.input_pipeline import augment, decode, mask_crops


def cut_objects(
  encoded,
  image_size,
  arranged,
  canvas,
  mask_size: int,
  options: augment.AugmentOptions,
  hidden=None,
  with_cover: bool = False,
):
  """Masks and boxes of what the canvas shows of objects.

  An object that is shown whole keeps its annotated box, the box of another is
  tight on the pixels that are left.

  Args:
    encoded: `[m]` PNG files of the masks, of `arranged['rows']`.
    image_size: `[2]` int32 (height, width) of the masks.
    arranged: see `warp.arrange`.
    canvas: `[2]` int32.
    mask_size: side of the crops.
    options: rules for objects that are hidden in part.
    hidden: `[height, width]` bool, pixels of the canvas under other objects;
      None: there are none.
    with_cover: mark the pixels of the objects.

  Returns:
    `boxes` `[m, 4]` float32; `masks` `[m, mask_size, mask_size]` uint8; `kept`
    `[m]` bool, False for an object without a pixel, or with too few of them;
    `is_empty` `[m]` bool, its mask has no pixel anywhere; and `cover` `[height,
    width]` bool, the pixels of all kept objects, if it is asked for.
  """

  def body(number, cover, *arrays):
    mask = decode.decode_mask(encoded[number], image_size)
    y1, x1, y2, x2 = tf.unstack(arranged['regions'][number])
    patch = _shown_part(mask, arranged, y1, x1, y2, x2, options)
    whole = arranged['whole'][number]
    box, kept = arranged['boxes'][number], tf.reduce_any(patch)
    if hidden is None:
      box = tf.cond(whole, lambda: box, lambda: _tight_box(patch, y1, x1))
    else:
      before = tf.cond(whole, lambda: box, lambda: _tight_box(patch, y1, x1))
      visible = patch & ~hidden[y1:y2, x1:x2]
      box, kept = _after_occlusion(patch, visible, before, y1, x1, options)
      patch = visible
    crop = mask_crops.crop_patch(patch, [y1, x1], box, canvas, mask_size)
    crop = tf.cast(crop * 255.0 + 0.5, tf.uint8)
    kept &= tf.reduce_any(crop > 0)
    is_empty = tf.cond(
      kept, lambda: False, lambda: ~tf.reduce_any(tf.cast(mask, tf.bool))
    )
    values = (box, crop, kept, is_empty)
    arrays = [x.write(number, v) for x, v in zip(arrays, values)]
    if with_cover:
      patch &= kept
      paddings = [[y1, canvas[0] - y2], [x1, canvas[1] - x2]]
      cover |= tf.pad(patch, paddings)
    return number + 1, cover, *arrays

  count = tf.size(arranged['rows'])
  found = {
    'boxes': (tf.float32, [4]),
    'masks': (tf.uint8, [mask_size, mask_size]),
    'kept': (tf.bool, []),
    'is_empty': (tf.bool, []),
  }
  start = [
    tf.TensorArray(dtype, count, element_shape=shape)
    for dtype, shape in found.values()
  ]
  _, cover, *arrays = tf.while_loop(
    lambda number, *_: number < count,
    body,
    [0, tf.zeros(canvas, tf.bool), *start],
    [tf.TensorShape([]), tf.TensorShape([None, None])]
    + [tf.TensorShape(None)] * len(start),
    parallel_iterations=1,  # One decoded mask at a time.
  )
  found = {name: x.stack() for name, x in zip(found, arrays)}
  return found | {'cover': cover}


def _shown_part(mask, arranged, y1, x1, y2, x2, options):
  """What a part of the canvas shows of a mask, `[y2 - y1, x2 - x1]` bool."""
  if options.rotation:
    # Corners that are left empty show a pixel after the last one.
    values = tf.concat([tf.reshape(mask, [-1]), [0]], axis=0)
    return tf.gather(values, arranged['pixels'][y1:y2, x1:x2]) > 0
  spans = []
  for pixels in (arranged['y_pixels'][y1:y2], arranged['x_pixels'][x1:x2]):
    first = tf.minimum(pixels[0], pixels[-1])
    end = tf.maximum(pixels[0], pixels[-1]) + 1
    spans.append((first, end, pixels - first))
  (y, y_end, ys), (x, x_end, xs) = spans
  if options.quarter_turns:
    part = tf.cond(
      arranged['upright'][0] % 2 > 0,
      lambda: tf.transpose(mask[x:x_end, y:y_end]),
      lambda: mask[y:y_end, x:x_end],
    )
  else:
    part = mask[y:y_end, x:x_end]
  # Gathering is fast along the first axis only.
  columns = tf.gather(tf.transpose(part), xs)
  return tf.gather(tf.transpose(columns), ys) > 0


def _tight_box(patch, y1, x1):
  """Box of the pixels of a patch whose corner lies at (y1, x1)."""
  sides = []
  for axis, start in ((1, y1), (0, x1)):
    line = tf.cast(tf.reduce_any(patch, axis=axis), tf.int32)
    first = tf.argmax(line, output_type=tf.int32)
    end = tf.size(line) - tf.argmax(line[::-1], output_type=tf.int32)
    sides.append(tf.cast([start + first, start + end], tf.float32))
  return tf.reshape(tf.stack(sides, axis=1), [4])


def _after_occlusion(patch, visible, box, y1, x1, options):
  """Box of an object and whether it is kept, when others cover a part of it.

  Args:
    patch: `[h, w]` bool, the pixels of the object.
    visible: `[h, w]` bool, those that are left.
    box: of the object before.
    y1: of the patch on the canvas.
    x1: of the patch.
    options: `augment.AugmentOptions`.
  """
  left = tf.math.count_nonzero(visible)
  is_hidden = left < tf.math.count_nonzero(patch)
  found = tf.cond(is_hidden, lambda: _tight_box(visible, y1, x1), lambda: box)
  has_moved = tf.reduce_max(tf.abs(found - box)) > options.occluded_move
  has_enough = left > options.occluded_area
  return found, (left > 0) & (has_enough | ~has_moved)
