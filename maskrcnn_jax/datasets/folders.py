"""Folders of images with a file of annotations for each, in other formats.

A reader of such a format makes `ImageAnnotations` of one image; `formats.py`
makes a COCO json of all, so that the same checks apply.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

from PIL import ExifTags, Image

from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.errors import UserError

_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.tif', '.tiff', '.webp')
# (height, width) of an image as stored, and as its EXIF flag turns it.
Sizes = tuple[tuple[int, int], tuple[int, int]]
# What folders of masks are called beside folders of images.
MASKS = 'masks'


@dataclasses.dataclass(frozen=True)
class ImageAnnotations:
  """What is known of an image.

  Attributes:
    file_name: relative to the folder of the images.
    size: (height, width) that the objects are for; None: it cannot be read.
    objects: `category_id`, `segmentation`, `bbox` and `area` of COCO for each.
    findings: what is wrong.
  """

  file_name: str
  size: tuple[int, int] | None
  objects: Sequence[dict]
  findings: Sequence[Finding] = ()


def find_images(
  images_dir: str | os.PathLike, annotations_dir: str | os.PathLike
) -> list[str]:
  """Names of all images below a folder, relative to it, in order.

  Folders called `masks` are passed over, and that of the annotations if it lies
  inside. Two images with one annotation would be `a.jpg` and `a.png`.

  Raises:
    ValueError: there is no such folder, or no image in it.
  """
  root, apart = pathlib.Path(images_dir), pathlib.Path(annotations_dir)
  for path in (root, apart):
    if not path.is_dir():
      raise UserError(f'{path} is no folder.')
  root, apart = root.resolve(), apart.resolve()
  names = []
  for path in sorted(root.rglob('*')):
    name = path.relative_to(root)
    is_apart = apart != root and apart in path.parents
    is_mask = is_apart or MASKS in name.parts[:-1]
    if path.suffix.lower() in _SUFFIXES and not is_mask:
      names.append(name.as_posix())
  if not names:
    raise UserError(
      f'{images_dir} has no image ({", ".join(_SUFFIXES)}) in it.'
    )
  return names


def read_sizes(path: str | os.PathLike) -> Sizes:
  """(height, width) of an image as stored, and when its EXIF flag is heeded.

  Raises:
    ValueError: it cannot be read.
  """
  try:
    with Image.open(path) as image:
      orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
      stored = image.size[::-1]
  except (OSError, SyntaxError, Image.DecompressionBombError) as error:
    raise UserError(f'cannot be read ({error})') from error
  return stored, stored[::-1] if orientation in (5, 6, 7, 8) else stored


def beside(
  name: str, annotations_dir: str | os.PathLike, suffix: str
) -> pathlib.Path | None:
  """The annotation file of an image: in the same folders, or in the first one.

  Args:
    name: of the image, relative to the folder of the images.
    annotations_dir: folder of the annotations.
    suffix: of an annotation file, such as `.txt`.
  """
  root, path = pathlib.Path(annotations_dir), pathlib.PurePath(name)
  for place in (path.parent / path.stem, pathlib.PurePath(path.stem)):
    found = root / f'{place}{suffix}'
    if found.is_file():
      return found
  return None
