"""Views of an image: tiles, scales and mirror images, and their merging.

The network sees views. Detections in them are brought back to pixels of the
image by `View.to_image`, and `merge` keeps the best view of every object.

An image larger than a tile is cut into overlapping tiles, then halved and cut
again, until one tile holds all of it. Detections at a cut side are dropped: an
object whose sides are shorter than the overlap less two margins lies whole in
some tile, and a longer one is half as long at the next level, the last of which
cuts nothing. So every object is seen whole, large ones at a coarser level.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from PIL import Image

from maskrcnn_jax.errors import invalid
from maskrcnn_jax.evaluation import coco_results, mask_nms
from maskrcnn_jax.ops import nms as nms_ops
from maskrcnn_jax.structures import Detections


@dataclasses.dataclass(frozen=True)
class TileOptions:
  """Options for cutting large images into tiles.

  Attributes:
    size: side of square tiles in pixels of the image, each resized to the
      canvas as an image of that size; None: what the canvas takes unscaled.
    levels: largest number of halvings; None: until the image fits into one
      tile. A model trained on objects of one size reports false positives at
      coarse levels; with fewer levels, objects longer than the overlap are
      missed.
    overlap: of neighbouring tiles, as a share of a tile's side; the last ones
      overlap more.
    margin: detections closer than this share of a tile's side to a cut side
      are dropped.
    min_score: detections in tiles with a lower score are dropped. A model
      without a score threshold returns `max_detections` for every tile.
  """

  size: int | None = None
  levels: int | None = None
  overlap: float = 0.25
  margin: float = 1 / 32
  min_score: float = 0.05

  def __post_init__(self):
    if self.size is not None and self.size < 32:
      raise invalid('tile.size', self.size, 'at least 32')
    if self.levels is not None and self.levels < 0:
      raise invalid('tile.levels', self.levels, '0 or more, or None')
    if not 0 < 2 * self.margin <= self.overlap <= 0.75:
      wanted = f'at most 0.75 and at least twice tile.margin={self.margin}'
      raise invalid('tile.overlap', self.overlap, wanted)


@dataclasses.dataclass(frozen=True)
class View:
  """A part of an image as the network sees it."""

  pixels: np.ndarray  # `[height, width, 3]` uint8, not mirrored.
  # (y, x) of their first pixel in the image, or in the reduced one.
  start: tuple[int, int] = (0, 0)
  reduced: int = 1  # Side of a pixel, in pixels of the image.
  # Pixels along each side (top, left, bottom, right) in which detections are
  # dropped, because the image goes on there; else 0.
  margins: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
  scale: float = 1.0  # For the network, relative to that of an evaluation.
  mirrored: bool = False  # Left and right are exchanged for the network.

  @property
  def is_cut_out(self) -> bool:
    """True if the image goes on beyond a side."""
    return any(self.margins)

  def seen(self) -> np.ndarray:
    """The pixels as the network sees them, before they are resized."""
    return self.pixels[:, ::-1] if self.mirrored else self.pixels

  def to_image(
    self, found: Detections, scales: np.ndarray, image_size: tuple[int, int]
  ) -> Detections:
    """Detections in pixels of the image, without those that a side cuts.

    Args:
      found: detections in this view, in input pixels, valid rows only.
      scales: `[2]` input pixels per pixel of the view, (y, x).
      image_size: (height, width) of the image.
    """
    boxes = coco_results.original_boxes(found.boxes, scales)
    masks = found.masks
    if self.mirrored:
      y1, x1, y2, x2 = boxes.T
      width = np.float32(self.pixels.shape[1])
      boxes = np.stack([y1, width - x2, y2, width - x1], axis=-1)
      masks = None if masks is None else masks[:, :, ::-1]
    whole = self._are_whole(boxes)
    if self.start != (0, 0) or self.reduced > 1:
      boxes = (boxes + np.float32(self.start * 2)) * np.float32(self.reduced)
      # The last pixel of a reduced image may reach beyond the image.
      boxes = np.minimum(boxes, np.float32(tuple(image_size) * 2))
    return jax.tree.map(
      lambda x: x[whole], found.replace(boxes=boxes, masks=masks)
    )

  def _are_whole(self, boxes: np.ndarray) -> np.ndarray:
    """`[n]` bool, False for boxes `[n, 4]` that reach a side that cuts."""
    margins = np.array(self.margins)
    height, width = self.pixels.shape[:2]
    distances = np.array([0, 0, height, width]) - boxes
    distances[:, :2] *= -1  # How far inside its side every edge lies.
    return np.all((distances >= margins) | (margins == 0), axis=1)


def cut_tiles(
  image: np.ndarray, tile: tuple[int, int], options: TileOptions
) -> Iterator[View]:
  """Yields the tiles of all levels; the image itself if it fits into one.

  Args:
    image: `[height, width, 3]` uint8.
    tile: (height, width) of a tile.
    options: overlap, margin and levels.
  """
  for level in itertools.count():
    height, width = image.shape[:2]
    rows = tile_starts(height, tile[0], options.overlap)
    columns = tile_starts(width, tile[1], options.overlap)
    for top, left in itertools.product(rows, columns):
      pixels = image[top : top + tile[0], left : left + tile[1]]
      bottom, right = top + pixels.shape[0], left + pixels.shape[1]
      inner = (top > 0, left > 0, bottom < height, right < width)
      yield View(
        pixels=pixels,
        start=(top, left),
        reduced=2**level,
        margins=tuple(
          options.margin * side if cuts else 0.0
          for side, cuts in zip(tile * 2, inner)
        ),
      )
    if len(rows) == len(columns) == 1 or level == options.levels:
      return
    # Means of 2x2 pixels; of fewer at an odd end.
    image = np.asarray(Image.fromarray(image).reduce(2))


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
  """Starts of tiles along one side: as few as overlap enough, evenly spaced.

  Args:
    length: of the image, in pixels.
    tile: of a tile.
    overlap: smallest overlap of neighbours, as a share of `tile`.
  """
  if length <= tile:
    return [0]
  step = tile - math.ceil(tile * overlap)
  number = 1 + math.ceil((length - tile) / step)
  return [(length - tile) * i // (number - 1) for i in range(number)]


def merge(
  parts: Sequence[Detections],
  iou_threshold: float,
  max_detections: int | None = None,
  nms: str = 'class',
  image_size: tuple[int, int] | None = None,
) -> Detections:
  """NMS over the detections of all views, best first.

  Of several views of an object the one with the highest score gives score, box
  and mask; nothing is averaged.

  Args:
    parts: at least one, all in pixels of the same image, valid rows only.
    iou_threshold: see `ops.nms.nms`.
    max_detections: largest number to keep; None: all.
    nms: see `models.detections.DetectionOptions`.
    image_size: (height, width) of the image, for NMS by masks.
  """
  union = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  if nms == 'mask':
    rows = mask_nms.keep(union, image_size, iou_threshold, max_detections)
    return jax.tree.map(lambda x: x[rows], union)
  groups, kept = union.classes if nms == 'class' else 0 * union.classes, []
  for group in np.unique(groups):
    rows = np.flatnonzero(groups == group)
    kept += [rows[_keep(union.boxes[rows], union.scores[rows], iou_threshold)]]
  rows = np.sort(np.concatenate([*kept, np.zeros(0, int)]))
  rows = rows[np.argsort(-union.scores[rows], kind='stable')][:max_detections]
  return jax.tree.map(lambda x: x[rows], union)


def with_score(
  found: Detections, min_score: float | Mapping[int | None, float]
) -> Detections:
  """The detections of one image with at least this score.

  Args:
    found: valid rows only.
    min_score: of all classes; or by class id, and for the others by None.
  """
  keep = found.scores >= least_scores(found.classes, min_score)
  return jax.tree.map(lambda x: x[keep], found)


def least_scores(
  classes: np.ndarray, min_score: float | Mapping[int | None, float]
) -> np.ndarray:
  """The `min_score` of each of the classes `[n]`, float32; see `with_score`."""
  least = min_score
  if isinstance(min_score, Mapping):
    common = min_score[None]
    least = [min_score.get(x, common) for x in classes.tolist()]
  return np.broadcast_to(np.asarray(least, np.float32), classes.shape)


def _keep(boxes, scores, iou_threshold) -> np.ndarray:
  """Rows of one class that NMS keeps."""
  count = len(boxes)
  # Powers of two, so that few lengths are ever compiled.
  padding = (1 << (count - 1).bit_length()) - count
  rows, kept = _nms(
    np.pad(boxes, ((0, padding), (0, 0))),
    np.pad(scores, (0, padding)),
    np.arange(count + padding) < count,
    iou_threshold,
  )
  return np.asarray(rows)[np.asarray(kept)]


@functools.partial(jax.jit, static_argnames='iou_threshold')
def _nms(boxes, scores, valid, iou_threshold):
  # Memory is linear in the boxes, of which thousands are usual here.
  rows, _, kept = nms_ops.classwise_nms(
    boxes[:, None],
    scores[:, None],
    valid[:, None],
    iou_threshold,
    max_outputs=len(boxes),
  )
  return rows, kept
