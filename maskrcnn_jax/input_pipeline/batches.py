"""Batches of padded NumPy arrays from record files.

`order` says which records a batch holds, `reader` reads them. The global batch
does not depend on the number of hosts; a host gets its rows of it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from maskrcnn_jax.datasets import images, record_file, records
from maskrcnn_jax.errors import invalid
from maskrcnn_jax.input_pipeline import augment as augmentation
from maskrcnn_jax.input_pipeline import cache as caches
from maskrcnn_jax.input_pipeline import order, reader, resizing, transforms
from maskrcnn_jax.input_pipeline.iterators import Batches

CANVAS_MULTIPLE = 32  # The network halves its input five times.


def train_batches(
  file_pattern: str,
  canvases: Sequence[tuple[int, int]] = ((832, 1344),),
  batch_size: int = 4,
  max_instances: int = 100,
  mask_size: int = 112,
  flip: bool = True,
  seed: int = 0,
  salt: int = 0,
  start_examples: int = 0,
  host_index: int = 0,
  host_count: int = 1,
  image_dtype: str = 'uint8',
  resize: Mapping | None = None,
  split: str | None = None,
  block_size: int = 1,
  num_threads: int | None = None,
  cache: str | None = None,
  repeat_first: bool = False,
  max_unreadable_share: float = 0.05,
  max_pixels: int | None = None,
  augment: Mapping | None = None,
  repeat_factor_threshold: float = 0.0,
  accurate_jpeg: bool = False,
) -> Batches:
  """Endless batches for training.

  A row whose image cannot be used has `valid` False; an object that cannot be
  used is skipped. Both are counted, and the first of each kind logged.

  Args:
    file_pattern: record files, or a prepared TFDS directory.
    canvases: (height, width) of the input; every batch has one of them, and
      every image takes the one that shrinks it least.
    batch_size: images in a batch over all hosts.
    max_instances: largest number of objects of an image; if it has more, the
      largest ones are kept.
    mask_size: side of the mask crops.
    flip: mirror half of the images.
    seed: of order and augmentation.
    salt: raised to see other data from the same position.
    start_examples: `position['examples']` of an earlier run.
    host_index: this host.
    host_count: hosts that share a batch.
    image_dtype: 'uint8' (rounded) or 'float32', both 0..255.
    resize: fields of `resizing.ResizeOptions`.
    split: of a TFDS directory.
    block_size: neighboring records that stay together in the order.
    num_threads: readers; by default one per CPU, at most 16.
    cache: kept in memory, up to half of it: 'rows', resized images and mask
      crops, twice if they are mirrored; 'records'; or 'nothing'. None: the
      first of them that fits, on a machine of 45 GiB and more.
    repeat_first: the first batch of the run again and again, to train without
      the cost of reading; the position moves all the same.
    max_unreadable_share: the run stops when more of its rows have no image, or
      lost all their objects; of at least `faults.MIN_ROWS` rows. It stops too
      at `faults.MAX_LOST_IN_A_ROW` such rows without a break.
    max_pixels: of the largest image, see `images.set_max_pixels`; None: as it
      is.
    augment: fields of `augment.AugmentOptions`; rows are then not cached.
    repeat_factor_threshold: classes in a smaller share of the images are shown
      more often, see `order.repeat_factors`; crowds do not count. 0 shows every
      image once in an epoch.
    accurate_jpeg: see `decode.decode_image`.

  Returns:
    An iterator of dicts (the batch table of the README) with `position` and
    `counts`.

  Raises:
    UserError: an argument is wrong, see also `records.index_records`; or, from
      the iterator, too many rows are lost.
  """
  options = transforms.TransformOptions(
    max_instances=max_instances,
    mask_size=mask_size,
    flip=flip,
    image_dtype=image_dtype,
    resize=resizing.resize_options(resize),
    augment=augmentation.augment_options(augment),
    accurate_jpeg=accurate_jpeg,
  )
  if cache == 'rows' and options.augment.is_on:
    wanted = "'records' or 'nothing': with input.augment every row is new"
    raise invalid('input.cache', cache, wanted)
  if start_examples < 0:
    raise ValueError(f'start_examples must be 0 or more, got {start_examples}.')
  if cache not in (None, *caches.MODES):
    raise invalid('input.cache', cache, f'None or one of {caches.MODES}')
  if not 0.0 <= max_unreadable_share <= 1.0:
    raise invalid('input.max_unreadable_share', max_unreadable_share, 'in 0..1')
  first = 0 if repeat_first else start_examples

  def make_plans(canvas_indices, index):
    factors = repeat_factors(index, repeat_factor_threshold)
    examples = order.TrainOrder(
      canvas_indices, batch_size, seed, salt, block_size, factors
    )
    return tf.data.Dataset.counter(), lambda number: examples.batch(
      first + int(number) * batch_size
    )

  def seeds(part):
    pairs = zip(part.uses, part.rows)
    return [order.example_seed(seed, salt, int(u), int(r)) for u, r in pairs]

  dataset = _read(
    *('input', file_pattern, split, canvases, batch_size),
    *((host_index, host_count), options, num_threads, max_pixels, cache),
    *(make_plans, seeds),
  )
  position = {'examples': start_examples, 'salt': salt}
  return Batches(
    dataset, batch_size, position, repeat_first, max_unreadable_share
  )


def repeat_factors(
  index: records.RecordIndex, threshold: float
) -> np.ndarray | None:
  """`order.repeat_factors` of records; None with a threshold of 0."""
  if not 0.0 <= threshold <= 1.0:
    raise invalid('input.repeat_factor_threshold', threshold, 'in 0..1')
  if not threshold:
    return None
  classes = record_file.trained_classes(index.files)
  return order.repeat_factors(classes, threshold)


def eval_batches(
  file_pattern: str,
  canvases: Sequence[tuple[int, int]] = ((832, 1344),),
  batch_size: int = 4,
  image_dtype: str = 'uint8',
  with_instances: bool = False,
  max_instances: int = 100,
  mask_size: int = 112,
  max_images: int | None = None,
  host_index: int = 0,
  host_count: int = 1,
  resize: Mapping | None = None,
  split: str | None = None,
  num_threads: int | None = None,
  max_pixels: int | None = None,
  accurate_jpeg: bool = False,
) -> Batches:
  """Every image once, never mirrored; the last batches are filled up.

  Args:
    file_pattern: see `train_batches`, also for the arguments not named here.
    with_instances: add `instances`, without crowds.
    max_images: number of images to take, the first ones; None: all.

  Returns:
    A finite iterator with `counts`, as `train_batches`, but lost rows never
    stop it. Rows that hold no image have `valid` False. Every host gets the
    same number of batches, of the same canvases.
  """
  options = transforms.TransformOptions(
    max_instances=max_instances,
    mask_size=mask_size,
    flip=False,
    image_dtype=image_dtype,
    with_instances=with_instances,
    resize=resizing.resize_options(resize),
    accurate_jpeg=accurate_jpeg,
  )

  def make_plans(canvas_indices, unused_index):
    plans = order.eval_plans(canvas_indices[:max_images], batch_size)
    numbers = tf.data.Dataset.range(len(plans))
    return numbers, lambda number: plans[int(number)]

  dataset = _read(
    *('evaluation', file_pattern, split, canvases, batch_size),
    *((host_index, host_count), options, num_threads, max_pixels, 'nothing'),
    *(make_plans, lambda part: np.zeros([len(part.rows), 2], np.int64)),
  )
  return Batches(dataset)


def batch_spec(
  canvas: tuple[int, int],
  batch_size: int,
  max_instances: int = 100,
  mask_size: int = 112,
  image_dtype: str = 'uint8',
) -> dict:
  """The `element_spec` of training batches of one canvas, without any data.

  Returns `tf.TensorSpec`s in the structure of a batch; see `train_batches` for
  the arguments.
  """
  options = transforms.TransformOptions(
    max_instances=max_instances, mask_size=mask_size, image_dtype=image_dtype
  )
  reader.set_up_tensorflow(None)
  image_ids = tf.data.Dataset.from_tensors(tf.constant(0, tf.int64))
  rows = image_ids.map(
    lambda x: transforms.empty_row(canvas, options) | {'image_ids': x}
  )
  return rows.batch(batch_size, drop_remainder=True).element_spec


def _read(
  section,
  file_pattern,
  split,
  canvases,
  batch_size,
  hosts,
  options,
  num_threads,
  max_pixels,
  cache,
  make_plans,
  seeds,
) -> tf.data.Dataset:
  """This host's rows of the batches that `make_plans` plans.

  Args:
    section: of the config, for errors.
    hosts: index and number.
    options: `transforms.TransformOptions`.
    make_plans: from the canvas of every record and their index, a dataset of
      batch numbers and the `order.BatchPlan` of a number.
    seeds: `[rows, 2]` int64 of a plan.
  """
  host_index, host_count = hosts
  if not 0 <= host_index < host_count:
    raise ValueError(f'host_index {host_index} of {host_count} hosts.')
  if batch_size < 1 or batch_size % host_count:
    wanted = f'a positive multiple of the number of hosts, {host_count}'
    raise invalid(f'{section}.batch_size', batch_size, wanted)
  if not canvases or not all(
    len(sides) == 2 and all(x > 0 and x % CANVAS_MULTIPLE == 0 for x in sides)
    for sides in canvases
  ):
    wanted = f'(height, width) pairs of multiples of {CANVAS_MULTIPLE}'
    raise invalid('input.canvases', canvases, wanted)
  if num_threads is not None and num_threads < 1:
    raise invalid('input.num_threads', num_threads, 'None, or 1 or more')
  if options.image_dtype not in resizing.IMAGE_DTYPES:
    wanted = f'one of {resizing.IMAGE_DTYPES}'
    raise invalid('input.image_dtype', options.image_dtype, wanted)
  for name in ('max_instances', 'mask_size'):
    if getattr(options, name) < 1:
      raise invalid(f'input.{name}', getattr(options, name), 'at least 1')
  images.set_max_pixels(max_pixels, 'input.max_pixels')
  fits = [resizing.fit_size(x, options.resize) for x in canvases]
  reader.set_up_tensorflow(num_threads)
  index = records.index_records(file_pattern, split)
  canvas_indices = order.assign_canvases(index.heights, index.widths, fits)
  numbers, plan = make_plans(canvas_indices, index)
  if cache is None:
    image_fits = np.asarray(fits)[canvas_indices]
    cache = caches.choose_mode(index, image_fits, options)
  return reader.read_batches(
    numbers,
    lambda number: order.host_rows(plan(number), host_index, host_count),
    *(seeds, index, canvases, fits, batch_size // host_count),
    *(options, num_threads, cache),
  )
