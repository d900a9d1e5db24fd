"""Object PNGs: a folder for every image, with a file per object.

A PNG is 0 outside of the object and lies in the folder of its image; with
several classes in the folder of its class within that.
"""

import functools
import pathlib
from collections.abc import Mapping

from maskrcnn_jax.datasets import masks
from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.datasets.formats import class_names
from maskrcnn_jax.datasets.formats.instance_png import read_numbers
from maskrcnn_jax.datasets.formats.source import (
  MASKS,
  Content,
  Image,
  ImageLabels,
  Source,
  collect,
)


def read(source: Source) -> Content:
  """Reads the PNGs in `NAME`, `NAME/masks`, or `masks` beside `images`."""
  labels = {}
  for name in source.image_names:
    candidates = _mask_folders(pathlib.Path(source.labels), name)
    labels[name] = next(filter(pathlib.Path.is_dir, candidates), None)
  labels = {name: folder for name, folder in labels.items() if folder}
  names = class_names.read(source.classes or 'object')
  read_folder = functools.partial(read_objects, names=names)
  return collect(source, labels, read_folder, names)


def read_objects(
  folder: pathlib.Path, image: Image, names: Mapping[int, str]
) -> ImageLabels:
  """Reads the PNGs of an image."""
  objects, findings, size = [], _stray_masks(folder, names), None
  for category_id, class_name in names.items():
    inner = folder if len(names) == 1 else folder / class_name
    for path in sorted(inner.glob('*.png')):
      kind, message = 'empty_mask', 'the mask has no pixel.'
      try:
        mask = read_numbers(path, image.sizes if size is None else (size,)) > 0
      except ValueError as error:
        kind, message = 'unusable_mask', f'{error}.'
      else:
        size = mask.shape
        if mask.any():
          mask = masks.encode_run_lengths(mask)
          objects.append({'category_id': category_id, 'segmentation': mask})
          continue
      findings.append(Finding(kind, str(path), message))
  return ImageLabels(size or image.sizes[0], objects, findings)


def _mask_folders(root, name) -> list[pathlib.Path]:
  """Possible folders of the masks of an image, the likeliest first."""
  path = pathlib.PurePath(name)
  own = root / path.parent / path.stem
  found = [own / MASKS, own]
  if path.parent.name == 'images':
    found.append(root / path.parent.parent / MASKS)
  return [*found, root / path.stem / MASKS, root / path.stem]


def _stray_masks(folder, names) -> list[Finding]:
  """Findings on masks outside the folders of several classes."""
  if len(names) == 1:
    return []
  message = (
    'is in no folder of a class: with several classes, '
    f'{folder}/CLASS/*.png is wanted.'
  )
  return [
    Finding('category_id', str(path), message, 'error')
    for path in sorted(folder.rglob('*.png'))
    if path.parent.name not in names.values()
  ]
