"""Folders of images with label files, in formats other than COCO's."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

from maskrcnn_jax.datasets import images
from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.errors import UserError

MASKS = 'masks'  # Name of folders of masks beside folders of images.


@dataclasses.dataclass(frozen=True)
class LabelledImage:
  """An image whose labels are to be read.

  Attributes:
    name: relative to the folder of the images.
    path: path of the file.
    sizes: see `images.read_sizes`.
    labels_dir: folder of all labels.
    class_names: names by category id.
  """

  name: str
  path: str
  sizes: tuple[tuple[int, int], tuple[int, int]]
  labels_dir: str | os.PathLike
  class_names: Mapping[int, str]

  def find_label(self, suffix: str) -> pathlib.Path | None:
    """The label file, in the same subfolder or in the top folder."""
    root, path = pathlib.Path(self.labels_dir), pathlib.PurePath(self.name)
    for stem in (path.parent / path.stem, pathlib.PurePath(path.stem)):
      found = root / f'{stem}{suffix}'
      if found.is_file():
        return found
    return None


@dataclasses.dataclass(frozen=True)
class ImageLabels:
  """Labels of an image.

  Attributes:
    file_name: relative to the folder of the images.
    size: (height, width) that the objects refer to; None: it cannot be used.
    objects: `category_id`, `segmentation`, `bbox` and `area` of COCO for each.
    findings: problems of the image and its labels.
  """

  file_name: str
  size: tuple[int, int] | None
  objects: Sequence[dict]
  findings: Sequence[Finding] = ()


def find_images(
  images_dir: str | os.PathLike, labels_dir: str | os.PathLike
) -> list[str]:
  """Names of all images in a folder and below, relative to it, in order.

  Folders named `masks` are skipped, and that of the labels if it lies inside.

  Raises:
    UserError: there is no such folder, or no image in it.
  """
  for path in (images_dir, labels_dir):
    if not os.path.isdir(path):
      raise UserError(f'{path} is not a folder.', path=path)
  root = pathlib.Path(images_dir).resolve()
  labels = pathlib.Path(labels_dir).resolve()
  names = []
  for path in images.find_in_folder(root):
    name = path.relative_to(root)
    is_label = labels != root and labels in path.parents
    if not is_label and MASKS not in name.parts[:-1]:
      names.append(name.as_posix())
  if not names:
    raise UserError(
      f'{images_dir} holds no image ({", ".join(images.ENDINGS)}).',
      path=images_dir,
    )
  return names
