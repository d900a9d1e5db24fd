"""Examples: an image file and its checked objects, ready to be written.

An object is skipped if its box has no width or height or lies outside the
image, or if its mask cannot be read or has no pixel. A box that reaches outside
is clipped; the reference converter skips it if it ends outside (x + w > width,
without tolerance), and so does `drop_outside`. An object without a box gets
that of its mask. Crowds are kept and marked.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn_jax.datasets import masks, stored_images, value_range
from maskrcnn_jax.datasets.coco_json import CocoImage
from maskrcnn_jax.datasets.findings import Finding, InvalidEntryError
from maskrcnn_jax.errors import brief

_ROUNDING = 1e-6  # Pixels of a box outside the image that need no note.
# Notes of `stored_images.read`.
_NOTES = {
  'stored_upright': (
    'has an EXIF rotation, and the labels are of the upright photo: it is '
    'stored upright.'
  ),
  'rotation_ignored': (
    'has an EXIF rotation, but the labels are of the stored pixels: the flag '
    'is ignored.'
  ),
  'stored_as_png': 'is stored as PNG of 8 bits.',
  'first_frame': 'has several frames or pages: only the first one is stored.',
  'values_clipped': (
    'has over 1 % of its values outside of the value range, which are clipped: '
    'give a larger --value_range.'
  ),
}


@dataclasses.dataclass(frozen=True)
class ImageExample:
  """An image and its objects, ready to be written.

  Attributes:
    encoded: the image file.
    filename: its name in the COCO file.
    image_id: up to 64 bits.
    height: of the decoded image.
    width: of the decoded image.
    boxes: `[n, 4]` float64 `(y1, x1, y2, x2)` in pixels.
    classes: `[n]` int64, 1 or more.
    class_names: `n` names.
    is_crowd: `[n]` bool.
    areas: `[n]` float64, pixels as annotated.
    masks: `n` PNG files of the full image, values 0 and 1.
    captions: of the image.
    category_ids: `[n]` int64, of the annotations; None where they equal the
      classes.
  """

  encoded: bytes
  filename: str
  image_id: int
  height: int
  width: int
  boxes: np.ndarray
  classes: np.ndarray
  class_names: Sequence[str]
  is_crowd: np.ndarray
  areas: np.ndarray
  masks: Sequence[bytes]
  captions: Sequence[str] = ()
  category_ids: np.ndarray | None = None


def make_example(
  image: CocoImage,
  entries: Sequence[dict],
  captions: Sequence[str],
  class_names: dict[int, str],
  images_dir: str | os.PathLike,
  drop_outside: bool = False,
  ranges: Mapping[str, value_range.Range] | None = None,
) -> tuple[ImageExample | None, list[Finding]]:
  """Reads an image and the masks of its objects.

  Args:
    image: its file name is relative to `images_dir`.
    entries: its annotations, of classes among `class_names`.
    captions: of the image.
    class_names: names by class id.
    images_dir: folder of the images.
    drop_outside: see `read_box`.
    ranges: see `stored_images.read`.

  Returns:
    The example, None if the image cannot be used, and the findings.
  """
  path = os.path.join(images_dir, image.file_name)
  encoded, finding = read_image(image, path, ranges)
  findings = [] if finding is None else [finding]
  if encoded is None:
    return None, findings
  objects, shapes = [], []
  for entry in entries:
    ids = image.image_id, entry.get('id')
    try:
      found = read_object(entry, image, drop_outside=drop_outside)
    except InvalidEntryError as error:
      findings.append(error.finding(path, *ids))
      continue
    findings += (
      Finding(kind, path, message, 'note', *ids)
      for kind, message in box_notes(entry, found.box)
    )
    shapes.append((entry.get('id'), found.shape))
    x, y, width, height = found.box
    objects.append(
      (
        (y, x, y + height, x + width),
        found.class_id,
        entry['category_id'],
        found.is_crowd,
        found.area,
        masks.encode_png(coco_mask.decode(found.mask)),
      )
    )
  findings += find_doubles(shapes, path, image.image_id)
  boxes, classes, category_ids, is_crowd, areas, encoded_masks = (
    zip(*objects) if objects else [()] * 6
  )
  example = ImageExample(
    encoded=encoded,
    filename=image.file_name,
    image_id=image.image_id,
    height=image.height,
    width=image.width,
    boxes=np.array(boxes, np.float64).reshape(-1, 4),
    classes=np.array(classes, np.int64),
    class_names=[class_names[class_id] for class_id in classes],
    is_crowd=np.array(is_crowd, bool),
    areas=np.array(areas, np.float64),
    masks=encoded_masks,
    captions=captions,
    category_ids=(
      np.array(category_ids, np.int64) if category_ids != classes else None
    ),
  )
  return example, findings


def read_image(
  image: CocoImage,
  path: str,
  ranges: Mapping[str, value_range.Range] | None = None,
) -> tuple[bytes | None, Finding | None]:
  """The bytes that a record stores, or None, and the finding, if any."""
  try:
    encoded, note = stored_images.read(
      path, image.height, image.width, image.upright, ranges
    )
  except ValueError as error:
    message = f'{error}. Replace the file or remove it from the JSON.'
    what = 'unusable_image', path, message, 'error'
    return None, Finding(*what, image.image_id)
  if note is None:
    return encoded, None
  severity = 'warning' if note == 'values_clipped' else 'note'
  return encoded, Finding(note, path, _NOTES[note], severity, image.image_id)


@dataclasses.dataclass(frozen=True)
class UsableObject:
  """An object of an annotation that records and the ground truth have."""

  box: list[float]  # x, y, width, height, see `read_box`.
  mask: dict[str, Any] | None  # Run lengths of pycocotools.
  area: float  # As annotated, else of the box.
  class_id: int
  is_crowd: bool

  @property
  def shape(self) -> int:
    """Hash of the class and the mask."""
    counts = self.mask and self.mask['counts']
    return hash((self.class_id, self.is_crowd, counts))


def read_object(
  entry: dict,
  image: CocoImage,
  with_mask: bool = True,
  drop_outside: bool = False,
) -> UsableObject:
  """The object of an annotation; see `read_box` and `read_mask`.

  Args:
    entry: annotation of a known class.
    image: that it belongs to.
    with_mask: False reads no mask, unless the object has no box.
    drop_outside: see `read_box`.

  Raises:
    InvalidEntryError: the object is skipped.
  """
  mask = None if has_box(entry) else read_mask(entry, image)
  box = read_box(entry, image, mask, drop_outside)
  if with_mask and mask is None:
    mask = read_mask(entry, image)
  return make_object(entry, box, mask)


def make_object(
  entry: dict, box: list[float], mask: dict[str, Any] | None
) -> UsableObject:
  """The object of an annotation whose box and mask were read."""
  area = entry.get('area')
  return UsableObject(
    *(box, mask, area if masks.is_number(area) else box[2] * box[3]),
    class_id=entry.get('class_id', entry['category_id']),
    is_crowd=bool(entry.get('iscrowd', 0)),
  )


def find_doubles(
  shapes: Iterable[tuple[Any, int]], path: str, image_id: int
) -> Iterator[Finding]:
  """Yields objects of an image that have the class and mask of another.

  Args:
    shapes: annotation id and `UsableObject.shape` of the objects.
    path: of the image.
    image_id: its id.
  """
  first = {}
  for annotation_id, shape in shapes:
    if shape in first:
      message = (
        f'has the class and the mask of annotation {brief(first[shape])}: it '
        'is one object twice. Remove one of them.'
      )
      what = 'duplicate_object', path, message, 'warning', image_id
      yield Finding(*what, annotation_id)
    first.setdefault(shape, annotation_id)


def read_mask(entry: dict, image: CocoImage) -> dict[str, Any]:
  """The mask of an annotation, as run lengths of pycocotools.

  Raises:
    InvalidEntryError: it cannot be read, or has no pixel.
  """
  try:
    runs = masks.read_segmentation(
      entry.get('segmentation'), image.height, image.width
    )
  except ValueError as error:
    raise InvalidEntryError('unusable_mask', f'{error}.', 'warning') from error
  if not coco_mask.area(runs):
    raise InvalidEntryError('empty_mask', 'the mask has no pixel.', 'warning')
  return runs


def has_box(entry: dict) -> bool:
  """Whether an annotation has a box, however malformed."""
  return entry.get('bbox') not in (None, [])


def read_box(
  entry: dict,
  image: CocoImage,
  mask: dict[str, Any] | None = None,
  drop_outside: bool = False,
) -> list[float]:
  """The box of an annotation in pixels, x, y, width and height.

  It is clipped to the image; the same list as in the annotation if it lies
  inside.

  Args:
    entry: annotation.
    image: that it belongs to.
    mask: run lengths, whose box an annotation without one gets.
    drop_outside: skip boxes that end outside the image, and clip none, as the
      reference converter does.

  Raises:
    InvalidEntryError: it is malformed, or the object is skipped.
  """
  box = entry.get('bbox')
  if not has_box(entry) and mask is not None:
    return coco_mask.toBbox(mask).tolist()
  if not masks.is_box(box):
    raise InvalidEntryError(
      'unusable_box',
      f'bbox must be x, y, width, height, got {brief(box)}.',
      'warning',
    )
  x, y, width, height = box
  if width <= 0 or height <= 0:
    message = f'the box {box} has no area.'
    raise InvalidEntryError('zero_area_box', message, 'warning')
  right, bottom = min(x + width, image.width), min(y + height, image.height)
  left, top = max(x, 0), max(y, 0)
  is_inside = (left, top, right, bottom) == (x, y, x + width, y + height)
  is_dropped = drop_outside and (right < x + width or bottom < y + height)
  if is_dropped or right <= left or bottom <= top:
    raise InvalidEntryError(
      'box_outside_image',
      f'the box {box} {"ends" if is_dropped else "lies"} outside the image of '
      f'{image.width} x {image.height} (width x height).',
      'warning',
    )
  if is_inside or drop_outside:
    return box
  return [left, top, right - left, bottom - top]


def box_notes(entry: dict, box: list[float]) -> Iterator[tuple[str, str]]:
  """Yields kind and message of a note on what `read_box` changed, if at all."""
  given = entry.get('bbox')
  if not has_box(entry):
    yield 'missing_box', 'bbox is missing: the object gets the box of its mask.'
  elif max(abs(a - b) for a, b in zip(given, box)) > _ROUNDING:
    message = f'the box {given} reaches outside the image: it is clipped to it.'
    yield 'box_clipped', message
