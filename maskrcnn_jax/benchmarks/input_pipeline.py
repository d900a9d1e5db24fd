"""What one core delivers in images a second, and where their time goes.

  from maskrcnn_jax import load_config
  from maskrcnn_jax.benchmarks import input_pipeline
  config = load_config('coco', ['input.file_pattern=records/train*'])
  input_pipeline.run(config)

The work is done by another process, whose threads all share one core. Its
records lie in the memory of the system, if not in its own: storage is not
measured.
"""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Mapping
from typing import Any

from maskrcnn_jax.errors import UserError


def run(
  config: Any, num_images: int = 90, rounds: int = 5, core: int | None = None
) -> dict[str, Any]:
  """Measures the input of a config on one core.

  Args:
    config: a ConfigDict with the section `input`; its cache, its threads and
      `repeat_first` do not count.
    num_images: the first so many records are read again and again.
    rounds: how often everything is measured; medians are returned.
    core: number of the core; None: the last that this process may use.

  Returns:
    num_images, num_objects, megapixels: of the records; the latter two are the
      mean of an image.
    uncached, cached_rows, cached_records: for what is kept in memory,
      `images_per_second`, by the clock, and `images_per_cpu_second`, which
      other work on the core hardly changes.
    milliseconds: processor time of an image by stage, as each takes alone;
      `maps` are sizes, boxes and pixel maps, `flip` counts for the half that is
      mirrored, `rest` is what all of it takes beyond its stages.
    cores: the process could use; empty where it cannot be told to use one.

  Raises:
    ValueError: there are no records, or an argument is wrong.
  """
  for name, value in (('num_images', num_images), ('rounds', rounds)):
    if value < 1:
      raise UserError(f'{name} must be at least 1, got {value}.')
  inputs = config.input.to_dict()
  # A new process: threads stay on the cores where they were started.
  with concurrent.futures.ProcessPoolExecutor(
    1, multiprocessing.get_context('spawn'), **_pin(core)
  ) as executor:
    return executor.submit(_measure, inputs, num_images, rounds).result()


def _pin(core: int | None) -> dict[str, Any]:
  """What an executor needs so that its process uses one core only."""
  if not hasattr(os, 'sched_setaffinity'):
    return {}
  allowed = os.sched_getaffinity(0)
  core = max(allowed) if core is None else core
  if core not in allowed:
    raise UserError(f'core must be one of {sorted(allowed)}, got {core}.')
  return {'initializer': os.sched_setaffinity, 'initargs': (0, {core})}


def _measure(
  inputs: Mapping[str, Any], num_images: int, rounds: int
) -> dict[str, Any]:
  """What `run` returns, of the process that calls it."""
  # Only where it is needed, so that whoever calls `run` does without.
  from maskrcnn_jax.benchmarks import input_stages

  return input_stages.measure(inputs, num_images, rounds)
