"""Copy-paste: objects of another image pasted onto an augmented one.

Simple Copy-Paste (Ghiasi et al. 2021): both images are augmented, a random
subset of the objects of the one hides what lies under it in the other. Edges
are not blended. Whether a hidden object is removed is decided for each by
itself, as in mmdetection, by numbers of Google's code.
"""

import numpy as np
import tensorflow as tf

from maskrcnn_jax.input_pipeline import augment, order

_STREAM_OF_PARTNERS, _STREAM_OF_OBJECTS = 3, 4
# Colour of what a pasted object makes visible of the canvas beyond the image,
# Detectron2's for padding, near the mean of photographs.
GREY = 128


def partners(seeds, num_records: int, probability: float):
  """The records whose objects are pasted onto examples, and their keys.

  Args:
    seeds: `[n, 2]` int64, keys of the examples.
    num_records: size of the data set, from all of which one is drawn.
    probability: share of the examples onto which objects are pasted.

  Returns:
    `[n]` int64 rows, `order.FILLER` for an example without a partner, and `[n,
    2]` int64 keys.
  """
  rows, keys = [], []
  for seed in seeds:
    u = augment.uniform(_STREAM_OF_PARTNERS, seed, 4)
    is_pasted = u[0] < probability
    rows.append(int(u[1] * num_records) if is_pasted else order.FILLER)
    keys.append(np.floor(u[2:] * 2.0**53))
  return np.array(rows, np.int64), np.array(keys).astype(np.int64)


def choose_objects(seed, count: int) -> np.ndarray:
  """Numbers of a random subset of objects, ascending int32.

  Their number is uniform in 0..count, as in Google's code and mmdetection.

  Args:
    seed: `[2]` int64, key of the partner.
    count: of its objects.
  """
  u = augment.uniform(_STREAM_OF_OBJECTS, seed, 1 + count)
  number = int(u[0] * (count + 1))
  return np.sort(np.argsort(u[1:], kind='stable')[:number]).astype(np.int32)


def paste(row, source, max_instances: int):
  """Pastes the objects of a source onto a row, whose objects know of them.

  Args:
    row: `images` `[height, width, 3]`, the whole canvas, `image_sizes` and
      `instances`, without what the source hides.
    source: the same, and `cover` `[height, width]` bool, where its objects are.
    max_instances: the last of more, which are pasted ones, are left out.

  Returns:
    The row, whose size is large enough for the pasted objects.
  """
  pasted = source['instances']
  images = tf.where(source['cover'][..., None], source['images'], row['images'])
  ends = tf.reduce_max(tf.math.ceil(pasted['boxes'][:, 2:]), axis=0)
  sizes = tf.maximum(row['image_sizes'], ends)
  instances = {
    name: tf.concat([value, pasted[name]], axis=0)[:max_instances]
    for name, value in row['instances'].items()
  }
  return row | {
    'images': images,
    'image_sizes': sizes,
    'instances': instances,
  }
