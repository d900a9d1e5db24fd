"""Processor time of an image in the input pipeline, in all and by stage.

Processor time is what other work on the machine hardly changes. The work is
done in another process, whose threads all share one core. Its records lie in
the memory of the system, if not in its own: storage is not measured.
"""

import concurrent.futures
import multiprocessing
import os
import pathlib
import tempfile
import time
from typing import Any

import numpy as np
import tensorflow as tf

from maskrcnn_jax.benchmarks import measure
from maskrcnn_jax.datasets import records
from maskrcnn_jax.input_pipeline import (
  augment,
  augmented,
  batches,
  decode,
  order,
  reader,
  resizing,
  transforms,
)

# Batches that may be ready, which the time of the next ones does not show.
_READ_AHEAD = 12


def run(config: Any, rounds: int, num_images: int = 90) -> list[measure.Row]:
  """Measures the input of a config on the last core this process may use.

  Args:
    config: a ConfigDict with the section `input`; its cache, its threads and
      `repeat_first` do not count.
    rounds: measured rounds.
    num_images: number of records, the first ones, which are read repeatedly.

  Returns:
    Rows of an image: `cache nothing`, `cache records` and `cache rows` are
    training batches; with augmentation rows are not cached, and `no
    augmentation` has the `ratio` of the time of the first row to its own. The
    stages are of the images of the most frequent canvas, without copy-paste,
    and `rest` is what a batch without cache takes beyond them. The first row
    also has `num_images`, the mean `num_objects` and `megapixels` of an image,
    and `cores`, empty where the system does not pin processes.

  Raises:
    UserError: there are no records, or an argument is wrong.
  """
  pin = {}
  if hasattr(os, 'sched_setaffinity'):
    core = max(os.sched_getaffinity(0))
    pin = {'initializer': os.sched_setaffinity, 'initargs': (0, {core})}
  # A new process: threads stay on the cores where they were started.
  with concurrent.futures.ProcessPoolExecutor(
    1, multiprocessing.get_context('spawn'), **pin
  ) as executor:
    inputs = config.input.to_dict()
    rows = executor.submit(_measure, inputs, num_images, rounds).result()
  rows[0]['cores'] = [core] if pin else []
  return rows


def _measure(inputs, num_images, rounds) -> list[measure.Row]:
  """`run` in the process that calls it."""
  reader.set_up_tensorflow(1)
  inputs = {**inputs, 'num_threads': 1, 'repeat_first': False}
  source = records.index_records(inputs['file_pattern'], inputs.get('split'))
  chosen = range(min(num_images, len(source)))
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'part.tfrecord')
    records.write_records(
      path, (records.read_record(source, x) for x in chosen)
    )
    inputs |= {'file_pattern': str(path), 'split': None}
    index = records.index_records(str(path))
    sides = _sides(inputs, len(index))
    stages = _stages(index, inputs)
    rows = measure.run(sides | stages, rounds, 0, 'input')
    objects = [len(records.read_objects(index, x)) for x in chosen]
  if 'no augmentation' in sides:
    measure.add_ratios([rows[0], rows[len(sides) - 1]])
  times = [row['seconds']['median'] for row in rows]
  rest = times[0] - sum(times[len(sides) :])
  rows[0] |= {
    'num_images': len(index),
    'num_objects': float(np.mean(objects)),
    'megapixels': float(np.mean(index.heights / 1e6 * index.widths)),
  }
  return [*rows, {'name': 'rest', **measure.timing([rest])}]


def _sides(inputs, num_images) -> dict[str, measure.Side]:
  """Training batches with each cache, or with and without augmentation."""

  def epoch(**changes):
    return _epoch(inputs | changes, num_images)

  sides = {
    f'cache {cache}': epoch(cache=cache) for cache in ('nothing', 'records')
  }
  if augment.augment_options(inputs.get('augment')).is_on:
    off = epoch(cache='nothing', augment=None)
    return sides | {'no augmentation': off}
  return sides | {'cache rows': epoch(cache='rows')}


