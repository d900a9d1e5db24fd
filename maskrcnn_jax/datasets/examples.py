"""Checked examples: an image file and its objects, ready to be written.

The rules for objects are those of the reference converter: an object is left
out if its box has no width or height, or ends beyond the image (x + w > width,
without tolerance). Crowd objects are kept and marked. An object whose mask
cannot be read or has no pixel is left out too.
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from maskrcnn_jax.datasets import images, masks
from maskrcnn_jax.datasets.coco_json import CocoImage
from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.datasets.json_values import is_box, is_number

# What `images.read_image` may have done to a file.
_NOTES = {
  'stored_upright': (
    'is turned by its EXIF flag, and the json gives the size of the upright '
    'picture: a record stores it upright.'
  ),
  'rotation_ignored': (
    'has an EXIF rotation, but the json gives the size of the stored pixels: '
    'the flag is ignored.'
  ),
  'stored_as_png': 'is neither JPEG nor PNG: a record stores it as PNG.',
}


@dataclasses.dataclass(frozen=True)
class ImageExample:
  """One image and its objects, ready to be written.

  Attributes:
    encoded: the image file.
    filename: its name in the COCO file.
    image_id: up to 64 bits.
    height: of the decoded image.
    width: of the decoded image.
    boxes: `[n, 4]` float64 `(y1, x1, y2, x2)` in pixels.
    classes: `[n]` int64, 1 or more.
    class_names: `n` texts.
    is_crowd: `[n]` bool.
    areas: `[n]` float64, pixels as annotated.
    masks: `n` PNG files of the full image, values 0 and 1.
    captions: texts about the image.
    category_ids: `[n]` int64, of the annotations; None where they are the
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
  class_names: dict[int, str],
  images_dir: str | os.PathLike,
  captions: Sequence[str] = (),
) -> tuple[ImageExample | None, list[Finding]]:
  """Reads an image and the masks of its objects.

  Args:
    image: the image's entry.
    entries: its annotations, with classes among `class_names`.
    class_names: name by class id.
    images_dir: folder that `image.file_name` is relative to.
    captions: texts about the image.

  Returns:
    The example, None if the image cannot be used, and what was found.
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
    except UnusableObjectError as error:
      findings.append(error.finding(path, entry))
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
  """An image file as a record holds it, None if it is unusable; what was found.

  Args:
    image: its entry.
    path: of the file.
  """
  try:
    encoded, note = images.read_image(path, image.height, image.width)
  except ValueError as error:
    message = f'{error}. Replace the file or take it out of the json.'
    kind = 'unusable_image'
    return None, Finding(kind, path, image.image_id, None, message, 'error')
  if note is None:
    return encoded, None
  return encoded, Finding(
    note, path, image.image_id, None, _NOTES[note], 'note'
  )


class UnusableObjectError(Exception):
  """An object to leave out; its arguments are a kind and a message."""

  def finding(self, path: str, entry: dict) -> Finding:
    """The finding on the annotation of an image file."""
    kind, message = self.args
    return Finding(kind, path, entry['image_id'], entry.get('id'), message)


def _read_object(entry, image):
  """Box, class, category, crowd flag, area and PNG mask of an annotation."""
  box = read_box(entry, image)
  mask = read_mask(entry, image)
  area = entry.get('area')
  if not is_number(area):
    area = np.count_nonzero(mask)
  is_crowd = bool(entry.get('iscrowd', 0))
  category_id = entry['category_id']
  class_id = entry.get('class_id', category_id)
  encoded = masks.encode_mask(mask)
  return box, class_id, category_id, is_crowd, area, encoded


def read_mask(entry: dict, image: CocoImage) -> np.ndarray:
  """`[height, width]` bool, the mask of an annotation.

  Raises:
    UnusableObjectError: it cannot be read, or has no pixel.
  """
  try:
    mask = masks.decode_segmentation(
      entry.get('segmentation'), image.height, image.width
    )
  except ValueError as error:
    raise UnusableObjectError('unusable_mask', f'{error}.') from error
  if not mask.any():
    raise UnusableObjectError('empty_mask', 'the mask has no pixel.')
  return mask


def read_box(
  entry: dict, image: CocoImage
) -> tuple[float, float, float, float]:
  """`(y1, x1, y2, x2)` of an annotation, in pixels.

  Raises:
    UnusableObjectError: it is no box, or one that the reference leaves out.
  """
  box = entry.get('bbox')
  if not is_box(box):
    raise UnusableObjectError(
      'unusable_box', f'bbox must be x, y, width, height, got {box!r}.'
    )
  x, y, width, height = box
  if width <= 0 or height <= 0:
    raise UnusableObjectError('zero_area_box', f'the box {box} has no area.')
  if x + width > image.width or y + height > image.height:
    raise UnusableObjectError(
      'box_outside_image',
      f'the box {box} ends outside the image of {image.width} x '
      f'{image.height} (width x height).',
    )
  return y, x, y + height, x + width
