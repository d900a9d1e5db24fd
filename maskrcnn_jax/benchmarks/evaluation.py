"""Time of an evaluation after the device is done: masks, file and scores."""

import collections
import contextlib
import itertools
import json
import os
import pathlib
import resource
import tempfile
import time
from typing import Any

import tqdm

from maskrcnn_jax.benchmarks import detections
from maskrcnn_jax.evaluation import coco_metrics, coco_results
from maskrcnn_jax.evaluation.workers import Workers, default_count

# Batches of detections that are made before the clock goes on.
_BATCHES_AT_ONCE = 40


def run(
  annotations_file: str | os.PathLike,
  num_images: int = 5000,
  num_detections: int = 100,
  batch_size: int = 8,
  num_processes: int | None = None,
  scorer: str = 'pycocotools',
  seed: int = 0,
) -> dict[str, Any]:
  """Encodes, writes and scores synthetic detections.

  Args:
    annotations_file: COCO json that the images and objects are taken from,
      repeated as needed.
    num_images: how many.
    num_detections: in every image.
    batch_size: images that are encoded together.
    num_processes: as in the section `evaluation` of a config.
    scorer: likewise.
    seed: of the detections.

  Returns:
    seconds: of `encode`, `write`, `score` and their `total`.
    milliseconds_per_image: of the same.
    cpu_seconds: of this process and of its helpers, in all of these.
    metrics: the 24 numbers.
    And the arguments.

  Raises:
    FileNotFoundError: there is no annotations file.
    UserError: it has no image or no object, or the scorer is unknown or not
      installed.
  """
  workload = detections.make_workload(
    annotations_file, num_images, num_detections, seed
  )
  if num_processes is None:
    num_processes = default_count(num_images)
  clock = _Clock()
  image_ids = [image['id'] for image in workload.truth['images']]
  num_batches = -(-num_images // batch_size)
  helpers = resource.getrusage(resource.RUSAGE_CHILDREN)
  with tempfile.TemporaryDirectory() as folder:
    truth_file = pathlib.Path(folder, 'truth.json')
    truth_file.write_text(json.dumps(workload.truth), encoding='utf-8')
    with Workers(num_processes) as workers:
      encoder = coco_results.ResultEncoder(workers)
      batches = iter(
        tqdm.tqdm(workload.batches(batch_size), total=num_batches, disable=None)
      )
      # The clock stands still while detections are made.
      while made := list(itertools.islice(batches, _BATCHES_AT_ONCE)):
        with clock.measure('encode'):
          for found, batch in made:
            encoder.add(found, batch)
          results = encoder.collect()
      with clock.measure('write'):
        coco_results.write_results(results, pathlib.Path(folder, 'found.json'))
      with clock.measure('score'):
        metrics = coco_metrics.evaluate(
          results, truth_file, image_ids, scorer=scorer, workers=workers
        )
  seconds = {**clock.seconds, 'total': sum(clock.seconds.values())}
  ended = resource.getrusage(resource.RUSAGE_CHILDREN)
  return {
    'seconds': seconds,
    'milliseconds_per_image': {
      part: value / num_images * 1e3 for part, value in seconds.items()
    },
    'cpu_seconds': clock.cpu_seconds + sum(ended[:2]) - sum(helpers[:2]),
    'metrics': metrics,
    'num_images': num_images,
    'num_detections': num_detections,
    'batch_size': batch_size,
    'num_processes': num_processes,
    'scorer': scorer,
    'seed': seed,
  }


class _Clock:
  """Adds up `seconds` by part, and `cpu_seconds` of this process in all."""

  def __init__(self):
    self.seconds = collections.defaultdict(float)
    self.cpu_seconds = 0.0

  @contextlib.contextmanager
  def measure(self, part):
    """Adds the time of the block."""
    start, cpu_start = time.perf_counter(), time.process_time()
    yield
    self.seconds[part] += time.perf_counter() - start
    self.cpu_seconds += time.process_time() - cpu_start