def _epoch(inputs, num_images) -> measure.Side:
  """An epoch of training batches, once it was read."""
  if inputs['cache'] != 'nothing':
    # A cache is measured when it is full: with every image, never mirrored.
    inputs = {**inputs, 'flip': False}
  made = batches.train_batches(**inputs)
  num_batches = -(-num_images // inputs['batch_size'])
  for _ in range(num_batches):
    next(made)

  def seconds(_):
    _wait_for_threads()
    for _ in range(_READ_AHEAD):
      next(made)
    start = time.process_time()
    for _ in range(num_batches):
      next(made)
    total = time.process_time() - start
    _wait_for_threads()
    return total / (num_batches * inputs['batch_size'])

  return measure.Side(seconds, 1)


def _wait_for_threads() -> None:
  """Returns when no thread reads ahead any more."""
  done = -1.0
  while time.process_time() - done > 0.001:
    done = time.process_time()
    time.sleep(0.05)


def _stages(index, inputs) -> dict[str, measure.Side]:
  """What each stage adds to the time of those before it, with one thread."""
  names = ('max_instances', 'mask_size', 'flip', 'image_dtype')
  names += ('accurate_jpeg',)
  options = transforms.TransformOptions(
    **{name: inputs[name] for name in names if name in inputs},
    resize=resizing.resize_options(inputs.get('resize')),
    augment=augment.augment_options(inputs.get('augment')),
  )
  fits = [resizing.fit_size(x, options.resize) for x in inputs['canvases']]
  choices = order.assign_canvases(index.heights, index.widths, fits)
  # A batch has one canvas.
  choice = np.bincount(choices).argmax()
  rows = np.flatnonzero(choices == choice)
  canvas = tf.constant(inputs['canvases'][choice])
  fit = tf.constant(fits[choice])

  def read(row, *location):
    return records.record_at(*location).map(lambda record: (row, record))

  def decode_record(row, serialized):
    record = records.parse_record(serialized)
    return row, decode.decode_record(
      record, options.max_instances, accurate_jpeg=options.accurate_jpeg
    )

  def augment_example(row, example):
    location = {'seed': tf.stack([row, 0]), 'canvas': canvas, 'fit': fit}
    return augmented.augment_example(example, location, options)[0]

  def resize(row, example):
    flip = transforms.draw_flip(tf.stack([row, 0]), options)
    return transforms.resize(example, canvas, fit, flip, options.resize)

  def finish_image(example):
    image = transforms.finish_image(example['image'], options.image_dtype)
    return example | {'image': image}

  def crop_masks(example):
    instances, _ = transforms.finish_instances(example, options)
    return {'images': example['image'], 'instances': instances}

  paths = tf.constant([index.files[x] for x in index.file_indices[rows]])
  locations = (rows, paths, index.offsets[rows], index.lengths[rows])
  settings = tf.data.Options()
  settings.threading.private_threadpool_size = 1
  dataset = tf.data.Dataset.from_tensor_slices(locations).repeat()
  dataset, sides, before = dataset.with_options(settings), {}, 0.0

  def side(name, dataset, size):
    iterator, count = iter(dataset), -(-len(index) // size)
    next(iterator)

    def seconds(_):
      nonlocal before
      start, last = time.process_time(), 0.0 if name == 'read' else before
      for _ in range(count):
        next(iterator)
      before = (time.process_time() - start) / (count * size)
      return before - last

    return measure.Side(seconds)

  middle = {
    'resize': lambda x: x.map(resize),
    'round': lambda x: x.map(finish_image),
    'masks': lambda x: x.map(crop_masks),
  }
  if options.augment.is_on:
    middle = {'augment': lambda x: x.map(augment_example)}
  for name, step in {
    'read': lambda x: x.flat_map(read),
    'decode_image': lambda x: x.map(decode_record),
    **middle,
    'pad': lambda x: x.map(lambda row: transforms.pad(row, canvas, options)),
    'batch': lambda x: x.batch(inputs['batch_size']),
  }.items():
    dataset = step(dataset)
    size = inputs['batch_size'] if name == 'batch' else 1
    sides[name] = side(name, dataset, size)
  return sides
