"""Checks of one object of a COCO file.

`prepare` skips unusable objects by the same functions; further checks find
usable objects that are most likely wrong. Their thresholds pass COCO's own
annotations: among 1429 of them the lowest IoU of box and mask is 0.62, and the
largest ratio of area to pixels of the mask, of a crowd, is 1.8.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn_jax.datasets import examples, masks
from maskrcnn_jax.datasets.coco_json import CocoImage
from maskrcnn_jax.datasets.findings import Finding, InvalidEntryError
from maskrcnn_jax.errors import UserError, brief

# A box and its mask agree from this IoU on, or if no edge differs by more
# pixels; an area agrees within this factor, or within these pixels.
_BOX_IOU = 0.6
_BOX_SLACK = 2.0
_AREA_FACTOR = 2.0
_AREA_SLACK = 8.0
_OUTSIDE = 1.0  # Pixels that a polygon may reach beyond its image.
_SEVERITIES = {'unusable_box': 'error', 'unusable_mask': 'error'}
_SEVERITIES |= {'unusable_area': 'error', 'missing_crowd_flag': 'note'}


@dataclasses.dataclass(frozen=True, slots=True)
class CheckedObject:
  """A usable object."""

  image_id: int
  class_id: int
  is_crowd: bool
  area: float  # Annotated, else of the box, as in COCO's evaluation.
  side: float  # Square root of the area of the box.


def check_object(
  entry: dict, image: CocoImage, path: str
) -> tuple[CheckedObject | None, list[Finding]]:
  """The object of an annotation, None if it is unusable; its findings.

  Args:
    entry: annotation of a known class.
    image: that it belongs to.
    path: of the image, for messages.
  """
  found, problems = [], []
  for read in (examples.read_box, examples.read_mask):
    try:
      found.append(read(entry, image))
    except InvalidEntryError as error:
      found.append(None)
      message = f'{error.message} Skipped. Correct or remove it.'
      problems.append((error.kind, message))
  box, mask = found
  problems += _box_problems(entry, mask)
  problems += _field_problems(entry, mask)
  problems += _polygon_problems(entry, image)
  ids = image.image_id, entry.get('id')
  findings = [
    Finding(kind, path, message, _SEVERITIES.get(kind, 'warning'), *ids)
    for kind, message in problems
  ]
  if box is None or mask is None:
    return None, findings
  box_area = (box[2] - box[0]) * (box[3] - box[1])
  area = entry.get('area')
  checked = CheckedObject(
    image.image_id,
    entry.get('class_id', entry['category_id']),
    bool(entry.get('iscrowd', 0)),
    float(area if masks.is_number(area) else box_area),
    box_area**0.5,
  )
  return checked, findings


def _box_problems(entry, mask) -> Iterator[tuple[str, str]]:
  box = entry.get('bbox')
  if not masks.is_box(box):
    return
  x, y, width, height = box
  if x < 0 or y < 0:
    yield (
      'box_begins_outside',
      f'the box {box} begins outside the image and is trained on as it is. '
      'Clip it to the image.',
    )
  if mask is None or width <= 0 or height <= 0:
    return
  around = coco_mask.toBbox(mask)
  iou, edges = _iou(box, around), np.array([box, around], np.float64)
  edges[:, 2:] += edges[:, :2]
  if np.abs(edges[0] - edges[1]).max() > _BOX_SLACK and iou < _BOX_IOU:
    yield (
      'box_mask_mismatch',
      f'the box {box} is not around its mask, which spans {around.tolist()} '
      f'(IoU {iou:.2f}). {_box_remedy(box, mask["size"], around)}',
    )


def _iou(box, other) -> float:
  """IoU of two boxes x, y, width, height."""
  return float(coco_mask.iou([list(box)], [other], [0])[0, 0])


def _box_remedy(box, image_size, around) -> str:
  """Suggests another box format, if that matches the mask."""
  a, b, c, d = box
  height, width = image_size
  meanings = {
    'corners x1, y1, x2, y2': (a, b, c - a, d - b),
    'y, x, height, width': (b, a, d, c),
    'centre, width and height': (a - c / 2, b - d / 2, c, d),
    'normalized coordinates': (a * width, b * height, c * width, d * height),
  }
  for words, (x, y, *sides) in meanings.items():
    if min(sides) > 0 and _iou([x, y, *sides], around) > 0.8:
      return f'It matches as {words}: write x, y, width, height in pixels.'
  return 'Correct the box or the mask.'


def _field_problems(entry, mask) -> Iterator[tuple[str, str]]:
  area = entry.get('area')
  if area is None:
    yield (
      'missing_area',
      'area is missing, by which objects count as small, medium or large: the '
      'box stands in for it, and pycocotools alone fails. Add the number of '
      'pixels of the mask.',
    )
  elif not masks.is_number(area):
    yield (
      'unusable_area',
      f'area must be a number of pixels, got {brief(area)}.',
    )
  elif mask is not None:
    pixels = int(coco_mask.area(mask))
    ratio = max(area, 1e-9) / pixels
    if abs(area - pixels) > _AREA_SLACK and not (
      1 / _AREA_FACTOR <= ratio <= _AREA_FACTOR
    ):
      yield (
        'area_mismatch',
        f'area is {area:g}, the mask has {pixels} pixels. Objects count as '
        'small, medium or large by area: write the pixels of the mask.',
      )
  if 'iscrowd' not in entry:
    yield 'missing_crowd_flag', 'iscrowd is missing and taken to be 0.'
  elif not isinstance(entry['iscrowd'], int) or entry['iscrowd'] not in (0, 1):
    taken = 'a crowd' if entry['iscrowd'] else 'no crowd'
    yield (
      'crowd_flag',
      f'iscrowd must be 0 or 1, got {brief(entry["iscrowd"])}, which is taken '
      f'to be {taken}. Correct it.',
    )


def _polygon_problems(entry, image) -> Iterator[tuple[str, str]]:
  polygons = entry.get('segmentation')
  for number, polygon in enumerate(polygons if type(polygons) is list else ()):
    where = f'polygon {number} (from 0)'
    if (
      not isinstance(polygon, list)
      or len(polygon) % 2
      or not all(map(masks.is_coordinate, polygon))
    ):
      continue  # Reading the mask has said so.
    if len(polygon) < 6:
      yield (
        'short_polygon',
        f'{where} has {len(polygon) // 2} corners, wanted 3 or more: it covers '
        'nothing. Remove it.',
      )
      continue
    yield from _crossings(where, polygon)
    if max(polygon) <= 1.0:
      yield (
        'polygon_normalized',
        f'{where} lies in the first pixel: its coordinates look normalized. '
        'Write pixels.',
      )
    points = np.array(polygon, np.float64).reshape(-1, 2)
    size = [image.width, image.height]
    beyond = max((-points).max(), (points - size).max())
    if beyond > _OUTSIDE:
      yield (
        'polygon_outside_image',
        f'{where} reaches {beyond:.1f} pixels beyond the image of {image.width}'
        f' x {image.height} (width x height). Clip it, or check if it belongs '
        'to another image.',
      )


def _crossings(where, polygon) -> Iterator[tuple[str, str]]:
  try:
    crossing = masks.find_crossing(polygon)
  except UserError as error:
    yield 'crossing_not_searched', f'{where} {error}: it may cross itself.'
    return
  if crossing:
    yield (
      'crossing_polygon',
      f'{where} crosses itself near x {crossing[0]:.1f}, y {crossing[1]:.1f}: '
      'the area it encloses twice is not in the mask. Redraw it.',
    )
  elif not masks.polygon_area(polygon):
    yield 'empty_polygon', f'{where} has no area. Remove it.'
