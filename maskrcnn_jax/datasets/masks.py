"""Masks as data sets write them: polygons, run lengths, PNG files."""

import io
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_jax.datasets.json_values import is_number
from maskrcnn_jax.errors import UserError


def encode_mask(mask: np.ndarray) -> bytes:
  """PNG file of a `[height, width]` mask, one channel of 0 and 1."""
  stream = io.BytesIO()
  # The fast levels repeat what lies hundreds of bytes back, not the byte
  # before: 1 KB more for a COCO mask, which then decodes in half of the time.
  Image.fromarray(np.asarray(mask, np.uint8)).save(
    stream, 'PNG', compress_level=3
  )
  return stream.getvalue()


def decode_segmentation(
  segmentation: Any, height: int, width: int
) -> np.ndarray:
  """A COCO segmentation as a `[height, width]` bool mask.

  Args:
    segmentation: polygons (a list of flat lists x, y, x, y, ...) or run lengths
      (a dict with `size` and `counts`, a list or COCO's compressed text).
    height: of the image.
    width: of the image.

  Raises:
    ValueError: if it is neither, or does not fit the image.
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
      raise UserError(f'a polygon has the coordinate {value!r}')


def _decode_run_lengths(segmentation, height, width):
  size = segmentation.get('size')
  if size not in ([height, width], (height, width)):
    raise UserError(f"the run lengths are for size {size}, not the image's")
  counts = segmentation.get('counts')
  if isinstance(counts, (str, bytes)):
    counts = _expand_counts(counts)
  if not isinstance(counts, list) or not all(
    type(count) is int and count >= 0 for count in counts
  ):
    raise UserError("counts must be lengths of runs, or COCO's text of them")
  if sum(counts) != height * width:
    raise UserError(
      f'the run lengths add up to {sum(counts)} pixels, the image has '
      f'{height * width}'
    )
  values = np.arange(len(counts)) % 2 == 1
  return np.repeat(values, counts).reshape(width, height).T


def _expand_counts(text):
  """Run lengths of COCO's compressed text.

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
      raise UserError(f'counts hold the character {character!r}')
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
