"""Predictor: a trained model applied to NumPy images of any size."""

import collections
import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from maskrcnn_jax import override
from maskrcnn_jax.checkpoints import (
  compatibility,
  score_thresholds,
  store,
)
from maskrcnn_jax.datasets import value_range
from maskrcnn_jax.distributed import arrays
from maskrcnn_jax.distributed import mesh as mesh_lib
from maskrcnn_jax.errors import UserError, invalid
from maskrcnn_jax.inference import detection
from maskrcnn_jax.inference import views as views_lib
from maskrcnn_jax.inference.views import TileOptions, View
from maskrcnn_jax.input_pipeline import resizing, single_images
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.structures import Detections

# Batches on the device while the host prepares the next.
_AHEAD = 1


@dataclasses.dataclass
class _Image:
  """An image whose views are being detected."""

  index: int
  size: tuple[int, int]  # (height, width)
  views: Sequence[View]
  # In pixels of the image, by number of the view.
  found: dict[int, Detections] = dataclasses.field(default_factory=dict)

  @property
  def is_tiled(self) -> bool:
    return any(view.is_cut_out for view in self.views)


class Predictor:
  """Detects objects in images of any size.

  An image is resized to a canvas of the config exactly as in an evaluation, so
  it gives the same detections. There is one compilation per canvas.

  Attributes:
    config: of the run that made the weights.
    class_names: by class id; empty if none were known.
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
    min_score: float | str = 0.0,
    detections: Mapping[str, Any] | None = None,
  ):
    """Reads a model; compiles nothing yet.

    Args:
      source: a workdir, of a run or by `import_weights`, whose newest
        checkpoint is taken; or one checkpoint (`WORKDIR/checkpoints/STEP`).
      batch_size: views per batch; rounded up to a multiple of the number of
        devices.
      tile: cut images that are larger than a tile, see `views`; None: detect in
        all of every image at once.
      scales: detect in every view at each of these sizes, relative to that of
        an evaluation, and merge the detections, see `views.merge`.
      mirror: detect in every view also mirrored.
      num_devices: that share a batch; None: all of this process.
      min_score: detections below are dropped; `'auto'`: below the recommended
        score of their class, see `checkpoints.score_thresholds`.
      detections: fields of `models.detections.DetectionOptions` to change, such
        as `{'nms': 'all', 'max_detections': 300}`.

    Raises:
      FileNotFoundError: there is no checkpoint.
      CorruptCheckpointError: its checksums do not match.
      UserError: an argument is wrong, or the source is a file of weights.
    """
    if batch_size < 1:
      raise invalid('batch_size', batch_size, 'at least 1')
    if not scales or min(scales) <= 0:
      raise invalid('scales', scales, 'numbers above 0')
    if any(os.path.isfile(f'{source}{suffix}') for suffix in ('', '.index')):
      raise UserError(
        f'{source} holds weights alone; maskrcnn-jax import_weights '
        f'--source {source} --output DIR makes a workdir of it.',
        path=source,
      )
    self._min_score = min_score
    if min_score == 'auto':
      self._min_score = score_thresholds.read(source)
    variables, self.config = store.restore(source)
    self._source = source
    self.class_names = store.read_classes(source)
    self.category_ids = store.read_category_ids(source)
    model = MaskRCNN.from_config(self.config.model)
    changes = override.changes(
      model.detections, detections or {}, 'model.detections'
    )
    self._model = model.clone(
      detections=dataclasses.replace(model.detections, **changes)
    )
    self._tile, self._scales, self._mirror = tile, tuple(scales), mirror
    inputs = self.config.input
    sizes = single_images.detection_sizes(self.config)
    resize = resizing.resize_options(sizes['resize'])
    self._canvases = sizes['canvases']
    self._fits = [resizing.fit_size(x, resize) for x in self._canvases]
    self._fit_image = functools.partial(
      single_images.fit_image,
      image_dtype=inputs.get('image_dtype', 'uint8'),
      options=resize,
    )
    self._mesh = mesh_lib.make_mesh(num_devices)
    parts = self._mesh.shape['data']
    self._batch_size = -(-batch_size // parts) * parts
    self._variables = arrays.put_replicated(variables, self._mesh)
    self._detect = detection.jit_detect(self._model, self._mesh)

  def __call__(self, images) -> Any:
    """Detections of one image, or of each of several.

    Args:
      images: one image or a sequence of images: uint8 arrays `[h, w, 3]` RGB,
        `[h, w, 4]` with alpha, which is dropped, or `[h, w]` grey; or PIL
        images, converted by their mode (`value_range.to_rgb`), whose EXIF
        rotation is not applied. Sizes may differ.

    Returns:
      `Detections` in pixels of the image, without a batch axis or padding, best
      first; for several images a list of them.
    """
    is_one = isinstance(images, Image.Image) or (
      not isinstance(images, (list, tuple)) and np.ndim(images) <= 3
    )
    if is_one:
      return self([images])[0]
    found = dict(self.stream(images))
    return [found[index] for index in range(len(found))]

  def stream(
    self, images: Iterable[np.ndarray]
  ) -> Iterator[tuple[int, Detections]]:
    """Yields (index, detections) of every image as soon as it is complete.

    Images are read one after the other, few of them ahead. Those of another
    canvas may overtake others, so the indices are not always in order.
    """
    waiting, running = collections.defaultdict(list), collections.deque()
    for row in self._rows(images):
      *_, inputs = row
      rows = waiting[inputs['images'].shape]
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

  def _rows(self, images) -> Iterator[tuple[_Image, int, dict]]:
    """Yields the views of all images: image, number of the view, inputs."""
    for index, pixels in enumerate(images):
      pixels = _as_rgb(pixels)
      views = [
        dataclasses.replace(tile, scale=scale, mirrored=mirrored)
        for tile in self._tiles(pixels)
        for scale in self._scales
        for mirrored in (False, True)[: 1 + self._mirror]
      ]
      image = _Image(index, pixels.shape[:2], views)
      for number, view in enumerate(views):
        yield image, number, self._fit(view)

  def _tiles(self, image) -> Iterable[View]:
    if self._tile is None:
      return [View(image)]
    size = self._fits[single_images.choose_canvas(image.shape[:2], self._fits)]
    if self._tile.size is not None:
      size = (self._tile.size, self._tile.size)
    return views_lib.cut_tiles(image, size, self._tile)

  def _fit(self, view: View) -> dict[str, np.ndarray]:
    """The view on its canvas."""
    choice = single_images.choose_canvas(view.pixels.shape[:2], self._fits)
    canvas, fit = self._canvases[choice], self._fits[choice]
    if view.scale != 1:
      fit = tuple(max(1, round(side * view.scale)) for side in fit)
      # A larger one where the image does not fit any more.
      canvas = tuple(max(a, -(-b // 32) * 32) for a, b in zip(canvas, fit))
    return self._fit_image(view.seen(), canvas, fit)

  def _start(self, rows: Sequence[tuple]) -> Detections:
    """Sends a batch to the device; rows of zeros fill it up."""
    batch = {}
    for key in ('images', 'image_sizes'):
      filled = [inputs[key] for *_, inputs in rows]
      filled += [np.zeros_like(filled[0])] * (self._batch_size - len(rows))
      batch[key] = np.stack(filled)
    for *_, inputs in rows:
      del inputs['images']  # The device has it now.
    batch = arrays.put_batch(batch, self._mesh)
    with compatibility.fitting(self._source):
      return self._detect(
        self._variables, batch['images'], batch['image_sizes']
      )

  def _finish(
    self, rows: Sequence[tuple], detections: Detections
  ) -> Iterator[tuple[int, Detections]]:
    """Takes the detections of a batch; yields images that are complete."""
    detections = jax.tree.map(np.asarray, detections)
    for row, (image, number, inputs) in enumerate(rows):
      found = image.views[number].to_image(
        detections.image(row), inputs['scales'], image.size
      )
      if image.is_tiled:
        keep = found.scores >= self._tile.min_score
        found = jax.tree.map(lambda x, keep=keep: x[keep], found)
      image.found[number] = found
      if len(image.found) == len(image.views):
        merged = self._merge(image)
        yield image.index, views_lib.with_score(merged, self._min_score)

  def _merge(self, image: _Image) -> Detections:
    parts = [image.found[number] for number in range(len(image.views))]
    options = self._model.detections
    if len(parts) == 1 and options.nms != 'mask':
      return parts[0]
    # A tiled image may hold any number of objects.
    limit = None if image.is_tiled else options.max_detections
    how = options.iou_threshold, limit, options.nms, image.size
    return views_lib.merge(parts, *how)


def _as_rgb(image) -> np.ndarray:
  """`[h, w, 3]` uint8; grey is repeated and alpha dropped, as for training."""
  if isinstance(image, Image.Image):
    image = value_range.to_rgb(image)
  image = np.asarray(image)
  is_image = image.ndim == 2 or image.shape[2:] in ((3,), (4,))
  if image.dtype != np.uint8 or not is_image or 0 in image.shape:
    raise ValueError(
      'images must be PIL images, or uint8 arrays [h, w, 3], [h, w, 4] or '
      f'[h, w] with pixels, got {image.dtype} {image.shape}.'
    )
  return np.stack([image] * 3, axis=-1) if image.ndim == 2 else image[..., :3]
