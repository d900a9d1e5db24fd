"""Rows of batches from records, with augmentation.

The counterpart of `transforms.transform`, which only mirrors; the rows are the
same in structure. Records, not rows, are cached.
"""

import tensorflow as tf

from maskrcnn_jax.input_pipeline import (
  copy_paste,
  cutting,
  decode,
  transforms,
  warp,
)
from maskrcnn_jax.input_pipeline.faults import ObjectFault


def transform(record, location, options, careful: bool = False, source=None):
  """One row of a batch from one record, without its padding.

  Args:
    record: see `datasets.records.parse_record`.
    location: `seed` `[2]` int64, and `canvas` and `fit`, `[2]` int32.
    options: `transforms.TransformOptions`.
    careful: see `decode.decode_record`.
    source: see `make_source`; its objects are pasted.

  Returns:
    As `transforms.transform`.
  """
  example = decode.decode_record(
    *(record, options.max_instances, True, careful),
    accurate_jpeg=options.accurate_jpeg,
  )
  hidden = None if source is None else source['cover']
  row, found = augment_example(example, location, options, hidden)
  if source is not None:
    row = copy_paste.paste(row, source, options.max_instances)
  empty = tf.where(found['is_empty'], int(ObjectFault.EMPTY_MASK), 0)
  row['faults'] = tf.tensor_scatter_nd_max(
    example['faults'], found['numbers'][:, None], empty
  )
  return row


def make_source(record, location, options, careful: bool = False):
  """A random subset of the objects of an augmented record, to be pasted.

  Args:
    record: see `transform`, as for the others.
    location: of the record, with its own seed.
    options: of both images.
    careful: see `decode.decode_record`.

  Returns:
    `images`, as large as the canvas, `cover`, `[height, width]` bool, pixels of
    the objects, and `instances`.
  """
  example = decode.decode_record(
    *(record, options.max_instances, True, careful),
    accurate_jpeg=options.accurate_jpeg,
  )
  chosen = tf.numpy_function(
    copy_paste.choose_objects,
    [location['seed'], tf.size(example['classes'])],
    tf.int32,
  )
  for name in ('boxes', 'classes', 'masks', 'numbers'):
    example[name] = tf.gather(example[name], tf.ensure_shape(chosen, [None]))
  row, found = augment_example(example, location, options, with_cover=True)
  kept = ('images', 'instances')
  return {name: row[name] for name in kept} | {'cover': found['cover']}


def empty_source(location, options):
  """A source without objects; the keys of `make_source`."""
  row = transforms.empty_row(location['canvas'], options)
  instances = row['instances']
  return {
    'images': row['images'],
    'instances': {
      name: instances[name][:0] for name in ('boxes', 'classes', 'masks')
    },
    'cover': tf.zeros(location['canvas'], tf.bool),
  }


def augment_example(example, location, options, hidden=None, with_cover=False):
  """Augments an example.

  Args:
    example: see `decode.decode_record`.
    location: see `transform`.
    options: `transforms.TransformOptions`.
    hidden, with_cover: see `cutting.cut_objects`.

  Returns:
    A row without `faults`, and the result of `cutting.cut_objects` with the
    `numbers` of its objects in the record.
  """
  original = tf.shape(example['image'])[:2]
  flip = transforms.draw_flip(location['seed'], options)
  arranged = warp.arrange(
    *(location['seed'], flip, original, example['boxes'], location['fit']),
    options,
  )
  shown = {
    name: tf.gather(example[name], arranged['rows'])
    for name in ('masks', 'classes', 'numbers')
  }
  found = cutting.cut_objects(
    *(shown['masks'], original, arranged, location['canvas']),
    *(options.mask_size, options.augment, hidden, with_cover),
  )
  kept = tf.where(found['kept'])[:, 0]
  instances = {'classes': shown['classes'], **found}
  image = warp.warp_image(example['image'], arranged, options.augment)
  image = transforms.finish_image(image, options.image_dtype)
  if options.augment.copy_paste:
    image = transforms.pad_image(image, location['canvas'], copy_paste.GREY)
  size = tf.cast(arranged['size'], tf.float32)
  row = {
    'images': image,
    'image_sizes': size,
    'original_sizes': original,
    'scales': 1.0 / arranged['step'],
    'instances': {
      name: tf.gather(instances[name], kept)
      for name in ('boxes', 'classes', 'masks')
    },
  }
  return row, found | {'numbers': shown['numbers']}
