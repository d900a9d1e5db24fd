"""Images a second of one core in the input pipeline, and their time by stage.

The work is done in another process, whose threads all share one core. Its
records lie in the memory of the system, if not in its own: storage is not
measured.
"""

import collections
import concurrent.futures
import logging
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tqdm

from maskrcnn_jax.datasets import records
from maskrcnn_jax.errors import UserError
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
# Data sets are read so often in a row: the start takes time too.
_REPEATS = 16


def run(
  config: Any, num_images: int = 90, rounds: int = 5, core: int | None = None
) -> dict[str, Any]:
  """Measures the input of a config on one core.

  Args:
    config: a ConfigDict with the section `input`; its cache, its threads and
      `repeat_first` do not count.
    num_images: number of records, the first ones, which are read repeatedly.
    rounds: of all measurements; medians are returned.
    core: number of the core; None: the last that this process may use.

  Returns:
    num_images, num_objects, megapixels: of the records; the latter two are the
      mean of an image.
    uncached, cached_rows, cached_records: for each cache `images_per_second`,
      by the clock, and `images_per_cpu_second`, which other work on the core
      hardly changes.
    milliseconds: processor time of an image by stage, as each takes alone;
      `maps` are sizes, boxes and pixel maps, `flip` counts for the half that is
      mirrored, `rest` is what all of it takes beyond its stages.
    cores: the process could use; empty where the system does not pin processes.

  Raises:
    UserError: there are no records, or an argument is wrong.
  """
  for name, value in (('num_images', num_images), ('rounds', rounds)):
    if value < 1:
      raise UserError(
        f'{name} must be at least 1, got {value}.',
        argument=name,
        given=value,
        wanted=1,
      )
  # A new process: threads stay on the cores where they were started.
  with concurrent.futures.ProcessPoolExecutor(
    1, multiprocessing.get_context('spawn'), **_pin(core)
  ) as executor:
    inputs = config.input.to_dict()
    return executor.submit(_measure, inputs, num_images, rounds).result()


def _pin(core: int | None) -> dict[str, Any]:
  """Arguments of an executor whose process uses one core only."""
  if not hasattr(os, 'sched_setaffinity'):
    return {}
  allowed = os.sched_getaffinity(0)
  core = max(allowed) if core is None else core
  if core not in allowed:
    raise UserError(
      f'core must be one of {sorted(allowed)}, got {core}.',
      argument='core',
      given=core,
      wanted=sorted(allowed),
    )
  return {'initializer': os.sched_setaffinity, 'initargs': (0, {core})}


def _measure(
  inputs: Mapping[str, Any], num_images: int, rounds: int
) -> dict[str, Any]:
  """`run` in the process that calls it."""
  reader.set_up_tensorflow(1)
  # Stages are traced for every record, which TensorFlow would warn of.
  logging.getLogger('tensorflow').setLevel(logging.ERROR)
  inputs = {**inputs, 'num_threads': 1, 'repeat_first': False}
  source = records.index_records(inputs['file_pattern'], inputs.get('split'))
  rows = range(min(num_images, len(source)))
  rates, times = {name: [] for name in _CACHES}, []
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'part.tfrecord')
    records.write_records(path, (records.read_record(source, i) for i in rows))
    inputs |= {'file_pattern': str(path), 'split': None}
    index = records.index_records(str(path))
    pipelines = {name: _Pipeline(inputs, _CACHES[name]) for name in _CACHES}
    stages = _Stages(index, inputs)
    stages.run()  # Traces and warms up.
    for _ in tqdm.trange(rounds, disable=None, unit='round'):
      # In turn, so that other work of the machine slows all alike.
      for name, pipeline in pipelines.items():
        rates[name].append(pipeline.run())
      times.append(stages.run())
    result = _describe(index)
  for name, values in rates.items():
    wall, cpu = map(statistics.median, zip(*values))
    result[name] = {'images_per_second': wall, 'images_per_cpu_second': cpu}
  milliseconds = {
    name: statistics.median(each[name] for each in times) for name in times[0]
  }
  total = 1e3 / result['uncached']['images_per_cpu_second']
  milliseconds['rest'] = total - sum(milliseconds.values())
  pinned = hasattr(os, 'sched_getaffinity')
  cores = sorted(os.sched_getaffinity(0)) if pinned else []
  return result | {'milliseconds': milliseconds, 'cores': cores}


def _describe(index) -> dict[str, float]:
  """Number of images, and their mean objects and pixels."""
  objects = [len(records.read_objects(index, i)) for i in range(len(index))]
  pixels = index.heights.astype(np.int64) * index.widths
  return {
    'num_images': len(index),
    'num_objects': float(np.mean(objects)),
    'megapixels': float(np.mean(pixels)) / 1e6,
  }


