"""Drawn pictures of flat shapes, with the visible mask of every shape.

A picture is 128 x 128 pixels: one to eight shapes of 12 to 64 pixels on a
textured ground, later shapes in front of earlier ones. Classes differ in
outline only; colour, texture, size, rotation and position are sampled
independently of the class. A picture depends on (seed, index) alone.
"""

import dataclasses
import io

import numpy as np
from PIL import Image, ImageDraw

SIZE = 128
MAX_SHAPES = 8
SMALLEST, LARGEST = 12, 64  # Longer side of a shape's box, in pixels.
CLASS_NAMES = ('disc', 'square', 'triangle', 'cross')  # Ids 1, 2, 3, 4.

# At least this much of a shape stays visible.
_MIN_VISIBLE_SHARE = 0.3
_MIN_VISIBLE_PIXELS = 30
_SUPERSAMPLING = 4
_TRIES = 8
# Fraction of the shapes that are placed near an earlier one on purpose.
_CROWDING = 0.35
_MIN_COLOUR_DISTANCE = 90.0


def _regular_polygon(corners):
  angles = 2 * np.pi * np.arange(corners) / corners
  return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def _cross(arm=0.34):
  quarter = np.array([[1, -arm], [1, arm], [arm, arm]])
  turn = np.array([[0, 1], [-1, 0]])
  return np.concatenate(
    [quarter @ np.linalg.matrix_power(turn, k) for k in range(4)]
  )


_OUTLINES = {
  'disc': _regular_polygon(48),
  'square': np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]),
  'triangle': _regular_polygon(3),
  'cross': _cross(),
}


@dataclasses.dataclass(frozen=True)
class Drawing:
  """A picture and the shapes in it.

  Attributes:
    image: `[SIZE, SIZE, 3]` uint8.
    masks: `[num_shapes, SIZE, SIZE]` bool, the visible part of every shape.
    classes: `[num_shapes]` int64, 1..len(CLASS_NAMES).
    whole_areas: `[num_shapes]` int64, pixels including covered ones.
  """

  image: np.ndarray
  masks: np.ndarray
  classes: np.ndarray
  whole_areas: np.ndarray

  @property
  def boxes(self) -> np.ndarray:
    """`[num_shapes, 4]` float32, the tight boxes of the visible masks."""
    return np.array([tight_box(mask) for mask in self.masks], np.float32)


def tight_box(mask):
  """The smallest `(y1, x1, y2, x2)` that holds every pixel of a mask."""
  rows = np.flatnonzero(mask.any(axis=1))
  columns = np.flatnonzero(mask.any(axis=0))
  return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def draw(seed: int, index: int) -> Drawing:
  """Picture number `index` of the series `seed`."""
  rng = np.random.default_rng((seed, index))
  ground, second = rng.uniform(20, 235, (2, 3))
  mix = 0.15 * _texture(rng, SIZE, SIZE)[..., None]
  image = (ground + mix * (second - ground)).astype(np.float32)
  colours, masks, classes, whole_areas = [ground], [], [], []
  for _ in range(rng.integers(1, MAX_SHAPES + 1)):
    class_id = int(rng.integers(1, len(CLASS_NAMES) + 1))
    alpha = _silhouette(rng, class_id)
    place = _find_place(rng, alpha > 0.5, masks, whole_areas)
    if place is None:
      continue
    colours.append(_new_colour(rng, colours))
    _paint(rng, image, alpha, place, colours[-1])
    mask = _at(alpha > 0.5, place)
    masks = [earlier & ~mask for earlier in masks] + [mask]
    classes.append(class_id)
    whole_areas.append(np.count_nonzero(mask))
  image += rng.normal(0, 5, (SIZE, SIZE, 1)).astype(np.float32)
  return Drawing(
    np.clip(image, 0, 255).astype(np.uint8),
    np.array(masks),
    np.array(classes, np.int64),
    np.array(whole_areas, np.int64),
  )


