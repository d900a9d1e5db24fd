"""Pictures of detections and ground truth over images.

Boxes are continuous: an edge at x1 lies between the pixels x1 - 1 and x1. Masks
of detections cover the pixels that evaluation counts.
"""

import colorsys
import itertools
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from maskrcnn_jax import files, fonts
from maskrcnn_jax.evaluation import mask_pasting
from maskrcnn_jax.structures import Detections, Instances

# Share of the color inside a mask.
OPACITY = 0.4
# Smaller images are enlarged to about this many pixels.
_PICTURE_SIDE = 512

ClassNames = Mapping[int, str] | Sequence[str] | None


def draw(
  image: np.ndarray,
  detections: Detections,
  class_names: ClassNames = None,
  min_score: float = 0.5,
  enlarge: int = 1,
  track_ids: np.ndarray | None = None,
) -> np.ndarray:
  """A picture of the image with its detections, the best on top.

  Args:
    image: `[height, width, 3]`, 0..255.
    detections: of one image (`Detections.image`), in pixels of this image.
    class_names: name of each class by its number; the number by default.
    min_score: detections below are not drawn.
    enlarge: factor of enlargement; labels then cover less of a small image.
    track_ids: `[n]`, see `Tracker`; each has a color that stays, and begins the
      label. Detections with 0 are not drawn.

  Returns:
    `[height * enlarge, width * enlarge, 3]` uint8.
  """
  drawn = detections.valid & (detections.scores >= min_score)
  if track_ids is not None:
    drawn = drawn & (track_ids > 0)
  rows = np.flatnonzero(drawn)
  rows = rows[np.argsort(-detections.scores[rows], kind='stable')]
  boxes = detections.boxes[rows]

  def mask_of(index):
    masks, part = detections.masks[rows[[index]]], boxes[[index]]
    return mask_pasting.paste_masks(
      masks, part, image.shape[:2], detections.mask_pasting
    )[0]

  labels = [
    f'{_name(label, class_names)} {score:.2f}'
    for label, score in zip(detections.classes[rows], detections.scores[rows])
  ]
  mask_of = None if detections.masks is None else mask_of
  colors = None
  if track_ids is not None:
    colors = track_ids[rows].tolist()
    labels = [f'{number} {label}' for number, label in zip(colors, labels)]
  return draw_objects(image, boxes, mask_of, labels, enlarge, colors)


