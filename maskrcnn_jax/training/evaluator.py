"""Evaluates a model on every image of a set, and draws some of them."""

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np

from maskrcnn_jax import visualize
from maskrcnn_jax.distributed import collectives, model_sharding
from maskrcnn_jax.distributed import mesh as sharding
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import coco_metrics, coco_results, scoring
from maskrcnn_jax.evaluation.workers import Workers, default_count
from maskrcnn_jax.input_pipeline import batches as input_batches
from maskrcnn_jax.models import override
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.training import (
  data_checks,
  evaluation_output,
  summary,
  train_step,
  validation_losses,
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
    losses: also the terms of the training loss, see `validation_losses`; they
      cost another pass over the images.
    min_picture_score: detections below are not drawn.
    min_confusion_score: detections below do not count in the table of
      confusions.
    show_classes: tables of AP by class and of confusions are also printed if
      there are at most so many classes; `eval/classes-STEP.md` always has them.
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
  losses: bool = False
  min_picture_score: float = 0.5
  min_confusion_score: float = 0.5
  show_classes: int = 10
  max_detections: int = scoring.MAX_DETECTIONS
  scorer: str = 'pycocotools'
  num_processes: int | None = None

  def __post_init__(self):
    scoring.check_scorer(self.scorer)
    if self.num_processes is not None and self.num_processes < 0:
      raise UserError(
        'evaluation.num_processes must be 0 or more, or None, got '
        f'{self.num_processes}.'
      )
    if self.max_detections < 11:
      # COCO's other limits are 1 and 10.
      raise UserError(
        'evaluation.max_detections must be at least 11, got '
        f'{self.max_detections}.'
      )
    if self.max_images is not None and self.max_images < 1:
      raise UserError(
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
    model = model_sharding.shard_model(
      MaskRCNN.from_config(config.model), self._mesh
    )
    self._workdir = pathlib.Path(workdir)
    self._batch_size = data_checks.padded_batch_size(
      self.options.batch_size, self._mesh
    )
    data = (self.options.file_pattern, self.options.max_images)
    self.annotations_file = self.options.annotations_file
    if not self.annotations_file:
      self.annotations_file = data_checks.write_annotations(*data, workdir)
    self._num_images = data_checks.check_annotations(
      *data, self.annotations_file, model.num_classes
    )
    self._num_pictures = config.training.get('pictures', 8)
    self._log_file = config.training.get('log_file')
    self._input = config.input
    classes = data_checks.annotated_classes(self.annotations_file)
    self._names = data_checks.names_of(classes)
    self._category_ids = data_checks.category_ids(classes)
    self._losses = None
    if self.options.losses:
      self._losses = validation_losses.ValidationLosses(model, self._mesh)
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
      The 24 numbers, `eval/AP` to `eval/mask_ARl`, and the losses if they are
      wanted; {} on all hosts but the first, which scores while the others wait.
    """
    start = time.monotonic()
    variables = sharding.put_replicated(variables, self._mesh)
    losses = self._find_losses(step, variables, writer, feed)
    count = self.options.num_processes
    if count is None:
      count = default_count(self._num_images)
    values = {}
    with Workers(count) as workers:
      results, image_ids, pictures = self._detect_all(
        step, variables, writer, feed, workers
      )
      feed(f'evaluation of step {step}: scoring')
      if jax.process_index() == 0:
        evaluation_output.write(self._workdir, step, results, pictures, writer)
        values, classes = self._score(results, image_ids, workers)
        values |= losses
    if jax.process_index() == 0:
      limit = self.options.max_detections
      counted = f', maxDets {limit}' if limit != scoring.MAX_DETECTIONS else ''
      writer.say(
        f'step {step}: {len(image_ids)} of {self._num_images} images evaluated '
        f'in {time.monotonic() - start:.0f} s{counted}'
      )
      evaluation_output.report(
        self._workdir,
        step,
        values,
        classes,
        writer,
        self._log_file,
        self.options.show_classes,
      )
    # At the end of a run, a host that waits long for the last one gives up.
    collectives.barrier()
    return values

  def _find_losses(self, step, variables, writer, feed):
    """The losses of `validation_losses`; {} if they are not wanted."""
    if self._losses is None:
      return {}
    shown = writer.progress(self._batches(with_instances=True))

    def feed_number(number):
      feed(f'evaluation of step {step}: losses of batch {number}')

    return self._losses(variables, shown, feed_number)

  def _score(self, results, image_ids, workers):
    """The 24 numbers, and the report by class."""
    return coco_metrics.evaluate_classes(
      results,
      self.annotations_file,
      image_ids,
      scorer=self.options.scorer,
      workers=workers,
      max_detections=self.options.max_detections,
      min_score=self.options.min_confusion_score,
    )

  def _detect_all(self, step, variables, writer, feed, workers):
    """Results and ids of all images, and pictures of this host's first ones."""
    num_pictures = self._num_pictures if jax.process_index() == 0 else 0
    encoder = coco_results.ResultEncoder(
      workers, category_ids=self._category_ids
    )
    image_ids, pictures, seconds = [], [], []
    batches = self._batches()
    shown = writer.progress(batches)
    found = self._detect_ahead(shown, variables, seconds, feed, step)
    for number, (batch, detections) in enumerate(found, start=1):
      detections = sharding.local_rows(detections, len(batch['valid']))
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
    return (
      collectives.gather(encoder.collect()),
      collectives.gather(image_ids),
      pictures,
    )

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
    results, image_ids = (
      collectives.gather(results),
      collectives.gather(image_ids),
    )
    if jax.process_index() > 0:
      return
    values, _ = self._score(results, image_ids, workers)
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

  def _batches(self, with_instances=False):
    """This host's batches of the whole set, with the counts of bad records."""
    shared = ('canvases', 'image_dtype', 'resize', 'num_threads')
    if with_instances:
      shared += ('max_instances', 'mask_size')
    return input_batches.eval_batches(
      self.options.file_pattern,
      batch_size=self._batch_size,
      max_images=self.options.max_images,
      with_instances=with_instances,
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