def _silhouette(rng, class_id):
  """Coverage of every pixel of a shape's box, `[height, width]` in 0..1."""
  points = _OUTLINES[CLASS_NAMES[class_id - 1]] * [1.0, rng.uniform(0.75, 1.0)]
  angle = rng.uniform(0, 2 * np.pi)
  cosine, sine = np.cos(angle), np.sin(angle)
  points = points @ np.array([[cosine, sine], [-sine, cosine]])
  points = points - points.min(axis=0)
  points *= rng.uniform(SMALLEST, LARGEST) / points.max()
  width, height = np.ceil(points.max(axis=0)).astype(int)
  canvas = Image.new('L', (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
  corners = [tuple(point) for point in (points * _SUPERSAMPLING).tolist()]
  ImageDraw.Draw(canvas).polygon(corners, fill=255)
  return np.asarray(canvas.reduce(_SUPERSAMPLING), np.float32) / 255


def _at(patch, place):
  """The patch on an empty picture."""
  full = np.zeros((SIZE, SIZE), bool)
  y, x = place
  full[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
  return full


def _find_place(rng, patch, masks, whole_areas):
  """A corner that leaves enough of every earlier shape, or None."""
  free = np.array([SIZE, SIZE]) - patch.shape
  for _ in range(_TRIES):
    place = rng.integers(0, free + 1)
    if masks and rng.random() < _CROWDING:
      pixels = np.argwhere(masks[rng.integers(len(masks))])
      # The new shape's box holds a visible pixel of the earlier one.
      near = pixels[rng.integers(len(pixels))]
      place = near - rng.integers(0, patch.shape)
      place = np.clip(place, 0, free)
    covering = _at(patch, place)
    visible = [np.count_nonzero(mask & ~covering) for mask in masks]
    if all(
      count >= max(_MIN_VISIBLE_SHARE * whole, _MIN_VISIBLE_PIXELS)
      for count, whole in zip(visible, whole_areas)
    ):
      return place
  return None


def _new_colour(rng, colours):
  """A colour far from the given ones; the farthest tried if none is far."""
  tried = rng.uniform(20, 235, (_TRIES, 3))
  distances = np.linalg.norm(tried[:, None] - np.array(colours), axis=-1)
  distances = distances.min(axis=1)
  far = np.flatnonzero(distances >= _MIN_COLOUR_DISTANCE)
  return tried[far[0] if far.size else np.argmax(distances)]


def _paint(rng, image, alpha, place, colour):
  """Paints a shape over the picture, in place."""
  height, width = alpha.shape
  y, x = place
  shade = 1 + 0.15 * _texture(rng, height, width)[..., None]
  window = image[y : y + height, x : x + width]
  window += alpha[..., None] * (colour.astype(np.float32) * shade - window)


def _texture(rng, height, width):
  """Stripes or clouds, `[height, width]` float32 in about -1..1."""
  if rng.random() < 0.5:
    angle, wave = rng.uniform(0, np.pi), rng.uniform(5, 20)
    y = np.sin(angle) * np.arange(height, dtype=np.float32)[:, None]
    x = np.cos(angle) * np.arange(width, dtype=np.float32)
    phase = rng.uniform(0, 2 * np.pi)
    return np.sin((y + x) * np.float32(2 * np.pi / wave) + np.float32(phase))
  cells = rng.uniform(-1, 1, (int(rng.integers(3, 12)),) * 2)
  clouds = Image.fromarray(cells.astype(np.float32))
  return np.asarray(clouds.resize((width, height), Image.Resampling.BICUBIC))


def encode_image(image: np.ndarray) -> bytes:
  """JPEG bytes of a picture, at full colour resolution."""
  stream = io.BytesIO()
  Image.fromarray(image).save(stream, 'JPEG', quality=92, subsampling=0)
  return stream.getvalue()
