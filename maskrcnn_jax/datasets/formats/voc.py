"""Pascal VOC: `SegmentationObject` and `SegmentationClass` beside each other.

Both hold `NAME.png`. Pixels of one value of the first are an object. Its class
is the value of most of its pixels in the second: an index into the palette, or
the colour that `labelmap.txt` states (as CVAT and Datumaro write it). Index 255
and the colour of that are void.
"""

import dataclasses
import functools
import pathlib

import numpy as np

from maskrcnn_jax import files
from maskrcnn_jax.datasets import masks
from maskrcnn_jax.datasets.coco_values import parse_number, read_integer
from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.datasets.formats import class_names, instance_png
from maskrcnn_jax.datasets.formats.collect import Image, ImageLabels, collect
from maskrcnn_jax.datasets.formats.source import Content, Source, parsed
from maskrcnn_jax.errors import UserError

LOOKS_LIKE = 'folders SegmentationObject and SegmentationClass'
FOLDERS = _OBJECTS, _CLASSES = 'SegmentationObject', 'SegmentationClass'
LABEL_MAP = 'labelmap.txt'
_NAMES = (
  'aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,'
  'horse,motorbike,person,pottedplant,sheep,sofa,train,tvmonitor'
)
_VOID = (255, 0xE0E0C0)  # The index, and its colour.


def matches(source: Source) -> bool:
  """Whether both folders are there."""
  return find_folder(source) is not None


def find_folder(source: Source) -> pathlib.Path | None:
  """The folder of both; that of the labels or the one above."""
  labels = pathlib.Path(source.labels)
  for folder in (labels, labels.resolve().parent):
    if (folder / _OBJECTS).is_dir() and (folder / _CLASSES).is_dir():
      return folder
  return None


def read(source: Source) -> Content:
  """Reads the masks; images without any are skipped."""
  folder = find_folder(source)
  if folder is None:
    raise UserError(
      f'{source.labels} has no folders {_OBJECTS} and {_CLASSES}.',
      argument='annotations',
      path=source.labels,
    )
  source = dataclasses.replace(source, labels=folder / _OBJECTS, used=set())
  colours = _read_label_map(folder / LABEL_MAP)
  names = class_names.read(source.classes or _NAMES)
  names = colours or names
  read_file = functools.partial(
    read_masks, names=names, classes_dir=folder / _CLASSES
  )
  declared = list(dict.fromkeys(names.values()))
  return collect(source, source.match_files('.png'), read_file, declared)


def _read_label_map(path) -> dict[int, str]:
  """Class names by colour, a number of 24 bits; lines of `name:r,g,b:...`."""
  if not path.is_file():
    return {}
  names = {}
  with parsed(path):
    for line in files.decode_text(path.read_bytes()).splitlines():
      if line.strip() and not line.startswith('#'):
        name, colour = line.split(':')[:2]
        number = _read_colour(colour)
        if names.setdefault(number, name.strip()) != name.strip():
          raise ValueError(f'two classes have the colour {colour.strip()}')
  names.pop(0, None)  # Background.
  return names


def _read_colour(text) -> int:
  """The number of 24 bits of a colour `r,g,b`."""
  red, green, blue = (parse_number(x, read_integer) for x in text.split(','))
  if not all(0 <= x < 256 for x in (red, green, blue)):
    raise ValueError(f'a colour is three numbers from 0 to 255, got {text}')
  return (red << 16) + (green << 8) + blue


def read_masks(
  path: pathlib.Path, image: Image, names: dict[int, str], classes_dir
) -> ImageLabels:
  """Reads both masks of an image."""
  numbers, _ = instance_png.read_numbers(path, image.sizes)
  classes, _ = instance_png.read_numbers(
    classes_dir / path.name, [numbers.shape]
  )
  objects, findings, shapes = [], [], masks.encode_numbers(numbers)
  # The pixels of all objects, one after another: there may be many objects.
  pixels = np.flatnonzero(numbers)
  pixels = pixels[np.argsort(numbers.ravel()[pixels], kind='stable')]
  found, first = np.unique(numbers.ravel()[pixels], return_index=True)
  for number, own in zip(found.tolist(), np.split(pixels, first[1:])):
    if number in _VOID:
      continue
    values, counts = np.unique(classes.ravel()[own], return_counts=True)
    class_id = int(values[counts.argmax()])
    label = names.get(class_id)
    if label is None:
      message = f'object {number} is of the unknown class {class_id}.'
      findings.append(Finding('category_id', str(path), message, 'error'))
      continue
    objects.append({'label': label, 'segmentation': shapes[number]})
  return ImageLabels(numbers.shape, objects, findings)
