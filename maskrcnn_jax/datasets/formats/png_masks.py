"""PNG masks: one file for an image (`instance_png`) or for an object.

An instance PNG holds a number in every pixel: 0 is background, pixels of one
number are one object. The number is the grey value of 8 or 16 bits, the index
into the palette, or the colour. With several classes it is 1000 times the class
plus the number of the object (as in Cityscapes).

An object PNG (`object_png`) is 0 outside of the object and lies in the folder
of its image; with several classes in the folder of its class within that.
"""

import pathlib

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_jax.datasets import images, masks
from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.datasets.formats.labels import ImageLabels, LabelledImage
from maskrcnn_jax.errors import UserError

CLASS_FACTOR = 1000
FOLDER = 'masks'  # Name of folders of masks beside folders of images.


def read_instances(image: LabelledImage) -> ImageLabels:
  """Reads the instance PNG of an image, `STEM.png`."""
  mask_path = image.find_label('.png')
  if mask_path is None:
    message = (
      f'has no mask: wanted {pathlib.PurePath(image.name).stem}.png in '
      f'{image.labels_dir}. An image without objects needs one of zeros.'
    )
    return _unusable(image, 'missing_mask', image.path, message)
  try:
    numbers = _read_numbers(mask_path, image.sizes)
  except ValueError as error:
    return _unusable(image, 'unusable_mask', str(mask_path), f'{error}.')
  objects, findings = [], []
  for number in np.unique(numbers[numbers > 0]).tolist():
    category_id = number // CLASS_FACTOR
    if len(image.class_names) == 1:
      (category_id,) = image.class_names
    if category_id in image.class_names:
      objects.append(_make_object(numbers == number, category_id))
      continue
    known = ', '.join(f'{i} {text}' for i, text in image.class_names.items())
    message = (
      f'the number {number} is of no class ({known}): with several classes it '
      f'is {CLASS_FACTOR} times the class plus the number of the object.'
    )
    findings.append(Finding('category_id', str(mask_path), message, 'error'))
  return ImageLabels(image.name, numbers.shape, objects, findings)


def read_objects(image: LabelledImage) -> ImageLabels:
  """Reads the object PNGs of an image.

  They lie in `STEM`, `STEM/masks`, or `masks` beside the folder `images` of the
  image.
  """
  class_names = image.class_names
  candidates = _mask_folders(image.name, image.labels_dir)
  folder = next((each for each in candidates if each.is_dir()), None)
  if folder is None:
    message = (
      f'has no folder of masks: wanted {candidates[0]} or {candidates[1]}. An '
      'image without objects needs an empty one.'
    )
    return _unusable(image, 'missing_mask', image.path, message)
  objects, findings, size = [], _stray_masks(folder, class_names), None
  for category_id, class_name in class_names.items():
    inner = folder if len(class_names) == 1 else folder / class_name
    for mask_path in sorted(inner.glob('*.png')):
      kind, message = 'empty_mask', 'the mask has no pixel.'
      try:
        sizes = image.sizes if size is None else (size,)
        mask = _read_numbers(mask_path, sizes) > 0
      except ValueError as error:
        kind, message = 'unusable_mask', f'{error}.'
      else:
        size = mask.shape
        if mask.any():
          objects.append(_make_object(mask, category_id))
          continue
      findings.append(Finding(kind, str(mask_path), message))
  return ImageLabels(image.name, size or image.sizes[0], objects, findings)


def _mask_folders(name, labels_dir) -> list[pathlib.Path]:
  """Possible folders of the masks of an image, the likeliest first."""
  root, path = pathlib.Path(labels_dir), pathlib.PurePath(name)
  own = root / path.parent / path.stem
  found = [own / FOLDER, own]
  if path.parent.name == 'images':
    found.append(root / path.parent.parent / FOLDER)
  return [*found, root / path.stem / FOLDER, root / path.stem]


def _stray_masks(folder, class_names) -> list[Finding]:
  """Findings on masks outside the folders of several classes."""
  if len(class_names) == 1:
    return []
  message = (
    'is in no folder of a class: with several classes, '
    f'{folder}/CLASS/*.png is wanted.'
  )
  return [
    Finding('category_id', str(path), message, 'error')
    for path in sorted(folder.rglob('*.png'))
    if path.parent.name not in class_names.values()
  ]


def _read_numbers(path, sizes) -> np.ndarray:
  """`[height, width]` int64 numbers of a PNG; a colour is one of 24 bits.

  Raises:
    UserError: it cannot be read, or has none of the sizes.
  """
  try:
    with Image.open(path) as image:
      if image.mode in ('LA', 'La'):
        image = image.convert('L')
      elif image.mode in ('RGBA', 'RGBa'):
        image = image.convert('RGB')
      numbers = np.asarray(image).astype(np.int64)
  except images.UNREADABLE as error:
    raise UserError(f'cannot be read ({error})', path=path) from error
  if numbers.ndim == 3:
    red, green, blue = np.moveaxis(numbers, -1, 0)
    numbers = (red << 16) + (green << 8) + blue
  if numbers.shape not in sizes:
    raise UserError(
      f'is {numbers.shape[0]} x {numbers.shape[1]} (height x width), the image '
      f'is {sizes[0][0]} x {sizes[0][1]}',
      path=path,
      given=numbers.shape,
      wanted=sizes[0],
    )
  return numbers


def _make_object(mask, category_id) -> dict:
  segmentation = masks.encode_run_lengths(mask)
  return {
    'category_id': category_id,
    'bbox': coco_mask.toBbox(segmentation).tolist(),
    'area': int(coco_mask.area(segmentation)),
    'segmentation': segmentation,
  }


def _unusable(image, kind, path, message) -> ImageLabels:
  finding = Finding(kind, path, message, 'error')
  return ImageLabels(image.name, None, (), (finding,))
