"""Object PNGs: a folder for every image, with a mask file per object.

The masks lie in the folder of their image; with several classes in the folder
of their class within that. They are image files of any type. The object is
where alpha is at least half (if it varies), else where the brightest channel is
at least half of its largest value, so that the noise of a JPEG does not count;
of values below 64 and of a palette, everything but 0 is object.
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
from maskrcnn_jax.datasets.formats.instance_png import check_size
from maskrcnn_jax.datasets.formats.source import MASKS, Content, Source

LOOKS_LIKE = 'a folder NAME of masks for the image NAME.jpg'
_FAINT = 64  # Masks of smaller values are numbers, not brightness.


def matches(source: Source) -> bool:
  """Whether images have folders with image files."""
  return os.path.isdir(source.labels) and any(
    next(images.find_in_folder(folder), None)
    for folder in _folders(source).values()
  )


def read(source: Source) -> Content:
  """Reads the masks in `NAME`, `NAME/masks`, or `masks` beside `images`."""
  names = class_names.read(source.classes or 'object')
  read_folder = functools.partial(read_objects, names=names)
  return collect(source, (_folders(source), ()), read_folder, names, 'error')


def _folders(source) -> dict[str, pathlib.Path]:
  """Folders of masks by image name."""
  labels = {}
  for name in source.image_names:
    candidates = _mask_folders(pathlib.Path(source.labels), name)
    labels[name] = next(filter(pathlib.Path.is_dir, candidates), None)
  return {name: folder for name, folder in labels.items() if folder}


def _mask_folders(root, name) -> list[pathlib.Path]:
  """Possible folders of the masks of an image, the likeliest first."""
  path = pathlib.PurePath(name)
  own = root / path.parent / path.stem
  found = [own / MASKS, own]
  if path.parent.name == 'images':
    found.append(root / path.parent.parent / MASKS)
  return [*found, root / path.stem / MASKS, root / path.stem]


def read_objects(
  folder: pathlib.Path, image: Image, names: Mapping[int, str]
) -> ImageLabels:
  """Reads the masks of an image; a finding for every other file."""
  objects, findings, size = [], [], None
  ids = {name: category_id for category_id, name in names.items()}
  for path in sorted(each for each in folder.rglob('*') if each.is_file()):
    kind, severity, message = 'empty_mask', 'warning', 'the mask has no pixel.'
    inner = path.relative_to(folder).parts[:-1]
    category_id = ids.get(inner[0] if inner else None)
    if len(names) == 1 and not inner:
      (category_id,) = names
    if path.suffix.lower() not in images.ENDINGS or path.name.startswith('.'):
      kind, message = 'file_passed_over', 'is no image file.'
    elif category_id is None:
      wanted = folder if len(names) == 1 else folder / '|'.join(names.values())
      kind, message = 'category_id', f'is in no folder of a class: {wanted}/'
      severity = 'error'
    else:
      try:
        mask = read_mask(path, image.sizes if size is None else (size,))
      except ValueError as error:
        kind, message = 'unusable_mask', f'{error}.'
      else:
        size = mask.shape
        if mask.any():
          mask = masks.encode_run_lengths(mask)
          objects.append({'category_id': category_id, 'segmentation': mask})
          continue
    findings.append(Finding(kind, str(path), message, severity))
  return ImageLabels(size or image.sizes[1], objects, findings)


def read_mask(path, sizes) -> np.ndarray:
  """`[height, width]` bool mask of an image file.

  Raises:
    UserError: it cannot be read, or has none of the sizes.
  """
  image = images.decode(images.read_bytes(path), path)
  check_size(path, image.size[::-1], sizes)
  if image.mode in ('CMYK', 'YCbCr', 'LAB', 'HSV'):
    image = image.convert('RGB')
  values = np.asarray(image)
  if image.mode in ('P', '1'):
    return values > 0
  values = values.reshape(*values.shape[:2], -1)
  if image.getbands()[-1] in 'aA':
    alpha, values = values[..., -1], values[..., :-1]
    if alpha.min() < alpha.max():
      return alpha >= 128
  values = values.max(axis=-1)
  largest = values.max()
  if largest < _FAINT:
    return values > 0
  return values >= max(largest / 2, _FAINT)
