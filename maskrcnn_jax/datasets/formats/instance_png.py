"""Instance PNGs: a file `NAME.png` for every image, with a number per object.

0 is background, pixels of one number are one object. The number is the grey
value of 8 or 16 bits, the index into the palette (255 is void, as Pascal VOC
draws borders), or the colour. With several classes it is 1000 times the class
plus the number of the object; a number below 1000 is a group of its class, a
crowd, or background if that class has no objects (as in Cityscapes).
"""

import functools
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from maskrcnn_jax.datasets import images, masks
from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.datasets.formats import class_names
from maskrcnn_jax.datasets.formats.collect import Image, ImageLabels, collect
from maskrcnn_jax.datasets.formats.source import Content, Source
from maskrcnn_jax.errors import UserError

LOOKS_LIKE = 'NAME.png for the image NAME.jpg'
CLASS_FACTOR = 1000
_ENDINGS = ('.png', '.tif', '.tiff', '.bmp', '.gif')  # Without loss.
_VOID = 255


def matches(source: Source) -> bool:
  """Whether PNGs are called as images of another folder."""
  if not os.path.isdir(source.labels) or _holds_images(source):
    return False
  return bool(source.match_files(_ENDINGS)[0])


def read(source: Source) -> Content:
  """Reads the PNGs of a folder that holds no images."""
  labels = source.match_files(_ENDINGS)
  if _holds_images(source):
    raise UserError(
      f'{source.labels} holds the images: instance PNGs need a folder of their '
      'own.',
      argument='annotations',
      path=source.labels,
    )
  names = class_names.read(source.classes or 'object')
  read_file = functools.partial(read_instances, names=names)
  content, findings = collect(source, labels, read_file, names, 'error')
  return drop_background(content, findings)


def _holds_images(source) -> bool:
  return os.path.samefile(source.images_dir, source.labels)


def drop_background(content: dict, findings: list[Finding]) -> Content:
  """Drops crowds of classes without objects, such as the sky and roads."""
  annotations = content['annotations']
  things = {x['category_id'] for x in annotations if not x['iscrowd']}
  files = {x['id']: x['file_name'] for x in content['images']}
  for each in annotations:
    number = each['category_id']
    if number not in things:
      message = f'the number {number} is of no object: background.'
      file = files[each['image_id']]
      findings.append(Finding('no_instance', file, message))
  annotations = [x for x in annotations if x['category_id'] in things]
  return {**content, 'annotations': annotations}, findings


def read_instances(
  path: pathlib.Path,
  image: Image,
  names: Mapping[int, str],
  unknown: str = 'error',
) -> ImageLabels:
  """Reads the PNG of an image; `unknown` is the severity of other classes."""
  numbers, is_palette = read_numbers(path, image.sizes)
  void = is_palette and np.count_nonzero(numbers == _VOID)
  objects, findings = [], []
  if void:
    message = f'255 of a palette is void: {void} pixels are of no object.'
    findings.append(Finding('void_pixels', str(path), message, 'note'))
    numbers[numbers == _VOID] = 0
  for number, mask in masks.encode_numbers(numbers).items():
    category_id, instance = divmod(number, CLASS_FACTOR)
    is_crowd = category_id == 0 and len(names) > 1
    if is_crowd:
      category_id = instance
    elif len(names) == 1:
      (category_id,) = names
    if category_id in names:
      entry = {'category_id': category_id, 'segmentation': mask}
      objects.append({**entry, 'iscrowd': int(is_crowd)})
      continue
    known = ', '.join(f'{i} {text}' for i, text in names.items())
    message = (
      f'the number {number} is of no class ({known}): with several classes it '
      f'is {CLASS_FACTOR} times the class plus the number of the object.'
    )
    kind = 'no_instance' if is_crowd else 'category_id'
    severity = 'warning' if is_crowd else unknown
    findings.append(Finding(kind, str(path), message, severity))
  return ImageLabels(numbers.shape, objects, findings)


def read_numbers(path, sizes) -> tuple[np.ndarray, bool]:
  """`[height, width]` int32 numbers of a PNG; whether they are of a palette.

  A colour is a number of 24 bits.

  Raises:
    UserError: it cannot be read, has none of the sizes, or values that are no
      numbers of objects.
  """
  image = images.open_image(images.read_bytes(path), path)
  # Pillow keeps the upper half of 16 bits where there are several channels.
  if len(image.getbands()) > 1 and ';16' in str(image.tile):
    message = 'has channels of 16 bits; wanted one channel, or 8 bits'
    raise UserError(message, path=path, given=image.mode)
  images.load(image, path)
  is_palette = image.mode == 'P'
  check_size(path, image.size[::-1], sizes)
  if image.mode in ('LA', 'La'):
    image = image.convert('L')
  elif image.mode in ('RGBA', 'RGBa'):
    image = image.convert('RGB')
  pixels = np.asarray(image)
  if pixels.dtype.kind in 'if':
    wrong = pixels[~((pixels >= 0) & (pixels < 2**31) & (pixels % 1 == 0))]
    if wrong.size:
      message = f'has the value {wrong[0]:g}; wanted numbers of objects from 0'
      raise UserError(message, path=path, given=wrong[0])
  numbers = np.zeros(pixels.shape[:2], np.int32)
  for channel in np.moveaxis(np.atleast_3d(pixels), -1, 0):
    numbers = (numbers << 8) + channel.astype(np.int32)
  return numbers, is_palette


def check_size(path, size, sizes) -> None:
  """Raises a `UserError` if a mask has none of the sizes of its image."""
  if size not in sizes:
    raise UserError(
      f'is {size[0]} x {size[1]} (height x width), the image is '
      f'{sizes[0][0]} x {sizes[0][1]}',
      path=path,
      given=size,
      wanted=sizes[0],
    )
