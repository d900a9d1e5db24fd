"""The input pipeline and its stages, measured by the process that asks."""

import collections
import logging
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
from maskrcnn_jax.input_pipeline import (
  batches,
  decoding,
  order,
  reader,
  transforms,
)

# Each is a way to fill memory; the names are those of the results.
_CACHES = {
  'uncached': 'nothing',
  'cached_records': 'records',
  'cached_rows': 'rows',
}
# Batches that may be ready, which the time of the next ones does not show.
_READ_AHEAD = 12
# So often data sets are read in a row: to begin takes time too.
_REPEATS = 16


def measure(
  inputs: Mapping[str, Any], num_images: int, rounds: int
) -> dict[str, Any]:
  """Measures on the cores of this process.

  Args:
    inputs: arguments of `batches.train_batches`.
    num_images: the first so many records are taken.
    rounds: that medians are taken over.

  Returns:
    See `input_pipeline.run`.
  """
  reader.set_up_tensorflow(1)
  # Stages are traced for every record, which TensorFlow would warn of.
  logging.getLogger('tensorflow').setLevel(logging.ERROR)
  inputs = {**inputs, 'num_threads': 1, 'repeat_first': False}
  source = records.index_records(inputs['file_pattern'], inputs.get('split'))
  rows = range(min(num_images, len(source)))
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'part.tfrecord')
    records.write_records(path, (records.read_record(source, i) for i in rows))
    inputs |= {'file_pattern': str(path), 'split': None}
    index = records.index_records(str(path))
    bar = tqdm.tqdm(total=rounds + 1, disable=None, unit='round')
    pipelines = {name: _Pipeline(inputs, _CACHES[name]) for name in _CACHES}
    stages = _Stages(index, inputs)
    stages.run()  # Traces and warms up.
    bar.update()
    rates = {name: [] for name in _CACHES}
    times = []
    for _ in range(rounds):
      # By turns, so that what else the machine does falls on all alike.
      for name, pipeline in pipelines.items():
        rates[name].append(pipeline.run())
      times.append(stages.run())
      bar.update()
    bar.close()
    result = _describe(index)
  for name, values in rates.items():
    wall, cpu = zip(*values)
    result[name] = {
      'images_per_second': statistics.median(wall),
      'images_per_cpu_second': statistics.median(cpu),
    }
  milliseconds = {
    name: statistics.median(each[name] for each in times) for name in times[0]
  }
  total = 1e3 / result['uncached']['images_per_cpu_second']
  milliseconds['rest'] = total - sum(milliseconds.values())
  pinned = hasattr(os, 'sched_getaffinity')
  cores = sorted(os.sched_getaffinity(0)) if pinned else []
  return result | {'milliseconds': milliseconds, 'cores': cores}


def _describe(index) -> dict[str, float]:
  """How much there is to do for an image."""
  objects = [len(records.read_objects(index, i)) for i in range(len(index))]
  pixels = index.heights.astype(np.int64) * index.widths
  return {
    'num_images': len(index),
    'num_objects': float(np.mean(objects)),
    'megapixels': float(np.mean(pixels)) / 1e6,
  }


class _Pipeline:
  """Training batches that are read over and over."""

  def __init__(self, inputs, cache):
    # Of a cache only what was seen is measured: every image, never mirrored.
    flip = {} if cache == 'nothing' else {'flip': False}
    self._batches = batches.train_batches(**{**inputs, 'cache': cache, **flip})
    size = inputs['batch_size']
    count = len(records.index_records(inputs['file_pattern']))
    self._num_batches = -(-count // size)
    self._batch_size = size
    # All records once, for the cache.
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
  """Returns when nothing is read ahead any more."""
  done = -1.0
  while time.process_time() - done > 0.001:
    done = time.process_time()
    time.sleep(0.05)


class _Stages:
  """The functions that the pipeline is made of, each alone."""

  def __init__(self, index, inputs):
    self._index = index
    self._batch_size = inputs['batch_size']
    names = ('max_instances', 'mask_size', 'flip', 'image_dtype')
    options = transforms.TransformOptions(
      **{name: inputs[name] for name in names if name in inputs},
      resize=transforms.ResizeOptions(**(inputs.get('resize') or {})),
    )
    canvases = inputs['canvases']
    fits = [transforms.fit_size(x, options.resize) for x in canvases]
    choices = order.assign_canvases(index.heights, index.widths, fits)
    self._canvases = [tf.constant(canvases[choice]) for choice in choices]
    self._fits = [tf.constant(fits[choice]) for choice in choices]
    self._options = options
    functions = _functions(options)
    self._functions = {name: _trace(x) for name, x in functions.items()}
    # What a call costs by itself depends on its arguments.
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
    example = decoding.decode(record, self._options.max_instances)
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
    places = tf.data.Dataset.from_tensor_slices(
      (paths, index.offsets, index.lengths)
    )
    places = places.repeat(_REPEATS)
    count = _REPEATS * len(index)
    return _time_dataset(places.flat_map(records.record_at), count)

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
    # One value of each mask, or the decoding would be left out.
    return tf.map_fn(
      lambda png: decoding.decode_mask(png, image_size)[0, 0],
      pngs,
      fn_output_signature=tf.uint8,
      parallel_iterations=1,
    )

  return {
    'parse': records.parse_record,
    'decode_image': decoding.decode_image,
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
