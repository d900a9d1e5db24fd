"""Masks as PNG files: one for an image, or one for an object.

One for an image holds a number in every pixel: 0 is background, pixels of one
number are one object. The number is the grey value of 8 or 16 bits, the index
into the palette, or the colour. With several classes it is 1000 times the class
and the number of the object (as in Cityscapes).

One for an object is 0 outside of it, in the folder of its image; with several
classes in the folder of its class within that.
"""

import os
import pathlib
from collections.abc import Mapping

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_jax.datasets import folders
from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.datasets.folders import ImageAnnotations
from maskrcnn_jax.errors import UserError

CLASS_FACTOR = 1000


def read_instances(
  name: str,
  path: str,
  sizes: folders.Sizes,
  annotations_dir: str | os.PathLike,
  class_names: Mapping[int, str],
) -> ImageAnnotations:
  """The objects of an image by its PNG of numbers.

  Args:
    name: of the image, relative to the folder of the images.
    path: of the image.
    sizes: see `folders.read_sizes`.
    annotations_dir: of the PNGs, with the names of the images.
    class_names: by category id.
  """
  mask_path = folders.beside(name, annotations_dir, '.png')
  if mask_path is None:
    message = (
      f'has no mask: wanted {pathlib.PurePath(name).stem}.png in '
      f'{annotations_dir}. An image without objects needs one of zeros.'
    )
    return _refused(name, 'missing_mask', path, message)
  try:
    numbers = _read_numbers(mask_path)
    _check_size(numbers, sizes)
  except ValueError as error:
    return _refused(name, 'unusable_mask', str(mask_path), f'{error}.')
  objects, findings = [], []
  for number in np.unique(numbers).tolist():
    category_id = _category(number, class_names)
    if category_id is not None:
      objects.append(_make_object(numbers == number, category_id))
    elif number:
      known = ', '.join(f'{i} {text}' for i, text in class_names.items())
      message = (
        f'the number {number} is of no class ({known}): with several classes '
        f'it is {CLASS_FACTOR} times the class and the number of the object.'
      )
      findings.append(
        Finding('category_id', str(mask_path), None, None, message, 'error')
      )
  return ImageAnnotations(name, numbers.shape, objects, findings)


def read_objects(
  name: str,
  path: str,
  sizes: folders.Sizes,
  annotations_dir: str | os.PathLike,
  class_names: Mapping[int, str],
) -> ImageAnnotations:
  """The objects of an image by a PNG of each.

  Args:
    name: of the image, relative to the folder of the images.
    path: of the image.
    sizes: see `folders.read_sizes`.
    annotations_dir: holds a folder of PNGs for every image: `STEM`,
      `STEM/masks`, or `masks` beside the folder `images` that the image is in.
    class_names: by category id.
  """
  places = _folders_of(name, annotations_dir)
  folder = next((place for place in places if place.is_dir()), None)
  if folder is None:
    message = (
      f'has no folder of masks: wanted {places[0]} or {places[1]}. An image '
      'without objects needs an empty one.'
    )
    return _refused(name, 'missing_mask', path, message)
  objects, findings, size = [], [], None
  for category_id, class_name in class_names.items():
    inner = folder if len(class_names) == 1 else folder / class_name
    for mask_path in sorted(inner.glob('*.png')):
      try:
        mask = _read_numbers(mask_path) > 0
        _check_size(mask, sizes if size is None else (size,))
      except ValueError as error:
        message = f'{error}.'
        findings.append(
          Finding('unusable_mask', str(mask_path), None, None, message)
        )
        continue
      size = mask.shape
      if mask.any():
        objects.append(_make_object(mask, category_id))
      else:
        message = 'the mask has no pixel.'
        findings.append(
          Finding('empty_mask', str(mask_path), None, None, message)
        )
  findings += _strays(folder, class_names)
  return ImageAnnotations(name, size or sizes[0], objects, findings)


def _folders_of(name, annotations_dir) -> list[pathlib.Path]:
  """Where the masks of an image may be, the likeliest first."""
  root, path = pathlib.Path(annotations_dir), pathlib.PurePath(name)
  own = root / path.parent / path.stem
  places = [own / folders.MASKS, own]
  if path.parent.name == 'images':
    places.append(root / path.parent.parent / folders.MASKS)
  return [*places, root / path.stem / folders.MASKS, root / path.stem]


def _strays(folder, class_names) -> list[Finding]:
  """Masks outside of the folders of several classes."""
  if len(class_names) == 1:
    return []
  message = (
    'is in no folder of a class: with several classes, '
    f'{folder}/CLASS/*.png is wanted.'
  )
  return [
    Finding('category_id', str(path), None, None, message, 'error')
    for path in sorted(folder.rglob('*.png'))
    if path.parent.name not in class_names.values()
  ]


def _read_numbers(path) -> np.ndarray:
  """`[height, width]` whole numbers of a PNG; a colour is one of 24 bits."""
  try:
    with Image.open(path) as image:
      if image.mode in ('LA', 'La'):
        image = image.convert('L')
      elif image.mode in ('RGBA', 'RGBa'):
        image = image.convert('RGB')
      numbers = np.asarray(image)
  except (OSError, SyntaxError, Image.DecompressionBombError) as error:
    raise UserError(f'cannot be read ({error})') from error
  if numbers.ndim == 3:
    red, green, blue = np.moveaxis(numbers.astype(np.int64), -1, 0)
    return (red << 16) + (green << 8) + blue
  return numbers.astype(np.int64)


def _check_size(mask, sizes) -> None:
  if mask.shape not in sizes:
    raise UserError(
      f'is {mask.shape[0]} x {mask.shape[1]} (height x width), the image is '
      f'{sizes[0][0]} x {sizes[0][1]}'
    )


def _category(number, class_names) -> int | None:
  if number <= 0:
    return None
  if len(class_names) == 1:
    return next(iter(class_names))
  category_id = number // CLASS_FACTOR
  return category_id if category_id in class_names else None


def _make_object(mask, category_id) -> dict:
  encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
  return {
    'category_id': category_id,
    'bbox': coco_mask.toBbox(encoded).tolist(),
    'area': int(coco_mask.area(encoded)),
    'segmentation': {
      'size': list(mask.shape),
      'counts': encoded['counts'].decode('ascii'),
    },
  }


def _refused(name, kind, path, message) -> ImageAnnotations:
  finding = Finding(kind, path, None, None, message, 'error')
  return ImageAnnotations(name, None, (), (finding,))
