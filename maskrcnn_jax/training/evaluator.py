"""Evaluates a model on every image of a set, and draws some of them."""

import dataclasses
import functools
import itertools
import json
import logging
import pathlib
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from maskrcnn_jax import visualize
from maskrcnn_jax.evaluation import (
  coco_metrics,
  coco_results,
  processes,
  scoring,
)
from maskrcnn_jax.input_pipeline import batches as input_batches
from maskrcnn_jax.models import override
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.training import (
  evaluation_data,
  seed_names,
  sharding,
  summary,
  train_step,
)


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
  """The section `evaluation` of a config.

  Attributes:
    file_pattern: record files, or a prepared TFDS directory.
    annotations_file: COCO json of the same images; '' makes one of the records.
    batch_size: images in a batch over all hosts; the next multiple of the
      number of devices is taken.
    max_images: take only the first ones; None for all.
    every_steps: evaluate on the way; 0 for only at the end.
    skip_first: how many of these evaluations are left out.
    report_every_batches: score what is there so often; 0 for only at the end.
    min_picture_score: detections below are not drawn.
    max_detections: of an image and class that count, the best ones; COCO's own
      number is 100.
    scorer: `pycocotools`, or `hotcoco` for the same numbers faster.
    num_processes: encode masks beside the device, and score; 0: this process
      does; None: one per core, up to 8, for a set that is not small.
  """

  file_pattern: str
  annotations_file: str
  batch_size: int = 4
  max_images: int | None = None
  every_steps: int = 0
  skip_first: int = 0
  report_every_batches: int = 0
  min_picture_score: float = 0.5
  max_detections: int = scoring.MAX_DETECTIONS
  scorer: str = 'pycocotools'
  num_processes: int | None = None

  def __post_init__(self):
    scoring.check_scorer(self.scorer)
    if self.num_processes is not None and self.num_processes < 0:
      raise ValueError(
        'evaluation.num_processes must be 0 or more, or None, got '
        f'{self.num_processes}.'
      )
    if self.max_detections < 11:
      # COCO's other limits are 1 and 10.
      raise ValueError(
        'evaluation.max_detections must be at least 11, got '
        f'{self.max_detections}.'
      )
    if self.max_images is not None and self.max_images < 1:
      raise ValueError(
        f'evaluation.max_images must be at least 1, got {self.max_images}.'
      )

  def is_due(self, step: int, is_last: bool = False) -> bool:
    """Whether to evaluate after a step of the run."""
    if not self.every_steps:
      return is_last
    number = -(-step // self.every_steps)  # Of this evaluation, from 1.
    on_time = step % self.every_steps == 0
    return (on_time or is_last) and number > self.skip_first


class Evaluator:
  """Evaluates variables; keeps the compiled program between the calls."""

  def __init__(self, config, workdir):
    """Checks the section `evaluation` of a config.

    Args:
      config: a ConfigDict with the sections `model, input, training,
        evaluation`.
      workdir: directory of the run.

    Raises:
      ValueError: no record fits the pattern, a class id does not fit the model,
        or an image has no annotations.
      FileNotFoundError: the annotations file is missing.
    """
    self.options = override.make(
      EvaluationOptions, config.evaluation, 'evaluation'
    )
    self._mesh = sharding.config_mesh(config)
    model = sharding.lay_out(MaskRCNN.from_config(config.model), self._mesh)
    self._workdir = pathlib.Path(workdir)
    self._batch_size = _whole_batch(self.options.batch_size, self._mesh)
    data = (self.options.file_pattern, self.options.max_images)
    self.annotations_file = self.options.annotations_file
    if not self.annotations_file:
      self.annotations_file = evaluation_data.write_annotations(*data, workdir)
    self._num_images = evaluation_data.check_annotations(
      *data, self.annotations_file, model.num_classes
    )
    self._num_pictures = config.training.get('pictures', 8)
    self._log_file = config.training.get('log_file')
    self._input = config.input
    self._names = evaluation_data.class_names(self.annotations_file)
    self._category_ids = evaluation_data.category_ids(self.annotations_file)
    everywhere = sharding.replicated(self._mesh)
    inputs = sharding.input_shardings(self._mesh)
    self._detect = jax.jit(
      functools.partial(train_step.detect, model),
      in_shardings=(everywhere, inputs['images'], inputs['image_sizes']),
      out_shardings=everywhere,
    )

  def __call__(
    self, step: int, variables, writer, feed: Callable[[str], None]
  ) -> dict[str, float]:
    """Detects, scores, and writes detections, numbers and pictures.

    Args:
      step: names the files.
      variables: of the model.
      writer: `metrics.MetricWriter`.
      feed: is told of progress, see `watchdog.Watchdog`.

    Returns:
      The 24 numbers, `eval/AP` to `eval/mask_ARl`; {} on all hosts but the
      first, which scores while the others wait.
    """
    start = time.monotonic()
    count = self.options.num_processes
    if count is None:
      count = processes.default_count(self._num_images)
    values = {}
    with processes.Processes(count) as workers:
      results, image_ids, pictures = self._detect_all(
        step, variables, writer, feed, workers
      )
      feed(f'evaluation of step {step}: scoring')
      if jax.process_index() == 0:
        self._write(step, results, pictures, writer)
        values = self._score(results, image_ids, workers)
    if jax.process_index() == 0:
      self._log(step, values, image_ids, writer, start)
    # At the end of a run, a host that waits long for the last one gives up.
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f'evaluated {step}')
    return values

  def _write(self, step, results, pictures, writer):
    """Writes the results of all hosts, and the pictures."""
    path = self._workdir / 'eval' / f'detections-{step}.json'
    coco_results.write_results(results, path)
    for image_id, picture in pictures:
      writer.image(step, f'eval/image-{image_id}', picture)
      name = f'step-{step}-image-{image_id}.png'
      visualize.save_png(self._workdir / 'pictures' / name, picture)

  def _score(self, results, image_ids, workers):
    """The 24 numbers."""
    return coco_metrics.evaluate(
      results,
      self.annotations_file,
      image_ids,
      scorer=self.options.scorer,
      workers=workers,
      max_detections=self.options.max_detections,
    )

  def _log(self, step, values, image_ids, writer, start):
    """Writes the numbers down and shows them."""
    writer.scalars(step, values)
    writer.flush()
    summary.log(self._log_file, seed_names.evaluated(values))
    seconds = time.monotonic() - start
    limit = self.options.max_detections
    counted = f', maxDets {limit}' if limit != scoring.MAX_DETECTIONS else ''
    writer.say(
      f'step {step}: {len(image_ids)} of {self._num_images} images evaluated '
      f'in {seconds:.0f} s{counted}'
    )
    writer.say(coco_metrics.format_table(values), file=sys.stdout)

  def _detect_all(self, step, variables, writer, feed, workers):
    """Results and ids of all images, and pictures of this host's first ones."""
    variables = sharding.put_replicated(variables, self._mesh)
    num_pictures = self._num_pictures if jax.process_index() == 0 else 0
    encoder = coco_results.ResultEncoder(
      workers, category_ids=self._category_ids
    )
    image_ids, pictures, seconds = [], [], []
    batches = self._batches()
    shown = writer.progress(batches)
    found = self._detect_ahead(shown, variables, seconds, feed, step)
    for number, (batch, detections) in enumerate(found, start=1):
      detections = _own_rows(detections, len(batch['valid']))
      encoder.add(detections, batch)
      image_ids += batch['image_ids'][batch['valid']].tolist()
      pictures += self._draw(batch, detections, num_pictures - len(pictures))
      every = self.options.report_every_batches
      if every and number % every == 0:
        results = encoder.collect()
        self._report(step, number, results, image_ids, writer, workers)
    for kind, count in batches.counts.items():
      writer.say(f'WARNING: {count} {kind} left out, see above')
    self._say_speed(seconds, writer)
    return _gather(encoder.collect()), _gather(image_ids), pictures

  def _detect_ahead(self, batches, variables, seconds, feed, step):
    """Yields each batch and what was found in it.

    The device has the next batch already, so what is done with this one costs
    no time. Appends the time of every batch to `seconds`.
    """
    previous, clock = None, time.monotonic()
    for number, batch in enumerate(itertools.chain(batches, [None]), start=1):
      detections = None
      if batch is not None:
        feed(f'evaluation of step {step}: batch {number}')
        images = {k: batch[k] for k in ('images', 'image_sizes')}
        images = sharding.put_batch(images, self._mesh)
        detections = self._detect(
          variables, images['images'], images['image_sizes']
        )
      if previous is None:
        # The first call compiled.
        clock = time.monotonic()
      else:
        jax.block_until_ready(previous[1])
        seconds.append(time.monotonic() - clock)
        clock = time.monotonic()
        yield previous
      previous = batch, detections

  def _report(self, step, number, results, image_ids, writer, workers):
    """Scores the first batches of an evaluation that goes on."""
    results, image_ids = _gather(results), _gather(image_ids)
    if jax.process_index() > 0:
      return
    values = self._score(results, image_ids, workers)
    writer.print(
      f'step {step}, after {number} batches ({len(image_ids)} images):\n'
      f'{coco_metrics.format_table(values)}'
    )

  def _say_speed(self, seconds, writer):
    lines, logged = summary.inference_lines(seconds, self._batch_size)
    for line in lines:
      writer.say(line)
    if writer.enabled:
      summary.log(self._log_file, logged)

  def _batches(self):
    """This host's batches of the whole set, with the counts of bad records."""
    shared = ('canvases', 'image_dtype', 'resize', 'num_threads')
    return input_batches.eval_batches(
      self.options.file_pattern,
      batch_size=self._batch_size,
      max_images=self.options.max_images,
      host_index=jax.process_index(),
      host_count=jax.process_count(),
      **{k: self._input[k] for k in shared if k in self._input},
    )

  def _draw(self, batch, detections, wanted: int):
    """(image id, picture) of the first images of a batch."""
    if wanted <= 0:
      return []
    pictures = []
    detections = jax.tree.map(np.asarray, detections)
    for row in np.flatnonzero(batch['valid'])[:wanted]:
      height, width = batch['image_sizes'][row].astype(int)
      picture = visualize.draw(
        batch['images'][row, :height, :width],
        detections.image(row),
        self._names,
        min_score=self.options.min_picture_score,
        enlarge=visualize.enlargement((height, width)),
      )
      pictures.append((int(batch['image_ids'][row]), picture))
    return pictures


