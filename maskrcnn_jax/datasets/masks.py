"""Masks as data sets store them: polygons, run lengths, PNG files."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_jax.datasets.coco_json import is_number
from maskrcnn_jax.errors import UserError

_EDGES_AT_A_TIME = 256  # So that a polygon of thousands needs little memory.


def encode_png(mask: np.ndarray) -> bytes:
  """PNG file of a `[height, width]` mask, one channel of 0 and 1."""
  stream = io.BytesIO()
  # The fast levels repeat what lies hundreds of bytes back, not the byte
  # before: 1 KB more for a COCO mask, which then decodes in half of the time.
  Image.fromarray(np.asarray(mask, np.uint8)).save(
    stream, 'PNG', compress_level=3
  )
  return stream.getvalue()


def encode_run_lengths(mask: np.ndarray) -> dict[str, Any]:
  """COCO's compressed run lengths of a `[height, width]` mask."""
  encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
  return {**encoded, 'counts': encoded['counts'].decode('ascii')}


def decode_segmentation(
  segmentation: Any, height: int, width: int
) -> np.ndarray:
  """Decodes a COCO segmentation to a `[height, width]` bool mask.

  Args:
    segmentation: polygons (a list of flat lists x, y, x, y, ...) or run lengths
      (a dict with `size` and `counts`, a list or COCO's compressed string).
    height: height of the image.
    width: width of the image.

  Raises:
    UserError: it is neither, or does not fit the image.
  """
  if isinstance(segmentation, dict):
    return _decode_run_lengths(segmentation, height, width)
  if not isinstance(segmentation, list) or not segmentation:
    raise UserError(
      'segmentation must be a list of polygons or run lengths with size and '
      f'counts, got {type(segmentation).__name__} {str(segmentation)[:40]!r}'
    )
  for polygon in segmentation:
    _check_polygon(polygon)
  # A list of four numbers would be read as a box, and has no inside.
  polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
  if not polygons:
    raise UserError('no polygon of the segmentation has three corners')
  parts = coco_mask.frPyObjects(polygons, height, width)
  return coco_mask.decode(parts).any(axis=-1)


def _check_polygon(polygon):
  if not isinstance(polygon, list) or len(polygon) % 2:
    raise UserError(
      'a polygon must be a list x, y, x, y, ..., got '
      f'{str(polygon)[:40]!r} of odd length or another type'
    )
  for value in polygon:
    if not is_number(value):
      raise UserError(f'a polygon has the coordinate {value!r}', given=value)


def _decode_run_lengths(segmentation, height, width):
  size = segmentation.get('size')
  if size not in ([height, width], (height, width)):
    raise UserError(
      f'the run lengths are for size {size}, the image is {height} x {width} '
      '(height x width)',
      given=size,
      wanted=[height, width],
    )
  counts = segmentation.get('counts')
  if isinstance(counts, (str, bytes)):
    counts = _expand_counts(counts)
  if not isinstance(counts, list) or not all(
    type(count) is int and count >= 0 for count in counts
  ):
    raise UserError("counts must be lengths of runs or COCO's string of them")
  if sum(counts) != height * width:
    raise UserError(
      f'the run lengths add up to {sum(counts)} pixels, the image has '
      f'{height * width}',
      given=sum(counts),
      wanted=height * width,
    )
  values = np.arange(len(counts)) % 2 == 1
  return np.repeat(values, counts).reshape(width, height).T


def _expand_counts(text):
  """Run lengths of COCO's compressed string.

  Six bits a character: five of the number, one for "more follows"; from the
  fourth number on, the difference to the one two places before. pycocotools
  decodes it too, but reads past its buffers if the runs are too short.
  """
  text = text.decode('ascii') if isinstance(text, bytes) else text
  counts = []
  value = shift = 0
  for character in text:
    bits = ord(character) - 48
    if not 0 <= bits < 64:
      raise UserError(
        f'counts hold the character {character!r}', given=character
      )
    value |= (bits & 31) << shift
    shift += 5
    if bits & 32:
      continue
    if bits & 16:
      value -= 1 << shift
    counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    value = shift = 0
  if shift:
    raise UserError('counts end in the middle of a number')
  return counts


def polygon_area(polygon: Sequence[float]) -> float:
  """Area of a flat list x, y, x, y, ... by the shoelace formula.

  Lobes that wind the other way subtract.
  """
  x, y = np.asarray(polygon, np.float64).reshape(-1, 2).T
  # From the first corner, so that far away ones lose no digits.
  x, y = x - x[:1], y - y[:1]
  return float(abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2)


def find_crossing(polygon: Sequence[float]) -> tuple[float, float] | None:
  """First point `(x, y)` at which a polygon crosses itself, if any.

  Edges that touch, or run along each other, do not cross.

  Args:
    polygon: flat list x, y, x, y, ... of finite numbers; corners may repeat.
  """
  points = np.asarray(polygon, np.float64).reshape(-1, 2)
  starts, ends = points, np.roll(points, -1, axis=0)
  keep = np.any(starts != ends, axis=1)
  starts, ends = starts[keep], ends[keep]
  for first in range(0, len(starts), _EDGES_AT_A_TIME):
    part = slice(first, first + _EDGES_AT_A_TIME)
    a, b = starts[part, None], ends[part, None]
    crosses = _separates(a, b, starts, ends) & _separates(starts, ends, a, b)
    rows, columns = np.nonzero(crosses)
    if len(rows):
      start, end = starts[first + rows[0]], ends[first + rows[0]]
      other, to = starts[columns[0]], ends[columns[0]]
      near, far = abs(_side(other, to, start)), abs(_side(other, to, end))
      x, y = start + (end - start) * near / (near + far)
      return float(x), float(y)
  return None


def _separates(a, b, p, q):
  """Whether p and q lie on different sides of the line through a and b."""
  return _side(a, b, p) * _side(a, b, q) < 0.0


def _side(a, b, p):
  """Positive on one side of the line through a and b, negative on the other."""
  along, to = b - a, p - a
  return along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0]
