"""Examples: an image file and its checked objects, ready to be written.

Objects are kept by the rules of the reference converter: one is skipped if its
box has no width or height, or ends beyond the image (x + w > width, without
tolerance). Crowds are kept and marked. An object whose mask cannot be read or
has no pixel is skipped too.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn_jax.datasets import images, masks
from maskrcnn_jax.datasets.coco_json import CocoImage
from maskrcnn_jax.datasets.findings import Finding, InvalidEntryError
from maskrcnn_jax.errors import brief

# Notes of `images.read_image`.
_NOTES = {
  'stored_upright': (
    'has an EXIF rotation, and the JSON gives the size of the upright photo: '
    'it is stored upright.'
  ),
  'rotation_ignored': (
    'has an EXIF rotation, but the JSON gives the size of the stored pixels: '
    'the flag is ignored.'
  ),
  'stored_as_png': 'is neither JPEG nor PNG: it is stored as PNG.',
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
) -> tuple[ImageExample | None, list[Finding]]:
  """Reads an image and the masks of its objects.

  Args:
    image: its file name is relative to `images_dir`.
    entries: its annotations, of classes among `class_names`.
    captions: of the image.
    class_names: names by class id.
    images_dir: folder of the images.

  Returns:
    The example, None if the image cannot be used, and the findings.
  """
  path = os.path.join(images_dir, image.file_name)
  encoded, finding = read_image(image, path)
  findings = [] if finding is None else [finding]
  if encoded is None:
    return None, findings
  objects = []
  for entry in entries:
    try:
      objects.append(_read_object(entry, image))
    except InvalidEntryError as error:
      findings.append(error.finding(path, entry['image_id'], entry.get('id')))
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
  image: CocoImage, path: str
) -> tuple[bytes | None, Finding | None]:
  """The bytes that a record stores, or None, and the finding, if any."""
  try:
    encoded, note = images.read_image(
      path, image.height, image.width, image.upright
    )
  except ValueError as error:
    message = f'{error}. Replace the file or remove it from the JSON.'
    what = 'unusable_image', path, message, 'error'
    return None, Finding(*what, image.image_id)
  if note is None:
    return encoded, None
  return encoded, Finding(note, path, _NOTES[note], 'note', image.image_id)


def _read_object(entry, image):
  """Box, class, category, crowd flag, area and PNG mask of an annotation."""
  box = read_box(entry, image)
  runs = read_mask(entry, image)
  area = entry.get('area')
  if not masks.is_number(area):
    area = int(coco_mask.area(runs))
  is_crowd = bool(entry.get('iscrowd', 0))
  category_id = entry['category_id']
  class_id = entry.get('class_id', category_id)
  return (
    box,
    class_id,
    category_id,
    is_crowd,
    area,
    masks.encode_png(coco_mask.decode(runs)),
  )


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


def read_box(
  entry: dict, image: CocoImage
) -> tuple[float, float, float, float]:
  """The box of an annotation, `(y1, x1, y2, x2)` in pixels.

  Raises:
    InvalidEntryError: it is malformed, or the reference converter skips it.
  """
  box = entry.get('bbox')
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
  if x + width > image.width or y + height > image.height:
    raise InvalidEntryError(
      'box_outside_image',
      f'the box {box} ends outside the image of {image.width} x '
      f'{image.height} (width x height).',
      'warning',
    )
  return y, x, y + height, x + width