def enlargement(image_size: tuple[int, int]) -> int:
  """Factor by which to enlarge an image (height, width) to fit its labels."""
  return max(1, _PICTURE_SIDE // max(image_size))


def draw_instances(
  image: np.ndarray,
  instances: Instances,
  class_names: ClassNames = None,
  enlarge: int = 1,
) -> np.ndarray:
  """A picture of a whole canvas with its ground truth, the smallest on top.

  Args:
    image: see `draw`, also for the other arguments.
    instances: of one image, without a batch axis.
  """
  rows = np.flatnonzero(np.asarray(instances.valid))
  boxes = np.asarray(instances.boxes)[rows]
  order = np.argsort(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
  rows, boxes = rows[order], boxes[order]

  def mask_of(index):
    crop = np.asarray(instances.masks[rows[index]])
    return uncrop_mask(crop, boxes[index], image.shape[:2])

  mask_of = None if instances.masks is None else mask_of
  labels = [_name(instances.classes[row], class_names) for row in rows]
  return draw_objects(image, boxes, mask_of, labels, enlarge)


def uncrop_mask(
  crop: np.ndarray, box: np.ndarray, canvas: tuple[int, int]
) -> np.ndarray:
  """Mask `[height, width]` bool of a canvas from a mask crop of a batch.

  The inverse of `mask_crops.crop_masks`, not of pasting: the first and the last
  sample of a side lie on the edges of the box, measured on a grid of
  `length - 1` steps for a canvas of `length` pixels.

  Args:
    crop: `[size, size]`, uint8 0..255 or float 0..1.
    box: `[4]` in pixels of the canvas.
    canvas: (height, width).
  """
  whole = np.iinfo(crop.dtype).max if crop.dtype.kind == 'u' else 1.0
  mask = np.zeros(canvas, bool)
  top, rows = _samples(box[0], box[2], canvas[0], crop.shape[0])
  left, columns = _samples(box[1], box[3], canvas[1], crop.shape[1])
  values = _resize_bilinear(crop.astype(np.float32) / whole, rows, columns)
  mask[top : top + len(rows), left : left + len(columns)] = values >= 0.5
  return mask


def _resize_bilinear(mask, rows, columns):
  """`[h, w]` samples of a mask at rows `[h]` and columns `[w]`.

  Coordinate 0 is the center of the first cell; beyond the centers of the border
  cells the border repeats.
  """
  lower, upper, weights = _neighbors(columns, mask.shape[1])
  mask = mask[:, lower] * (1 - weights) + mask[:, upper] * weights
  lower, upper, weights = _neighbors(rows, mask.shape[0])
  weights = weights[:, None]
  return mask[lower] * (1 - weights) + mask[upper] * weights


def _neighbors(positions, length):
  """Indices of the cells beside each position, and the second one's weight."""
  lower = np.clip(np.floor(positions), 0, length - 1)
  weights = np.clip(positions - lower, 0, 1).astype(np.float32)
  lower = lower.astype(np.int64)
  return lower, np.minimum(lower + 1, length - 1), weights


def _samples(start, stop, length, num_samples):
  """First pixel of a box along one side; its pixels, in cells of the crop."""
  grid = (length - 1) / length
  first = max(int(np.ceil(start * grid - 0.5)), 0)
  last = min(int(np.floor(stop * grid + 0.5)), length - 1)
  pixels = np.arange(first, max(last + 1, first))
  step = max((stop - start) * grid / (num_samples - 1), 1e-6)
  return first, (pixels - start * grid) / step


def _name(class_id, class_names):
  """Name of a class that can be drawn, or its number if it has none."""
  if not isinstance(class_names, Mapping):
    class_names = dict(enumerate(() if class_names is None else class_names))
  name = str(class_names.get(int(class_id), class_id))
  return fonts.readable(name, int(class_id))


def draw_objects(
  image: np.ndarray,
  boxes: np.ndarray,
  mask_of: Callable[[int], np.ndarray] | None,
  labels: Sequence[str],
  enlarge: int = 1,
  color_numbers: Sequence[int] | None = None,
) -> np.ndarray:
  """A picture of the image with objects of any kind, the first on top.

  Args:
    image: see `draw`.
    boxes: `[n, 4]` in pixels of the image.
    mask_of: returns the mask of a row, `[height, width]` bool; one at a time,
      since all masks of a large image would take gigabytes. None: no masks.
    labels: n texts.
    enlarge: see `draw`, also for the result.
    color_numbers: of n colors; None: each object has another, by its place.
  """
  picture = np.clip(np.rint(image), 0, 255).astype(np.uint8)
  picture = _enlarge(picture, enlarge)
  thickness = _thickness(picture.shape[:2], boxes * enlarge)
  colors = [_color(number) for number in color_numbers or range(len(boxes))]
  border = max(thickness // 2, 1)
  for index in reversed(range(len(boxes))):
    if mask_of is not None:
      _draw_mask(picture, mask_of(index), colors[index], enlarge, border)
    _draw_box(picture, boxes[index] * enlarge, colors[index], thickness)
  return _draw_labels(picture, boxes * enlarge, labels, colors)


def _thickness(picture_size, boxes):
  """Thickness of the lines of boxes, visible also if the picture is shrunk."""
  share = min(picture_size) / 400
  return (
    1 if share < 1 else max(2, round(min(share, _typical_side(boxes) / 20)))
  )


def _typical_side(boxes):
  """Median of the short sides of the boxes of a picture; inf without boxes."""
  sides = np.min(boxes[:, 2:] - boxes[:, :2], axis=1)
  return np.median(sides) if len(boxes) else np.inf


def _enlarge(array, times):
  return array.repeat(times, axis=0).repeat(times, axis=1)


def _color(index):
  """Color of an instance; successive ones differ most."""
  # Steps of the golden ratio never return close to an earlier hue.
  hue = (index * 0.61803399) % 1.0
  saturation, value = ((0.9, 1.0), (0.6, 1.0), (0.9, 0.75))[index % 3]
  rgb = colorsys.hsv_to_rgb(hue, saturation, value)
  return np.array(rgb) * 255


def _draw_mask(picture, mask, color, enlarge=1, border=1):
  """Blends a color into the mask, with solid border pixels."""
  rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
  if not rows.size:
    return
  top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
  mask = _enlarge(mask[top:bottom, left:right], enlarge)
  part = picture[top * enlarge :, left * enlarge :]
  part = part[: mask.shape[0], : mask.shape[1]]
  inside = mask
  for _ in range(border):
    inside = _erode(inside)
  blended = part[mask] * (1 - OPACITY) + color * OPACITY
  part[mask] = np.rint(blended)
  part[mask & ~inside] = np.rint(color)


def _erode(mask):
  """Pixels of the mask whose four neighbors are in it too."""
  padded = np.pad(mask, 1)
  down, across = padded[:, 1:-1], padded[1:-1]
  return mask & down[:-2] & down[2:] & across[:, :-2] & across[:, 2:]


def _draw_box(picture, box, color, thickness):
  """Draws the edges: lines of 2 are centered on them, lines of 1 inside."""
  y1, x1, y2, x2 = np.rint(box).astype(int)
  color = np.rint(color)
  outside = thickness // 2
  inside = thickness - outside
  rows, columns = (
    np.maximum([a - outside, a + inside, b - inside, b + outside], 0)
    for a, b in ((y1, y2), (x1, x2))
  )
  for start in (0, 2):  # The first and the last line of each side.
    picture[rows[start] : rows[start + 1], columns[0] : columns[3]] = color
    picture[rows[0] : rows[3], columns[start] : columns[start + 1]] = color


def _draw_labels(picture, boxes, labels, colors):
  """Writes each label at its box, away from the labels of better ones.

  Labels of small objects in a large picture are small too.
  """
  height, width = picture.shape[:2]
  size = min(min(height, width) / 45, _typical_side(boxes) / 4)
  size = max(11, round(size))
  canvas = Image.fromarray(picture)
  pen = ImageDraw.Draw(canvas)
  taken = []
  for box, label in zip(boxes, labels):
    text_height, text_width = fonts.measure(label, size)
    extent = (text_height + 3, text_width + 4)
    taken.append(_place_label(box, extent, (height, width), taken))
  # Without enough room, better labels cover the others.
  for position, label, color in reversed([*zip(taken, labels, colors)]):
    y1, x1, y2, x2 = position
    fill = tuple(np.rint(color).astype(int).tolist())
    pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=fill)
    is_light = np.dot(color, (0.299, 0.587, 0.114)) > 128
    ink = 'black' if is_light else 'white'
    fonts.draw(pen, (x1 + 2, y1 + 1), label, size, ink)
  return np.array(canvas)


def _place_label(box, size, picture_size, taken):
  """First free position beside the box, `(y1, x1, y2, x2)` in pixels."""
  y1, x1, y2, _ = np.rint(box).astype(int).tolist()
  left = max(min(x1, picture_size[1] - size[1]), 0)
  # Above the box, at its inner top, below it, at its inner bottom.
  tops = (y1 - size[0], y1, y2, y2 - size[0])
  tops = [max(min(top, picture_size[0] - size[0]), 0) for top in tops]
  places = [(top, left, top + size[0], left + size[1]) for top in tops]
  is_free = (not any(_overlap(x, other) for other in taken) for x in places)
  return next(itertools.compress(places, is_free), places[0])


def _overlap(a, b):
  return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def save_png(path: str | os.PathLike, picture: np.ndarray) -> None:
  """Writes a `[height, width, 3]` uint8 picture; makes a missing folder."""
  with files.replaced(path) as unfinished:
    Image.fromarray(picture).save(unfinished, format='PNG')