class _Pipeline:
  """Training batches that are read repeatedly."""

  def __init__(self, inputs, cache):
    # A cache is measured when it is full: with every image, never mirrored.
    flip = {} if cache == 'nothing' else {'flip': False}
    self._batches = batches.train_batches(**{**inputs, 'cache': cache, **flip})
    size = inputs['batch_size']
    count = len(records.index_records(inputs['file_pattern']))
    self._num_batches = -(-count // size)
    self._batch_size = size
    # Fills the cache.
    for _ in range(self._num_batches):
      next(self._batches)

  def run(self) -> tuple[float, float]:
    """Images a second by the clock and by processor time, over an epoch."""
    _wait_for_threads()
    for _ in range(_READ_AHEAD):
      next(self._batches)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(self._num_batches):
      next(self._batches)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    images = self._num_batches * self._batch_size
    _wait_for_threads()
    return images / wall, images / cpu


def _wait_for_threads() -> None:
  """Returns when no thread reads ahead any more."""
  done = -1.0
  while time.process_time() - done > 0.001:
    done = time.process_time()
    time.sleep(0.05)


class _Stages:
  """The functions of the pipeline, each alone."""

  def __init__(self, index, inputs):
    self._index = index
    self._batch_size = inputs['batch_size']
    names = ('max_instances', 'mask_size', 'flip', 'image_dtype')
    options = transforms.TransformOptions(
      **{name: inputs[name] for name in names if name in inputs},
      resize=transforms.resize_options(inputs.get('resize')),
    )
    canvases = inputs['canvases']
    fits = [transforms.fit_size(x, options.resize) for x in canvases]
    choices = order.assign_canvases(index.heights, index.widths, fits)
    self._canvases = [tf.constant(canvases[choice]) for choice in choices]
    self._fits = [tf.constant(fits[choice]) for choice in choices]
    self._options = options
    functions = _functions(options)
    self._functions = {name: _trace(x) for name, x in functions.items()}
    # The cost of an empty call depends on its arguments.
    self._calls = {name: _trace(lambda *_: 0) for name in functions}

  def run(self) -> dict[str, float]:
    """Milliseconds of processor time of an image, by stage."""
    self._seconds = collections.defaultdict(float)
    for row in range(len(self._index)):
      padded = self._run_row(row)
    seconds = dict(self._seconds)
    seconds['cut_masks'] -= seconds['decode_masks']
    seconds['flip'] = (seconds.pop('mirror') - seconds['resize']) / 2
    milliseconds = {
      name: value / len(self._index) * 1e3 for name, value in seconds.items()
    }
    return {
      'read': self._read(),
      **milliseconds,
      'batch': self._batch(padded),
    }

  def _run_row(self, row):
    """The image and the instances of a record, padded."""
    canvas, fit = self._canvases[row], self._fits[row]
    serialized = tf.constant(records.read_record(self._index, row))
    record = self._call('parse', serialized)
    image = self._call('decode_image', record['encoded'])
    example = decode.decode_record(record, self._options.max_instances)
    maps = self._call('maps', example, canvas, fit)
    size = tf.cast(maps['image_sizes'], tf.int32)
    self._call('mirror', image, size, tf.constant(True))
    resized = self._call('resize', image, size, tf.constant(False))
    image = self._call('round', resized)
    self._call('decode_masks', maps['masks'], maps['original_sizes'])
    instances, _ = self._call('cut_masks', maps)
    return self._call('pad', {'images': image, 'instances': instances}, canvas)

  def _call(self, name, *arguments):
    start = time.process_time()
    result = self._functions[name](*arguments)
    middle = time.process_time()
    self._calls[name](*arguments)
    end = time.process_time()
    self._seconds[name] += (middle - start) - (end - middle)
    return result

  def _read(self):
    index = self._index
    paths = tf.constant([index.files[i] for i in index.file_indices])
    locations = tf.data.Dataset.from_tensor_slices(
      (paths, index.offsets, index.lengths)
    )
    read = locations.repeat(_REPEATS).flat_map(records.record_at)
    return _time_dataset(read, _REPEATS * len(index))

  def _batch(self, row):
    count = _REPEATS * self._batch_size
    rows = tf.data.Dataset.from_tensors(row).repeat(count)
    return _time_dataset(rows.batch(self._batch_size), count)


def _trace(function: Callable) -> Callable:
  return tf.function(function, reduce_retracing=True, autograph=False)


def _functions(options) -> dict[str, Callable]:
  """The stages as functions of an image."""

  def maps(example, canvas, fit):
    flip = tf.constant(False)
    made = transforms.resize(example, canvas, fit, flip, options.resize)
    return {name: made[name] for name in made if name != 'image'}

  def decode_masks(pngs, image_size):
    # One value of each mask, or TensorFlow would skip the decode.
    return tf.map_fn(
      lambda png: decode.decode_mask(png, image_size)[0, 0],
      pngs,
      fn_output_signature=tf.uint8,
      parallel_iterations=1,
    )

  return {
    'parse': records.parse_record,
    'decode_image': decode.decode_image,
    'maps': maps,
    'mirror': transforms.resize_image,
    'resize': transforms.resize_image,
    'round': lambda x: transforms.finish_image(x, options.image_dtype),
    'decode_masks': decode_masks,
    'cut_masks': lambda x: transforms.finish_instances(x, options),
    'pad': lambda row, canvas: transforms.pad(row, canvas, options),
  }


def _time_dataset(dataset: tf.data.Dataset, num_images: int) -> float:
  """Milliseconds of processor time of an image."""
  settings = tf.data.Options()
  settings.threading.private_threadpool_size = 1
  elements = iter(dataset.with_options(settings))
  start = time.process_time()
  for _ in elements:
    pass
  return (time.process_time() - start) / num_images * 1e3
