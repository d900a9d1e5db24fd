"""Masks and boxes as data sets store them: polygons, run lengths, PNG files."""

import io
import sys
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_jax.datasets import polygons
from maskrcnn_jax.errors import UserError, brief

# pycocotools counts in 32 bits, and needs 80 bytes for a pixel of outline.
_MOST_PIXELS = 2**31
_LARGEST_COORDINATE = 2**24
_LONGEST_OUTLINE = 2**22
_MOST_OBJECTS = 2**15


def is_number(value: Any) -> bool:
  """Whether a JSON value is a number that is finite as a float."""
  # A JSON may hold integers of any length.
  return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_box(value: Any) -> bool:
  """Whether a JSON value is a list of four numbers that may be coordinates."""
  return (
    isinstance(value, list)
    and len(value) == 4
    and all(map(is_coordinate, value))
  )


def is_coordinate(value: Any) -> bool:
  """Whether a JSON value is a number that pycocotools can hold in pixels."""
  return is_number(value) and abs(value) <= _LARGEST_COORDINATE


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


def encode_numbers(numbers: np.ndarray) -> dict[int, dict[str, Any]]:
  """`encode_run_lengths` of every number above 0 of a `[height, width]` array.

  In one pass: a small file may hold many numbers.

  Raises:
    UserError: there are more than objects in any image.
  """
  height, width = numbers.shape
  flat = numbers.ravel(order='F')
  starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))
  ends = np.append(starts[1:], flat.size)
  order = np.argsort(flat[starts], kind='stable')
  found, first = np.unique(flat[starts][order], return_index=True)
  if len(found) > _MOST_OBJECTS:
    raise UserError(f'has {len(found)} different numbers: is it a mask?')
  encoded = {}
  for number, runs in zip(found.tolist(), np.split(order, first[1:])):
    if number > 0:
      edges = np.stack([starts[runs], ends[runs]], axis=1).ravel()
      counts = np.diff(edges, prepend=0, append=flat.size).tolist()
      runs = {'size': [height, width], 'counts': counts}
      runs = coco_mask.frPyObjects(runs, height, width)
      encoded[number] = {**runs, 'counts': runs['counts'].decode('ascii')}
  return encoded


def decode_segmentation(
  segmentation: Any, height: int, width: int
) -> np.ndarray:
  """Decodes a COCO segmentation to a `[height, width]` bool mask.

  See `read_segmentation`.
  """
  found = read_segmentation(segmentation, height, width)
  return coco_mask.decode(found).astype(bool)


def read_segmentation(
  segmentation: Any, height: int, width: int
) -> dict[str, Any]:
  """Compressed run lengths of a COCO segmentation, as pycocotools has them.

  The segmentation is not trusted: nothing reaches pycocotools, which checks
  little, that it could not hold.

  Args:
    segmentation: polygons (a list of flat lists x, y, x, y, ...) or run lengths
      (a dict with `size` and `counts`, a list or COCO's compressed string).
    height: height of the image.
    width: width of the image.

  Raises:
    UserError: it is neither, or does not fit the image.
  """
  if height * width >= _MOST_PIXELS:
    raise UserError(f'{height} x {width} pixels are too many for a mask')
  if isinstance(segmentation, dict):
    counts = _read_counts(segmentation, height, width)
    encoded = {'size': [height, width], 'counts': counts}
    return coco_mask.frPyObjects(encoded, height, width)
  if not isinstance(segmentation, list) or not segmentation:
    raise UserError(
      'segmentation must be a list of polygons or run lengths with size and '
      f'counts, got {type(segmentation).__name__} {brief(segmentation)}'
    )
  if any(map(is_number, segmentation)):
    raise UserError(
      f'segmentation is a list of {len(segmentation)} values: put each polygon '
      'into a list in it, [[x, y, x, y, ...], ...]',
      given=len(segmentation),
    )
  if sum(map(_outline, segmentation)) > _LONGEST_OUTLINE:
    raise UserError(f'polygons are longer than {_LONGEST_OUTLINE} pixels')
  # A list of four numbers would be read as a box, and has no inside.
  usable = [polygon for polygon in segmentation if len(polygon) >= 6]
  if not usable:
    raise UserError('no polygon of the segmentation has three corners')
  return coco_mask.merge(coco_mask.frPyObjects(usable, height, width))


def _outline(polygon) -> float:
  """Pixels that pycocotools needs for the outline of a polygon it can read."""
  if not isinstance(polygon, list) or len(polygon) % 2:
    raise UserError(
      f'a polygon must be a list x, y, x, y, ..., got {brief(polygon)} of odd '
      'length or another type'
    )
  for value in polygon:
    if not is_coordinate(value):
      message = f'a polygon has the coordinate {brief(value)}'
      raise UserError(message, given=value)
  steps = np.abs(np.diff(polygons.closed(polygon), axis=0))
  return steps.max(axis=1).sum()


def _read_counts(segmentation, height, width) -> list[int]:
  """Lengths of runs that cover an image exactly."""
  size = segmentation.get('size')
  if size not in ([height, width], (height, width)):
    raise UserError(
      f'the run lengths are for size {brief(size)}, the image is {height} x '
      f'{width} (height x width)',
      given=size,
      wanted=[height, width],
    )
  counts, pixels = segmentation.get('counts'), height * width
  if isinstance(counts, (str, bytes)):
    counts = _expand_counts(counts)
  if not isinstance(counts, list) or not all(
    type(count) is int and 0 <= count <= pixels for count in counts
  ):
    raise UserError(
      f"counts must be lengths of runs up to {pixels} or COCO's string of them"
    )
  if sum(counts) != pixels:
    raise UserError(
      f'the run lengths add up to {sum(counts)} pixels, the image has {pixels}',
      given=sum(counts),
      wanted=pixels,
    )
  return counts


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
      if shift > 32:
        raise UserError('counts hold a number of more than 32 bits')
      continue
    if bits & 16:
      value -= 1 << shift
    counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    value = shift = 0
  if shift:
    raise UserError('counts end in the middle of a number')
  return counts
