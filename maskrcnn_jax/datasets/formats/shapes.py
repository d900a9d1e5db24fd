"""Shapes of labelling tools as COCO segmentations."""

import base64
import binascii
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from maskrcnn_jax.datasets import images, masks
from maskrcnn_jax.datasets.coco_values import read_number
from maskrcnn_jax.datasets.findings import InvalidEntryError
from maskrcnn_jax.datasets.masks import is_number

_ELLIPSE_CORNERS = 64
Segmentation = list[list[float]] | dict[str, Any]


def skip(kind: str, message: str) -> InvalidEntryError:
  """The error of an object that is skipped with a warning."""
  return InvalidEntryError(kind, message, 'warning')


def no_mask(shape: str) -> InvalidEntryError:
  """The error of a shape that says nothing about the pixels of its object."""
  if shape in ('box', 'rectangle'):
    message = f'is a {shape}: there is no mask to train on.'
    return skip('box_without_mask', message)
  return skip('shape_without_area', f'the shape {shape!r} has no area.')


def read_points(points: Sequence[Sequence]) -> list[Sequence]:
  """Points with texts read as numbers."""
  return [
    point
    if set(map(type, point)) <= {int, float}
    else [*map(read_number, point)]
    for point in points
  ]


def polygon(
  points: Sequence[Sequence[float]], scale: Sequence[float] = (1, 1)
) -> list[list[float]]:
  """A polygon of corners (x, y), which are multiplied by a scale (x, y).

  Raises:
    InvalidEntryError: a coordinate is no finite number, or there are fewer
      than three corners.
  """
  points = read_points(points)
  for point in points:
    if len(point) != 2 or not all(map(is_number, point)):
      message = f'a corner must be two numbers, got {str(point)[:40]}.'
      raise skip('unusable_polygon', message)
  if len(points) < 3:
    message = f'a polygon has three corners or more, got {len(points)}.'
    raise skip('unusable_polygon', message)
  return [(np.asarray(points, float) * scale).reshape(-1).tolist()]


def ellipse(
  centre: Sequence[float], radii: Sequence[float], degrees: float = 0.0
) -> list[list[float]]:
  """An ellipse (x, y) as a polygon, turned clockwise about its centre."""
  if not all(map(is_number, (*centre, *radii, degrees))):
    raise skip('unusable_polygon', 'an ellipse must be of numbers.')
  angles = np.arange(_ELLIPSE_CORNERS) * (2 * math.pi / _ELLIPSE_CORNERS)
  x, y = radii[0] * np.cos(angles), radii[1] * np.sin(angles)
  cosine, sine = (
    math.cos(math.radians(degrees)),
    math.sin(math.radians(degrees)),
  )
  turned = np.stack([x * cosine - y * sine, x * sine + y * cosine], axis=-1)
  return polygon((turned + centre).tolist())


def with_holes(
  outline: list[list[float]],
  holes: Sequence[list[list[float]]],
  size: tuple[int, int],
) -> Segmentation:
  """A polygon without its holes: run lengths if there are any."""
  if not holes:
    return outline
  mask = masks.decode_segmentation(outline, *size)
  for hole in holes:
    mask &= ~masks.decode_segmentation(hole, *size)
  return masks.encode_run_lengths(mask)


def patch(
  mask: np.ndarray, left: int, top: int, size: tuple[int, int]
) -> Segmentation:
  """Run lengths of a mask of part of an image; what lies outside is cut off."""
  height, width = mask.shape
  canvas = np.zeros(size, bool)
  rows = slice(max(top, 0), max(top + height, 0))
  columns = slice(max(left, 0), max(left + width, 0))
  target = canvas[rows, columns]
  mask = mask[max(-top, 0) :, max(-left, 0) :]
  target[:] = mask[: target.shape[0], : target.shape[1]]
  return masks.encode_run_lengths(canvas)


def union(parts: Sequence[Segmentation], size: tuple[int, int]) -> Segmentation:
  """One segmentation of several: polygons, or run lengths if any part is."""
  if len(parts) == 1:
    return parts[0]
  if all(isinstance(part, list) for part in parts):
    return [corners for part in parts for corners in part]
  decoded = [masks.decode_segmentation(part, *size) for part in parts]
  return masks.encode_run_lengths(np.any(decoded, axis=0))


def merge_groups(
  parts: Sequence[tuple[Any, str, Segmentation]], size: tuple[int, int]
) -> list[dict]:
  """Objects of parts (group, label, segmentation).

  Parts of a group and label are one object; the group None is none.
  """
  groups = {}
  for number, (group, label, segmentation) in enumerate(parts):
    key = (number,) if group is None else (str(group), label)
    groups.setdefault(key, (label, []))[1].append(segmentation)
  return [
    {'label': label, 'segmentation': union(each, size)}
    for label, each in groups.values()
  ]


def decode_png(text: str, size: tuple[int, int]) -> np.ndarray:
  """`[height, width]` bool mask of a PNG in base64, deflated once more or not.

  Of four channels alpha counts, else every value but 0.

  Raises:
    InvalidEntryError: it is none, or larger than an image of a size.
  """
  try:
    data = base64.b64decode(text, validate=True)
    if not data.startswith(b'\x89PNG'):
      # A PNG of one channel is hardly larger than its pixels.
      limit = 8 * size[0] * size[1] + 2**16
      data = zlib.decompressobj().decompress(data, limit)
  except (binascii.Error, zlib.error) as error:
    raise skip('unusable_mask', f'a mask is no PNG ({error}).') from error
  image = images.open_image(data)
  if image.height > size[0] or image.width > size[1]:
    message = f'a mask of {image.height} x {image.width} is too large.'
    raise skip('unusable_mask', message)
  values = np.asarray(images.decode(data))
  return (values[..., -1] if values.ndim == 3 else values) > 0


def decode_runs(runs: Sequence[int], height: int, width: int) -> np.ndarray:
  """`[height, width]` bool mask of runs by rows that begin with zeros."""
  runs = np.asarray(runs, np.int64)
  if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
    message = f'runs must add up to {height} x {width} pixels.'
    raise skip('unusable_mask', message)
  return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