def check_batch_size(
  section: str, batch_size: int, mesh, group: int = 1
) -> None:
  """Raises if groups of images cannot be split evenly over devices."""
  parts = sharding.num_parts(mesh)
  if batch_size < 1 or batch_size % (parts * group):
    what = f'the {parts} devices'
    if parts < mesh.size:
      what = f'{parts}, the {mesh.size} devices by runtime.spatial'
    if group > 1:
      what += f', times model.sampling.mask_pool_group {group}'
    raise ValueError(
      f'{section}.batch_size must be a positive multiple of {what}, got '
      f'{batch_size}.'
    )


def _whole_batch(batch_size: int, mesh) -> int:
  """The next multiple of the devices; rows without an image fill a batch."""
  if batch_size < 1:
    raise ValueError(
      f'evaluation.batch_size must be at least 1, got {batch_size}.'
    )
  parts = sharding.num_parts(mesh)
  whole = -(-batch_size // parts) * parts
  if whole != batch_size:
    logging.info(
      'evaluation.batch_size %d becomes %d: %d devices share a batch evenly',
      *(batch_size, whole, mesh.size),
    )
  return whole


def _own_rows(detections, num_rows: int):
  """This host's rows of what was detected on all hosts."""
  if jax.process_count() == 1:
    return detections
  start = jax.process_index() * num_rows
  return jax.tree.map(
    lambda x: np.asarray(x)[start : start + num_rows], detections
  )


def _gather(values: list) -> list:
  """The values of all hosts in their order; [] on all but the first."""
  if jax.process_count() == 1:
    return values
  text = np.frombuffer(json.dumps(values).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.array(len(text)))
  padded = np.zeros(np.max(lengths), np.uint8)
  padded[: len(text)] = text
  texts = multihost_utils.process_allgather(padded)
  if jax.process_index() != 0:
    return []
  parts = [json.loads(bytes(t[:n])) for t, n in zip(texts, lengths)]
  return list(itertools.chain.from_iterable(parts))
