"""Evaluator: detections, scores and pictures of every image of a set."""

import itertools
import pathlib
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from maskrcnn_jax import charts, files, override, visualize
from maskrcnn_jax.checkpoints import checksums
from maskrcnn_jax.datasets import categories, images
from maskrcnn_jax.distributed import arrays, collectives, model_sharding
from maskrcnn_jax.distributed import mesh as mesh_lib
from maskrcnn_jax.evaluation import (
  annotations,
  class_report,
  coco_metrics,
  coco_results,
  mask_nms,
  precision_recall,
  scores,
  scoring,
)
from maskrcnn_jax.evaluation.workers import Workers, default_count
from maskrcnn_jax.habana import metric_names
from maskrcnn_jax.inference import detection
from maskrcnn_jax.input_pipeline import batches as input_batches
from maskrcnn_jax.input_pipeline import single_images
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.training import (
  monitor,
  summary,
  validation_losses,
)
from maskrcnn_jax.training.options import EvaluationOptions


class Evaluator:
  """Evaluates variables; keeps the compiled program between the calls."""

  def __init__(self, config, workdir):
    """Checks the section `evaluation` of a config.

    Args:
      config: a ConfigDict with the sections `model, input, training,
        evaluation`.

    Raises:
      UserError: no record fits the pattern, a class id does not fit the model,
        or an image has no annotations.
      FileNotFoundError: the annotations file is missing.
    """
    options = override.make(EvaluationOptions, config.evaluation, 'evaluation')
    self.options, self._workdir = options, pathlib.Path(workdir)
    self._mesh = mesh_lib.config_mesh(config)
    model = model_sharding.shard_model(
      MaskRCNN.from_config(config.model), self._mesh
    )
    self._batch_size = arrays.padded_batch_size(options.batch_size, self._mesh)
    images.set_max_pixels(config.input.get('max_pixels'), 'input.max_pixels')
    data = (options.file_pattern, options.max_images)
    self._annotations_file = options.annotations_file or annotations.write(
      *data, workdir
    )
    self._num_images = annotations.check(
      *data, self._annotations_file, model.num_classes
    )
    self._nms = model.detections
    self._num_pictures = config.training.get('pictures', 8)
    self._log_file = config.training.get('log_file')
    self._input = {**config.input, **single_images.detection_sizes(config)}
    classes = annotations.read_classes(self._annotations_file)
    self._names = categories.names_of(classes)
    self._category_ids = categories.category_ids(classes)
    self._losses = None
    if options.losses:
      self._losses = validation_losses.ValidationLosses(model, self._mesh)
    self._detect = detection.jit_detect(model, self._mesh)

  def __call__(
    self, step: int, variables, writer, heartbeat: Callable[[str], None]
  ) -> dict[str, float]:
    """Detects, scores, and writes detections, numbers, pictures and curves.

    Args:
      heartbeat: takes a status at every batch, see `watchdog.Watchdog`.

    Returns:
      The 24 numbers, `eval/AP` to `eval/mask_ARl`, and the losses if they are
      wanted; {} on all hosts but the first, which scores while the others wait.
    """
    start = time.monotonic()

    def beat(status):
      heartbeat(f'evaluation of step {step}: {status}')

    weights = checksums.model_digest(variables)
    variables = arrays.put_replicated(variables, self._mesh)
    losses, values = {}, {}
    if self._losses:
      batches = writer.progress(self._batches(with_instances=True))
      losses = self._losses(
        variables, batches, lambda number: beat(f'losses of batch {number}')
      )
    count = self.options.num_processes
    with Workers(
      default_count(self._num_images) if count is None else count
    ) as workers:
      results, image_ids, pictures = self._detections(
        step, variables, writer, beat, workers
      )
      beat('scoring')
      if jax.process_index() == 0:
        self._write_detections(step, results, pictures, writer)
        values, classes = self._score(results, image_ids, workers)
        values |= losses
    if jax.process_index() == 0:
      limit = self.options.max_detections
      note = f', maxDets {limit}' if limit != scoring.MAX_DETECTIONS else ''
      writer.say(
        f'step {step}: {len(image_ids)} of {self._num_images} images evaluated '
        f'in {time.monotonic() - start:.0f} s{note}'
      )
      self._write_values(step, values, classes, weights, writer)
    # At the end of a run, a host that waits long for the last one gives up.
    collectives.barrier()
    return values

  def _score(self, results, image_ids, workers):
    """The 24 numbers, and the report by class."""
    return coco_metrics.evaluate_classes(
      results,
      self._annotations_file,
      image_ids,
      scorer=self.options.scorer,
      workers=workers,
      max_detections=self.options.max_detections,
      min_score=self.options.min_confusion_score,
    )

  def _detections(self, step, variables, writer, beat, workers):
    """Results and ids of all images, and pictures of this host's first ones."""
    is_first_host = jax.process_index() == 0
    num_pictures = self._num_pictures if is_first_host else 0
    encoder = coco_results.ResultEncoder(
      workers, category_ids=self._category_ids
    )
    image_ids, pictures, seconds = [], [], []
    batches = self._batches()
    found = self._detect_ahead(
      writer.progress(batches), variables, seconds, beat
    )
    for number, (batch, detections) in enumerate(found, start=1):
      detections = arrays.local_rows(detections, len(batch['valid']))
      if self._nms.nms == 'mask':
        detections = mask_nms.suppress(
          jax.tree.map(np.asarray, detections),
          batch,
          self._nms.iou_threshold,
          self._nms.max_detections,
        )
      encoder.add(detections, batch)
      image_ids += batch['image_ids'][batch['valid']].tolist()
      pictures += self._draw(batch, detections, num_pictures - len(pictures))
      every = self.options.report_every_batches
      if every and number % every == 0:
        results = collectives.gather(encoder.collect())
        ids = collectives.gather(image_ids)
        if is_first_host:
          values, _ = self._score(results, ids, workers)
          writer.print(
            f'step {step}, after {number} batches ({len(ids)} images):\n'
            f'{coco_metrics.format_table(values)}'
          )
    for kind, count in batches.counts.items():
      writer.say(f'WARNING: {count} {kind} skipped, see above')
    lines, logged = summary.inference_lines(seconds, self._batch_size)
    for line in lines:
      writer.say(line)
    if writer.enabled:
      summary.log(self._log_file, logged)
    results = collectives.gather(encoder.collect())
    return results, collectives.gather(image_ids), pictures

  def _detect_ahead(self, batches, variables, seconds, beat) -> Iterator:
    """Yields each batch with its detections.

    The device has the next batch already, so that work on this one costs no
    time. Appends the time of every batch to `seconds`.
    """
    previous, clock = None, time.monotonic()
    for number, batch in enumerate(itertools.chain(batches, [None]), start=1):
      detections = None
      if batch is not None:
        beat(f'batch {number}')
        images = {k: batch[k] for k in ('images', 'image_sizes')}
        images = arrays.put_batch(images, self._mesh)
        detections = self._detect(
          variables, images['images'], images['image_sizes']
        )
      if previous:
        jax.block_until_ready(previous[1])
        seconds.append(time.monotonic() - clock)
      # After the first call, which compiled.
      clock = time.monotonic()
      if previous:
        yield previous
      previous = batch, detections

  def _batches(self, with_instances=False):
    """This host's batches of the whole set, with the counts of bad records."""
    shared = ('canvases', 'image_dtype', 'resize', 'num_threads', 'max_pixels')
    shared += ('accurate_jpeg',)
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

  def _write_detections(self, step, results, pictures, writer) -> None:
    """Writes the COCO results of all hosts, and pictures by image id."""
    path = self._workdir / 'eval' / f'detections-{step}.json'
    coco_results.write_results(results, path)
    for image_id, picture in pictures:
      writer.image(step, f'eval/image-{image_id}', picture)
      name = f'step-{step}-image-{image_id}.png'
      visualize.save_png(self._workdir / 'pictures' / name, picture)

  def _write_values(self, step, values, classes, weights, writer) -> None:
    """Writes and prints the numbers, and warns if they collapsed."""
    folder = self._workdir / 'eval'
    path = folder / f'classes-{step}.md'
    text = class_report.document(classes, f'Step {step}, class by class')
    files.write_text(path, text)
    text = class_report.to_json(classes, weights)
    files.write_text(path.with_suffix('.json'), text)
    figure = precision_recall.chart(classes)
    charts.save(figure, folder / f'precision-recall-{step}.png')
    writer.image(step, 'eval/precision_recall', charts.to_pixels(figure))
    # Last, as it marks the step as evaluated.
    writer.scalars(step, values)
    writer.flush()
    summary.log(self._log_file, metric_names.evaluated(values))
    if scores.LOSS in values:
      terms = ', '.join(
        f'{term} {values[f"{scores.LOSS}_{term}"]:.4g}' for term in scores.TERMS
      )
      writer.say(f'validation loss {values[scores.LOSS]:.4g} ({terms})')
    writer.print(coco_metrics.format_table(values))
    if len(classes.names) <= self.options.show_classes:
      writer.print(
        f'{class_report.format_classes(classes)}\n'
        f'{class_report.caption(classes)}:\n'
        f'{class_report.format_confusion(classes)}'
      )
    else:
      writer.say(f'AP by class and confusions: {path}')
    warning = monitor.collapsed_score(self._workdir, step, values)
    if warning:
      writer.say(f'WARNING: {warning}')
    charts.learning_curves(self._workdir)
