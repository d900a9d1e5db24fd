"""Batches of padded NumPy arrays from record files.

The order of `order.py` is read by `reader.py`. The global batch does not depend
on the number of hosts; a host gets its rows of it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from maskrcnn_jax.datasets import records
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.input_pipeline import caching, order, reader, transforms
from maskrcnn_jax.input_pipeline.delivery import DeliveredBatches, TrainBatches

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
) -> TrainBatches:
  """Endless batches for training.

  A row whose image cannot be used has `valid` False; an object that cannot be
  used is left out. Both are counted, and the first of each kind logged.

  Args:
    file_pattern: record files, or a prepared TFDS directory.
    canvases: (height, width) of the input; every batch has one of them, every
      image takes the one that shrinks it least.
    batch_size: images in a batch over all hosts.
    max_instances: objects in an image; of more the largest are kept.
    mask_size: side of the mask crops.
    flip: mirror half of the images.
    seed: of order and augmentation.
    salt: raised to see other data from the same position.
    start_examples: `position['examples']` of an earlier run.
    host_index: this host.
    host_count: hosts that share a batch.
    image_dtype: 'uint8' or 'float32'.
    resize: fields of `transforms.ResizeOptions`.
    split: of a TFDS directory.
    block_size: neighbouring records that stay together in the order.
    num_threads: readers; by default one per CPU, at most 16.
    cache: what is kept in memory, up to half of it: 'rows', resized images and
      cut masks, twice if they are mirrored; 'records'; or 'nothing'. None: the
      first of them that fits, on a machine of 45 GiB and more.
    repeat_first: the first batch of the run again and again, to train without
      the cost of reading; the position moves all the same.
    max_unreadable_share: the run stops when more of its rows have no image, or
      lost all their objects; of at least `faults.MIN_ROWS` rows. It stops too
      at `faults.MAX_LOST_IN_A_ROW` such rows without a break.

  Returns:
    An iterator of dicts (the batch table of the README) with `position` and
    `counts`.

  Raises:
    ValueError: if an argument is wrong; see also `records.index_records`.
  """
  options = transforms.TransformOptions(
    max_instances=max_instances,
    mask_size=mask_size,
    flip=flip,
    image_dtype=image_dtype,
    resize=transforms.ResizeOptions(**(resize or {})),
  )
  fits = _check_arguments(
    canvases, batch_size, host_index, host_count, options, num_threads
  )
  reader.set_up_tensorflow(num_threads)
  if start_examples < 0:
    raise UserError(
      f'start_examples must not be negative, got {start_examples}.'
    )
  if cache is not None and cache not in caching.MODES:
    raise UserError(
      f'cache must be one of {caching.MODES} or None, got {cache!r}.'
    )
  if not 0.0 <= max_unreadable_share <= 1.0:
    raise UserError(
      f'max_unreadable_share must be in 0..1, got {max_unreadable_share}.'
    )
  index = records.index_records(file_pattern, split)
  choices = order.assign_canvases(index.heights, index.widths, fits)
  batches = order.TrainOrder(choices, batch_size, seed, salt, block_size)

  first = 0 if repeat_first else start_examples

  def plan(number):
    whole = batches.batch(first + int(number) * batch_size)
    return order.host_rows(whole, host_index, host_count)

  def seeds(part):
    pairs = zip(part.epochs, part.rows)
    return [order.example_seed(seed, salt, int(e), int(r)) for e, r in pairs]

  found = reader.places(
    tf.data.Dataset.counter(), plan, seeds, index, canvases, fits
  )
  if cache is None:
    cache = caching.choose(index, np.asarray(fits)[choices], options)
  size = batch_size // host_count
  dataset = reader.batched(
    found, index, canvases, size, options, num_threads, cache
  )
  return TrainBatches(
    dataset,
    batch_size,
    start_examples,
    salt,
    repeat_first,
    max_unreadable_share,
  )


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
) -> DeliveredBatches:
  """Every image once, never mirrored; the last batches are filled up.

  Args:
    file_pattern: record files, or a prepared TFDS directory.
    canvases: see `train_batches`.
    batch_size: images in a batch over all hosts.
    image_dtype: 'uint8' or 'float32'.
    with_instances: add `instances`, without crowds.
    max_instances: see `train_batches`.
    mask_size: see `train_batches`.
    max_images: take only so many images, the first ones; None: all.
    host_index: this host.
    host_count: hosts that share a batch.
    resize: see `train_batches`.
    split: see `train_batches`.
    num_threads: see `train_batches`.

  Returns:
    A finite iterator with `counts`, as `train_batches`, but nothing stops it.
    Rows that hold no image have `valid` False. Every host gets the same number
    of batches, of the same canvases.
  """
  options = transforms.TransformOptions(
    max_instances=max_instances,
    mask_size=mask_size,
    flip=False,
    image_dtype=image_dtype,
    with_instances=with_instances,
    resize=transforms.ResizeOptions(**(resize or {})),
  )
  fits = _check_arguments(
    canvases, batch_size, host_index, host_count, options, num_threads
  )
  reader.set_up_tensorflow(num_threads)
  index = records.index_records(file_pattern, split)
  heights, widths = index.heights[:max_images], index.widths[:max_images]
  choices = order.assign_canvases(heights, widths, fits)
  batches = order.eval_plans(choices, batch_size)

  def plan(number):
    return order.host_rows(batches[int(number)], host_index, host_count)

  def seeds(part):
    return np.zeros([len(part.rows), 2], np.int64)

  numbers = tf.data.Dataset.range(len(batches))
  found = reader.places(numbers, plan, seeds, index, canvases, fits)
  size = batch_size // host_count
  dataset = reader.batched(found, index, canvases, size, options, num_threads)
  return DeliveredBatches(dataset)


def batch_spec(
  canvas: tuple[int, int],
  batch_size: int,
  max_instances: int = 100,
  mask_size: int = 112,
  image_dtype: str = 'uint8',
) -> dict:
  """The `element_spec` of training batches of one canvas, without any data.

  Args:
    canvas: (height, width) of the images.
    batch_size: images in a batch over all hosts.
    max_instances: see `train_batches`.
    mask_size: see `train_batches`.
    image_dtype: see `train_batches`.

  Returns:
    `tf.TensorSpec`s in the structure of a batch.
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


def _check_arguments(
  canvases, batch_size, host_index, host_count, options, num_threads
) -> list[tuple[int, int]]:
  """Raises for arguments that cannot work; the fit size of every canvas."""
  if num_threads is not None and num_threads < 1:
    raise UserError(f'num_threads must be 1 or more, got {num_threads}.')
  if not len(canvases):
    raise UserError('canvases must name at least one (height, width).')
  for canvas in canvases:
    wrong = len(canvas) != 2 or any(
      side < CANVAS_MULTIPLE or side % CANVAS_MULTIPLE for side in canvas
    )
    if wrong:
      raise UserError(
        'canvases must be (height, width) in multiples of '
        f'{CANVAS_MULTIPLE}, got {tuple(canvas)}.'
      )
  if batch_size < 1 or batch_size % host_count:
    raise UserError(
      'batch_size must be a positive multiple of host_count, '
      f'got {batch_size} for {host_count} hosts.'
    )
  if not 0 <= host_index < host_count:
    raise UserError(
      f'host_index must be in 0..{host_count - 1}, got {host_index}.'
    )
  if options.image_dtype not in transforms.IMAGE_DTYPES:
    raise UserError(
      f'image_dtype must be one of {transforms.IMAGE_DTYPES}, '
      f'got {options.image_dtype!r}.'
    )
  return [transforms.fit_size(canvas, options.resize) for canvas in canvases]
