"""Images a second of one core in the input pipeline, and their time by stage.

The work is done in another process, whose threads all share one core. Its
records lie in the memory of the system, if not in its own: storage is not
measured.
"""

import collections
import concurrent.futures
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tqdm

from maskrcnn_jax.datasets import records
from maskrcnn_jax.input_pipeline import (
  batches,
  decode,
  order,
  reader,
  transforms,
)

# Values of `input.cache` by their name in the results.
_CACHES = {
  'uncached': 'nothing',
  'cached_records': 'records',
  'cached_rows': 'rows',
}
# Batches that may be ready, which the time of the next ones does not show.
_READ_AHEAD = 12


def run(config: Any, num_images: int = 90, rounds: int = 5) -> dict[str, Any]:
  """Measures the input of a config on the last core this process may use.

  Args:
    config: a ConfigDict with the section `input`; its cache, its threads and
      `repeat_first` do not count.
    num_images: number of records, the first ones, which are read repeatedly.
    rounds: of all measurements; medians are returned.

  Returns:
    num_images, num_objects, megapixels: of the records; the latter two are the
      mean of an image.
    uncached, cached_rows, cached_records: for each cache `images_per_second`,
      by the clock, and `images_per_cpu_second`, which other work on the core
      hardly changes.
    milliseconds: processor time of an image by stage, one thread, for the
      images of the most frequent canvas; `rest` is what a training batch takes
      beyond its stages.
    cores: the process could use; empty where the system does not pin processes.

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
    result = executor.submit(_measure, inputs, num_images, rounds).result()
  return result | {'cores': [core] if pin else []}


def _measure(
  inputs: Mapping[str, Any], num_images: int, rounds: int
) -> dict[str, Any]:
  """`run` in the process that calls it."""
  reader.set_up_tensorflow(1)
  inputs = {**inputs, 'num_threads': 1, 'repeat_first': False}
  source = records.index_records(inputs['file_pattern'], inputs.get('split'))
  rows = range(min(num_images, len(source)))
  rates, times = collections.defaultdict(list), collections.defaultdict(list)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'part.tfrecord')
    records.write_records(path, (records.read_record(source, i) for i in rows))
    inputs |= {'file_pattern': str(path), 'split': None}
    index = records.index_records(str(path))
    pipelines = {
      name: _pipeline({**inputs, 'cache': cache}, len(index))
      for name, cache in _CACHES.items()
    }
    stages = _stages(index, inputs)
    for _ in tqdm.trange(rounds, disable=None, unit='round'):
      # In turn, so that other work of the machine slows all alike.
      for name, run_epoch in pipelines.items():
        rates[name].append(run_epoch())
      before = 0.0
      for name, iterator in stages.items():
        size = inputs['batch_size'] if name == 'batch' else 1
        total = _milliseconds(iterator, -(-len(index) // size)) / size
        times[name].append(total - before)
        before = total
    objects = [len(records.read_objects(index, row)) for row in rows]
  pixels = index.heights.astype(np.int64) * index.widths
  result = {
    'num_images': len(index),
    'num_objects': float(np.mean(objects)),
    'megapixels': float(np.mean(pixels)) / 1e6,
  }
  for name, values in rates.items():
    wall, cpu = map(statistics.median, zip(*values))
    result[name] = {'images_per_second': wall, 'images_per_cpu_second': cpu}
  milliseconds = {name: statistics.median(x) for name, x in times.items()}
  total = 1e3 / result['uncached']['images_per_cpu_second']
  milliseconds['rest'] = total - sum(milliseconds.values())
  return result | {'milliseconds': milliseconds}


def _pipeline(inputs, num_images) -> Callable[[], tuple[float, float]]:
  """Images a second by the clock and by processor time, over an epoch."""
  if inputs['cache'] != 'nothing':
    # A cache is measured when it is full: with every image, never mirrored.
    inputs = {**inputs, 'flip': False}
  made = batches.train_batches(**inputs)
  num_batches = -(-num_images // inputs['batch_size'])
  for _ in range(num_batches):
    next(made)

  def run_epoch():
    _wait_for_threads()
    for _ in range(_READ_AHEAD):
      next(made)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(num_batches):
      next(made)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    _wait_for_threads()
    images = num_batches * inputs['batch_size']
    return images / wall, images / cpu

  return run_epoch


def _wait_for_threads() -> None:
  """Returns when no thread reads ahead any more."""
  done = -1.0
  while time.process_time() - done > 0.001:
    done = time.process_time()
    time.sleep(0.05)


def _stages(index, inputs) -> dict[str, Iterator]:
  """Endless iterators, each with one more stage of the pipeline."""
  names = ('max_instances', 'mask_size', 'flip', 'image_dtype')
  options = transforms.TransformOptions(
    **{name: inputs[name] for name in names if name in inputs},
    resize=transforms.resize_options(inputs.get('resize')),
  )
  fits = [transforms.fit_size(x, options.resize) for x in inputs['canvases']]
  choices = order.assign_canvases(index.heights, index.widths, fits)
  # A batch has one canvas.
  choice = np.bincount(choices).argmax()
  rows = np.flatnonzero(choices == choice)
  canvas, fit = (
    tf.constant(inputs['canvases'][choice]),
    tf.constant(fits[choice]),
  )
  paths = tf.constant([index.files[i] for i in index.file_indices[rows]])

  def read(row, *location):
    return records.record_at(*location).map(lambda record: (row, record))

  def decode_record(row, serialized):
    record = records.parse_record(serialized)
    return row, decode.decode_record(record, options.max_instances)

  def resize(row, example):
    flip = transforms.draw_flip(tf.stack([row, 0]), options)
    return transforms.resize(example, canvas, fit, flip, options.resize)

  def finish_image(example):
    image = transforms.finish_image(example['image'], options.image_dtype)
    return example | {'image': image}

  def crop_masks(example):
    instances, _ = transforms.finish_instances(example, options)
    return {'images': example['image'], 'instances': instances}

  steps = {
    'read': lambda x: x.flat_map(read),
    'decode_image': lambda x: x.map(decode_record),
    'resize': lambda x: x.map(resize),
    'round': lambda x: x.map(finish_image),
    'masks': lambda x: x.map(crop_masks),
    'pad': lambda x: x.map(lambda y: transforms.pad(y, canvas, options)),
    'batch': lambda x: x.batch(inputs['batch_size']),
  }
  settings = tf.data.Options()
  settings.threading.private_threadpool_size = 1
  locations = (rows, paths, index.offsets[rows], index.lengths[rows])
  dataset = tf.data.Dataset.from_tensor_slices(locations).repeat()
  found = {}
  for name, add in steps.items():
    dataset = add(dataset)
    found[name] = iter(dataset.with_options(settings))
    next(found[name])
  return found


def _milliseconds(iterator, count) -> float:
  """Processor time of an element."""
  start = time.process_time()
  for _ in range(count):
    next(iterator)
  return (time.process_time() - start) / count * 1e3
