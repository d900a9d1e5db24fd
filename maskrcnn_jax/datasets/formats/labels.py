"""An image with labels to be read, and the labels that were read."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

from maskrcnn_jax.datasets.findings import Finding


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
    candidates = (
      root / f'{stem}{suffix}' for stem in (path.parent / path.stem, path.stem)
    )
    return next(filter(pathlib.Path.is_file, candidates), None)


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
