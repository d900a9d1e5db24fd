"""Checks of one object of a COCO file.

`prepare` skips unusable objects by the same functions; further checks find
usable objects that are most likely wrong. Their thresholds pass COCO's own
annotations: among 1429 of them the lowest IoU of box and mask is 0.62, and the
largest ratio of area to pixels of the mask, of a crowd, is 1.8.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn_jax.datasets import examples, masks, polygons
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
_SEVERITIES |= {'box_clipped': 'note', 'missing_box': 'note'}


@dataclasses.dataclass(frozen=True, slots=True)
class CheckedObject:
  """A usable object."""

  image_id: int
  class_id: int
  is_crowd: bool
  area: float  # Annotated, else of the box, as in COCO's evaluation.
  side: float  # Square root of the area of the box.
  shape: int  # See `examples.UsableObject`.


def check_object(
  entry: dict, image: CocoImage, path: str
) -> tuple[CheckedObject | None, list[Finding]]:
  """The object of an annotation, None if it is unusable; its findings.

  Args:
    entry: annotation of a known class.
    image: that it belongs to.
    path: of the image, for messages.
  """
  box, mask, problems, unusable = None, None, [], []
  with _skipped(unusable):
    mask = examples.read_mask(entry, image)
  if mask is not None or examples.has_box(entry):
    with _skipped(problems):
      box = examples.read_box(entry, image, mask)
      problems += examples.box_notes(entry, box)
  problems += [*unusable, *_box_problems(entry, box, mask)]
  problems += _field_problems(entry, mask)
  problems += _polygon_problems(entry, image)
  ids = image.image_id, entry.get('id')
  findings = [
    Finding(kind, path, message, _SEVERITIES.get(kind, 'warning'), *ids)
    for kind, message in problems
  ]
  if box is None or mask is None:
    return None, findings
  found = examples.make_object(entry, box, mask)
  checked = CheckedObject(
    image.image_id,
    found.class_id,
    found.is_crowd,
    float(found.area),
    (box[2] * box[3]) ** 0.5,
    found.shape,
  )
  return checked, findings


@contextlib.contextmanager
def _skipped(problems: list[tuple[str, str]]) -> Iterator[None]:
  """Adds the reason why the block skips an object."""
  try:
    yield
  except InvalidEntryError as error:
    message = f'{error.message} Skipped. Correct or remove it.'
    problems.append((error.kind, message))


def _box_problems(entry, box, mask) -> Iterator[tuple[str, str]]:
  if mask is None or not masks.is_box(entry.get('bbox')):
    return
  given = entry['bbox']
  box = given if box is None else box
  if min(box[2:]) <= 0:
    return
  around = coco_mask.toBbox(mask)
  if _agree(given, around):
    return
  remedy = _box_remedy(given, mask['size'], around)
  # A box that agrees once it is clipped may still have another format.
  if remedy or not _agree(box, around):
    yield (
      'box_mask_mismatch',
      f'the box {given} is not around its mask, which spans {around.tolist()} '
      f'(IoU {_iou(given, around):.2f}). '
      f'{remedy or "Correct the box or the mask."}',
    )


def _agree(box, other) -> bool:
  """Whether two boxes x, y, width, height are about the same."""
  edges = np.array([box, other], np.float64)
  edges[:, 2:] += edges[:, :2]
  is_near = np.abs(edges[0] - edges[1]).max() <= _BOX_SLACK
  return is_near or _iou(box, other) >= _BOX_IOU


def _iou(box, other) -> float:
  """IoU of two boxes x, y, width, height."""
  return float(coco_mask.iou([list(box)], [other], [0])[0, 0])


def _box_remedy(box, image_size, around) -> str | None:
  """Suggests another box format, if one matches the mask."""
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
  return None


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
  found = entry.get('segmentation')
  for number, polygon in enumerate(found if type(found) is list else ()):
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
    crossing = polygons.find_crossing(polygon)
  except UserError as error:
    yield 'crossing_not_searched', f'{where} {error}: it may cross itself.'
    return
  if crossing:
    yield (
      'crossing_polygon',
      f'{where} crosses itself near x {crossing[0]:.1f}, y {crossing[1]:.1f}: '
      'the area it encloses twice is not in the mask. Redraw it.',
    )
  elif not polygons.area(polygon):
    yield 'empty_polygon', f'{where} has no area. Remove it.'
