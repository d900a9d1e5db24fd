"""Instance PNGs: a file `NAME.png` for every image, with a number per object.

0 is background, pixels of one number are one object. The number is the grey
value of 8 or 16 bits, the index into the palette, or the colour. With several
classes it is 1000 times the class plus the number of the object (as in
Cityscapes).
"""

import functools
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from maskrcnn_jax.datasets import images, masks
from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.datasets.formats import class_names
from maskrcnn_jax.datasets.formats.source import (
  Content,
  Image,
  ImageLabels,
  Source,
  collect,
)
from maskrcnn_jax.errors import UserError

CLASS_FACTOR = 1000


def read(source: Source) -> Content:
  """Reads the PNGs of a folder that holds no images."""
  labels = source.label_files('.png')
  if os.path.samefile(source.images_dir, source.labels):
    raise UserError(
      f'{source.labels} holds the images: instance PNGs need a folder of their '
      'own.',
      argument='annotations',
      path=source.labels,
    )
  names = class_names.read(source.classes or 'object')
  read_file = functools.partial(read_instances, names=names)
  return collect(source, labels, read_file, names)


def read_instances(
  path: pathlib.Path, image: Image, names: Mapping[int, str]
) -> ImageLabels:
  """Reads the PNG of an image."""
  try:
    numbers = read_numbers(path, image.sizes)
  except ValueError as error:
    finding = Finding('unusable_mask', str(path), f'{error}.', 'error')
    return ImageLabels(None, findings=(finding,))
  objects, findings = [], []
  for number in np.unique(numbers[numbers > 0]).tolist():
    category_id = number // CLASS_FACTOR
    if len(names) == 1:
      (category_id,) = names
    if category_id in names:
      mask = masks.encode_run_lengths(numbers == number)
      objects.append({'category_id': category_id, 'segmentation': mask})
      continue
    known = ', '.join(f'{i} {text}' for i, text in names.items())
    message = (
      f'the number {number} is of no class ({known}): with several classes it '
      f'is {CLASS_FACTOR} times the class plus the number of the object.'
    )
    findings.append(Finding('category_id', str(path), message, 'error'))
  return ImageLabels(numbers.shape, objects, findings)


def read_numbers(path, sizes) -> np.ndarray:
  """`[height, width]` int64 numbers of a PNG; a colour is one of 24 bits.

  Raises:
    UserError: it cannot be read, or has none of the sizes.
  """
  image = images.decode(images.read_bytes(path), path)
  if image.mode in ('LA', 'La'):
    image = image.convert('L')
  elif image.mode in ('RGBA', 'RGBa'):
    image = image.convert('RGB')
  numbers = np.asarray(image).astype(np.int64)
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
