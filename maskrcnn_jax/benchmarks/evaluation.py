"""What an evaluation costs once the device is done: masks, file, numbers.

  from maskrcnn_jax.benchmarks import evaluation
  evaluation.run('instances_val2017.json')

The detections are drawn, see `benchmarks.detections`. A part of the images is
also scored the plain way, which must find the same.
"""

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

from maskrcnn_jax.benchmarks import detections, plain_evaluation
from maskrcnn_jax.evaluation import coco_metrics, coco_results
from maskrcnn_jax.evaluation.workers import Workers, default_count

# Batches that are drawn before the clock goes on.
_DRAWN_BATCHES = 40


def run(
  annotations_file: str | os.PathLike,
  num_images: int = 5000,
  num_detections: int = 100,
  batch_size: int = 8,
  num_processes: int | None = None,
  scorer: str = 'pycocotools',
  num_plain_images: int = 100,
  seed: int = 0,
) -> dict[str, Any]:
  """Encodes, writes and scores drawn detections; prints what that took.

  Args:
    annotations_file: COCO json that the images and objects are taken from, as
      often as it takes.
    num_images: how many.
    num_detections: in every image.
    batch_size: images that are encoded together.
    num_processes: as in the section `evaluation` of a config.
    scorer: likewise.
    num_plain_images: the first so many are scored the plain way too; 0: none.
    seed: of the drawn detections.

  Returns:
    seconds: of `encode`, `write`, `score` and their `total`.
    cpu_seconds: of this process and of its helpers, in all of these.
    metrics: the 24 numbers.
    plain: what `compare_with_plain` returns, or None.
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
  figures = _measure(workload, batch_size, num_processes, scorer)
  figures['plain'] = None
  if num_plain_images:
    part = detections.make_workload(
      annotations_file, num_plain_images, num_detections, seed
    )
    figures['plain'] = compare_with_plain(part, batch_size)
  figures |= {
    'num_images': num_images,
    'num_detections': num_detections,
    'batch_size': batch_size,
    'num_processes': num_processes,
    'scorer': scorer,
    'seed': seed,
  }
  print(text(figures))
  return figures


def _measure(workload, batch_size, num_processes, scorer):
  """Times and numbers of the way that an evaluation takes."""
  clock = _Clock()
  image_ids = [image['id'] for image in workload.truth['images']]
  num_batches = -(-len(image_ids) // batch_size)
  helpers = resource.getrusage(resource.RUSAGE_CHILDREN)
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    truth_file = folder / 'truth.json'
    truth_file.write_text(json.dumps(workload.truth), encoding='utf-8')
    with Workers(num_processes) as workers:
      encoder = coco_results.ResultEncoder(workers)
      batches = iter(
        tqdm.tqdm(workload.batches(batch_size), total=num_batches, disable=None)
      )
      # To draw detections is no part of an evaluation: the clock stands still.
      while drawn := list(itertools.islice(batches, _DRAWN_BATCHES)):
        with clock.measure('encode'):
          for found, batch in drawn:
            encoder.add(found, batch)
          results = encoder.collect()
      with clock.measure('write'):
        coco_results.write_results(results, folder / 'detections.json')
      with clock.measure('score'):
        metrics = coco_metrics.evaluate(
          results, truth_file, image_ids, scorer=scorer, workers=workers
        )
  return {
    'seconds': {**clock.seconds, 'total': sum(clock.seconds.values())},
    'cpu_seconds': clock.cpu_seconds + _cpu_seconds_since(helpers),
    'metrics': metrics,
  }


class _Clock:
  """Adds up the times of parts; `cpu_seconds` are of this process, of all."""

  def __init__(self):
    self.seconds = collections.defaultdict(float)
    self.cpu_seconds = 0.0

  @contextlib.contextmanager
  def measure(self, part):
    """Adds the time that the block takes."""
    start, cpu_start = time.perf_counter(), time.process_time()
    yield
    self.seconds[part] += time.perf_counter() - start
    self.cpu_seconds += time.process_time() - cpu_start


def _cpu_seconds_since(before):
  """Processor time of helpers that have ended meanwhile."""
  now = resource.getrusage(resource.RUSAGE_CHILDREN)
  return sum(now[:2]) - sum(before[:2])


def compare_with_plain(
  workload: detections.Workload, batch_size: int = 8
) -> dict[str, Any]:
  """Scores detections our way and the plain way by turns, in one process.

  Args:
    workload: the images; all of them are taken.
    batch_size: images that are encoded together.

  Returns:
    num_images: of the workload.
    seconds: `encode` and `score` of `ours` and `plain`.
    ratios: how often ours fits into the plain one, by part.
    masks_equal, num_masks: how many run lengths are the same text, of how many.
    numbers_equal: whether the 24 numbers are, to the last bit.
  """
  clocks = {'ours': _Clock(), 'plain': _Clock()}
  ours, plain = [], []
  for found, batch in workload.batches(batch_size):
    with clocks['ours'].measure('encode'):
      results = coco_results.to_coco_results(found, **batch)
    with clocks['plain'].measure('encode'):
      counts = _encode_plainly(found, batch)
    ours += results
    plain += [
      {**result, 'segmentation': {**result['segmentation'], 'counts': text}}
      for result, text in zip(results, counts, strict=True)
    ]
  image_ids = [image['id'] for image in workload.truth['images']]
  with tempfile.TemporaryDirectory() as folder:
    truth_file = pathlib.Path(folder, 'truth.json')
    truth_file.write_text(json.dumps(workload.truth), encoding='utf-8')
    with clocks['ours'].measure('score'):
      numbers = coco_metrics.evaluate(ours, truth_file, image_ids)
    with clocks['plain'].measure('score'):
      truth = json.loads(truth_file.read_text(encoding='utf-8'))
      plain_numbers = plain_evaluation.score(truth, plain, image_ids)
  seconds = {name: dict(clock.seconds) for name, clock in clocks.items()}
  return {
    'num_images': len(image_ids),
    'seconds': seconds,
    'ratios': {
      part: seconds['plain'][part] / seconds['ours'][part]
      for part in ('encode', 'score')
    },
    'masks_equal': sum(a == b for a, b in zip(ours, plain)),
    'num_masks': len(ours),
    'numbers_equal': list(numbers.values()) == plain_numbers,
  }


def _encode_plainly(found, batch):
  """Run lengths of all masks of a batch, in the order of the results."""
  counts = []
  for row in range(len(batch['image_ids'])):
    image = found.image(row)
    counts += plain_evaluation.encode_masks(
      image.masks,
      coco_results.original_boxes(image.boxes, batch['scales'][row]),
      tuple(batch['original_sizes'][row].tolist()),
    )
  return counts


def text(figures: dict[str, Any]) -> str:
  """What `run` returns, for people."""
  seconds, metrics = figures['seconds'], figures['metrics']
  lines = [
    f'{figures["num_images"]} images with {figures["num_detections"]} '
    f'detections, {figures["num_processes"]} processes, '
    f'{figures["scorer"]}: {seconds["total"]:.1f} s',
    *(
      f'  {part:7}{seconds[part]:8.1f} s'
      f'{seconds[part] / figures["num_images"] * 1e3:8.2f} ms an image'
      for part in ('encode', 'write', 'score')
    ),
    f'  {figures["cpu_seconds"]:.1f} s of processor time; box AP '
    f'{metrics["eval/AP"]:.3f}, mask AP {metrics["eval/mask_AP"]:.3f}',
  ]
  plain = figures['plain']
  if plain:
    lines += [
      f'against the plain way, {plain["num_images"]} images, one process: '
      f'encode {plain["ratios"]["encode"]:.1f}x, score '
      f'{plain["ratios"]["score"]:.2f}x as fast',
      f'  {plain["masks_equal"]} of {plain["num_masks"]} masks are the same, '
      f'the 24 numbers {"are" if plain["numbers_equal"] else "DIFFER"}',
    ]
  return '\n'.join(lines)
