"""A trained model applied to images: NumPy in, detections of the image out."""

import collections
import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from maskrcnn_jax.checkpoints import store as checkpoint
from maskrcnn_jax.distributed import mesh as sharding
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.inference import merging, tiling, views
from maskrcnn_jax.inference.tiling import TileOptions
from maskrcnn_jax.models import override
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.structures import Detections
from maskrcnn_jax.training import train_step

# Batches on the device while the host prepares the next.
_AHEAD = 1


@dataclasses.dataclass
class _Job:
  """An image whose views are under way.

  Attributes:
    index: of the image.
    image_size: (height, width).
    is_tiled: whether it is cut into tiles.
    parts: what was found so far, by number of the view.
    num_views: how many there are; None until all are given out.
  """

  index: int
  image_size: tuple[int, int]
  is_tiled: bool = False
  parts: dict[int, Detections] = dataclasses.field(default_factory=dict)
  num_views: int | None = None


@dataclasses.dataclass(frozen=True)
class _Row:
  """A view as a row of a batch."""

  job: _Job
  number: int
  view: views.View
  inputs: dict[str, np.ndarray]


class Predictor:
  """Detects objects in images of any size.

  An image is brought to a canvas of the config exactly as for an evaluation, so
  it gives the same detections. There is one compilation per canvas.

  Attributes:
    config: of the run that made the weights.
    class_names: name of each class by its number; empty if none were known.
    category_ids: of the classes that had another id in the annotations.
  """

  def __init__(
    self,
    source,
    batch_size: int = 1,
    tile: TileOptions | None = None,
    scales: Sequence[float] = (1.0,),
    mirror: bool = False,
    num_devices: int | None = None,
  ):
    """Reads a model; compiles nothing yet.

    Args:
      source: a workdir, of a run or by `import_weights`, whose newest
        checkpoint is taken; or one checkpoint (`WORKDIR/checkpoints/STEP`).
      batch_size: views that are detected together; the next multiple of the
        number of devices is taken.
      tile: cut images that are larger than a tile, see `tiling`; None: see all
        of every image at once.
      scales: see every view at each of these sizes, relative to that of an
        evaluation, and merge what is found, see `merging`.
      mirror: see every view also mirrored.
      num_devices: that share a batch; None: all of this process.

    Raises:
      FileNotFoundError: there is no checkpoint.
      CorruptCheckpointError: it is not what was saved.
      ValueError: an argument is wrong, or the source is a file of weights.
    """
    # TensorFlow, which resizes here as for an evaluation, is not loaded by the
    # mere name `maskrcnn_jax.Predictor`.
    from maskrcnn_jax.input_pipeline import single_images, transforms

    if batch_size < 1:
      raise UserError(f'batch_size must be at least 1, got {batch_size}.')
    if not scales or min(scales) <= 0:
      raise UserError(f'scales must be numbers above 0, got {scales}.')
    for suffix in ('', '.index'):
      if os.path.isfile(f'{source}{suffix}'):
        raise UserError(
          f'{source} holds weights alone; maskrcnn-jax import_weights '
          f'--source {source} --output DIR makes a workdir of it.'
        )
    variables, self.config = checkpoint.restore(source)
    self.class_names = checkpoint.read_classes(source)
    self.category_ids = checkpoint.read_category_ids(source)
    self._model = MaskRCNN.from_config(self.config.model)
    self._tile, self._scales, self._mirror = tile, tuple(scales), mirror
    inputs = self.config.input
    resize = override.make(
      transforms.ResizeOptions, inputs.get('resize') or {}, 'input.resize'
    )
    self._canvases = tuple(inputs.canvases)
    self._fits = [transforms.fit_size(x, resize) for x in self._canvases]
    self._choose_canvas = single_images.choose_canvas
    self._fit_image = functools.partial(
      single_images.fit_image,
      image_dtype=inputs.get('image_dtype', 'uint8'),
      options=resize,
    )
    self._mesh = sharding.make_mesh(num_devices)
    parts = sharding.num_parts(self._mesh)
    self._batch_size = -(-batch_size // parts) * parts
    self._variables = sharding.put_replicated(variables, self._mesh)
    places = sharding.input_shardings(self._mesh)
    everywhere = sharding.replicated(self._mesh)
    self._detect = jax.jit(
      functools.partial(train_step.detect, self._model),
      in_shardings=(everywhere, places['images'], places['image_sizes']),
      out_shardings=everywhere,
    )

  def __call__(self, images) -> Any:
    """Detections of one image, or of each of several.

    Args:
      images: one array or a sequence of arrays, `[h, w, 3]` RGB, `[h, w, 4]`
        with alpha, which is dropped, or `[h, w]` grey; uint8. Sizes may differ.

    Returns:
      `Detections` in pixels of the image, without a batch axis or padding, best
      first; for several images a list of them.
    """
    if not isinstance(images, (list, tuple)) and np.ndim(images) <= 3:
      return self([images])[0]
    found = dict(self.stream(images))
    return [found[index] for index in range(len(found))]

  def stream(
    self, images: Iterable[np.ndarray]
  ) -> Iterator[tuple[int, Detections]]:
    """Yields (index, detections) of every image as soon as they are there.

    Images are read one after the other, few of them ahead. Those of another
    canvas may overtake others, so the indices are not always in order.

    Args:
      images: see `__call__`.
    """
    waiting, running = collections.defaultdict(list), collections.deque()
    for row in self._rows(images):
      rows = waiting[row.inputs['images'].shape]
      rows.append(row)
      if len(rows) == self._batch_size:
        running.append((rows[:], self._start(rows)))
        rows.clear()
      while len(running) > _AHEAD:
        yield from self._finish(*running.popleft())
    running.extend(
      (rows, self._start(rows)) for rows in waiting.values() if rows
    )
    while running:
      yield from self._finish(*running.popleft())

  def _rows(self, images) -> Iterator[_Row]:
    """The views of all images as rows of batches."""
    for index, image in enumerate(images):
      image = _as_rgb(image)
      job = _Job(index, image.shape[:2])
      number, ahead = 0, None
      for view in self._views(image):
        job.is_tiled |= view.is_cut_out
        if ahead is not None:
          yield ahead
        ahead = _Row(job, number, view, self._fit(view))
        number += 1
      # Known before the last one is given out, and so before all are done.
      job.num_views = number
      yield ahead

  def _views(self, image) -> Iterator[views.View]:
    tiles = [views.View(image)]
    if self._tile is not None:
      size = self._fits[self._choose_canvas(image.shape[:2], self._fits)]
      if self._tile.size is not None:
        size = (self._tile.size, self._tile.size)
      tiles = tiling.cut_tiles(image, size, self._tile)
    for tile in tiles:
      yield from views.augment(tile, self._scales, self._mirror)

  def _fit(self, view: views.View) -> dict[str, np.ndarray]:
    """The view on its canvas."""
    choice = self._choose_canvas(view.pixels.shape[:2], self._fits)
    canvas, fit = self._canvases[choice], self._fits[choice]
    if view.scale != 1:
      fit = tuple(max(1, round(side * view.scale)) for side in fit)
      # A larger one where the image does not fit any more.
      canvas = tuple(max(a, -(-b // 32) * 32) for a, b in zip(canvas, fit))
    return self._fit_image(view.seen(), canvas, fit)

  def _start(self, rows: Sequence[_Row]) -> Detections:
    """Sends a batch to the device; rows of zeros fill it up."""
    batch = {}
    for key in ('images', 'image_sizes'):
      filled = [row.inputs[key] for row in rows]
      filled += [np.zeros_like(filled[0])] * (self._batch_size - len(rows))
      batch[key] = np.stack(filled)
    for row in rows:
      del row.inputs['images']  # The device has it now.
    batch = sharding.put_batch(batch, self._mesh)
    return self._detect(self._variables, batch['images'], batch['image_sizes'])

  def _finish(
    self, rows: Sequence[_Row], detections: Detections
  ) -> Iterator[tuple[int, Detections]]:
    """Takes the detections of a batch; yields images that are complete."""
    detections = jax.tree.map(np.asarray, detections)
    for number, row in enumerate(rows):
      job = row.job
      found = row.view.to_image(
        detections.image(number), row.inputs['scales'], job.image_size
      )
      if job.is_tiled:
        found = _above(found, self._tile.min_score)
      job.parts[row.number] = found
      if len(job.parts) == job.num_views:
        yield job.index, self._merge(job)

  def _merge(self, job: _Job) -> Detections:
    parts = [job.parts[number] for number in range(job.num_views)]
    if len(parts) == 1:
      return parts[0]
    options = self._model.detections
    # A tiled image may hold any number of objects.
    limit = None if job.is_tiled else options.max_detections
    return merging.merge(parts, options.iou_threshold, limit)


def _as_rgb(image) -> np.ndarray:
  """`[h, w, 3]` uint8; grey is repeated and alpha dropped, as for training."""
  image = np.asarray(image)
  is_grey = image.ndim == 2
  if image.dtype != np.uint8 or not (
    is_grey or (image.ndim == 3 and image.shape[-1] in (3, 4))
  ):
    raise UserError(
      'images must be uint8 arrays [h, w, 3], [h, w, 4] or [h, w], got '
      f'{image.dtype} {image.shape}.'
    )
  if 0 in image.shape:
    raise UserError(f'images must have a pixel, got {image.shape}.')
  return np.stack([image] * 3, axis=-1) if is_grey else image[..., :3]


def _above(found: Detections, min_score: float) -> Detections:
  return jax.tree.map(lambda x: x[found.scores >= min_score], found)
