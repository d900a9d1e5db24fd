"""Large images in overlapping tiles, so that small objects stay large enough.

An image that is larger than a tile is seen in tiles, then halved and seen in
tiles again, until it fits into one tile as a whole. What a tile shows cut off
is not counted: an object whose sides are shorter than the overlap less two
margins lies whole in some tile, and a longer one is half as long at the next
level, the last of which cuts nothing. So every object is seen whole, large ones
at a coarser level, and `merging` keeps the best view of each.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
from PIL import Image

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.inference.views import View


@dataclasses.dataclass(frozen=True)
class TileOptions:
  """How large images are cut.

  Attributes:
    size: side of square tiles in pixels of the image, each brought to the
      canvas as an image of that size; None: what the canvas takes without
      scaling.
    levels: how often the image is halved at most; None: until it fits into one
      tile. A model that knows objects of one size only sees things in coarse
      levels that are not there; with fewer levels what is too long for the
      overlap is lost.
    overlap: of neighbours, share of a tile's side; the last ones overlap more.
    margin: an object that comes closer than this share of a tile's side to a
      side that cuts counts as cut.
    min_score: detections of tiles with a lower score are left out. Every tile
      of a model without a threshold has as many as it may.
  """

  size: int | None = None
  levels: int | None = None
  overlap: float = 0.25
  margin: float = 1 / 32
  min_score: float = 0.05

  def __post_init__(self):
    if self.size is not None and self.size < 32:
      raise UserError(f'size of tiles must be at least 32, got {self.size}.')
    if self.levels is not None and self.levels < 0:
      raise UserError(
        f'levels of tiles must be 0 or more, or None, got {self.levels}.'
      )
    if not 0 < 2 * self.margin <= self.overlap <= 0.75:
      raise UserError(
        'overlap of tiles must be at most 0.75 and twice the margin or more, '
        f'got overlap={self.overlap} and margin={self.margin}.'
      )


def cut_tiles(
  image: np.ndarray, tile: tuple[int, int], options: TileOptions
) -> Iterator[View]:
  """Yields the tiles of all levels; the image itself if it fits into one.

  Args:
    image: `[height, width, 3]` uint8.
    tile: (height, width) of a tile.
    options: see there.
  """
  for level in itertools.count():
    height, width = image.shape[:2]
    rows = place_tiles(height, tile[0], options.overlap)
    columns = place_tiles(width, tile[1], options.overlap)
    for top in rows:
      for left in columns:
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
    # Means of 2x2 pixels; at an odd end of what there is.
    image = np.asarray(Image.fromarray(image).reduce(2))


def place_tiles(length: int, tile: int, overlap: float) -> list[int]:
  """Where tiles along one side start: as few as overlap enough, evenly.

  Args:
    length: of the image.
    tile: length of a tile.
    overlap: share of `tile` that neighbours share at least.
  """
  if length <= tile:
    return [0]
  step = tile - math.ceil(tile * overlap)
  number = 1 + math.ceil((length - tile) / step)
  return [(length - tile) * i // (number - 1) for i in range(number)]
