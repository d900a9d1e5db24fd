"""Images of a data set and their labels, assembled as a COCO JSON holds them.

A format's reader pairs each image with its label (a path or a parsed entry) and
calls `collect`, which reads the labels in worker processes.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn_jax.datasets import images, masks, workers
from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.errors import UserError

MASKS = 'masks'  # Name of folders of masks beside folders of images.
Content = tuple[dict[str, list], list[Finding]]  # Lists of COCO, and findings.


@dataclasses.dataclass(frozen=True)
class Source:
  """Arguments of a reader.

  Attributes:
    images_dir: folder of the images.
    labels: folder or file of the labels.
    classes: see `class_names.read`.
    num_workers: processes; None: one per core.
  """

  images_dir: str
  labels: str
  classes: str | None = None
  num_workers: int | None = None

  @functools.cached_property
  def image_names(self) -> list[str]:
    """Names of all images in the folder and below, relative to it, in order.

    Folders named `masks` are skipped, and that of the labels if it lies inside.
    """
    for path in (self.images_dir, self.labels):
      if not os.path.isdir(path):
        raise UserError(f'{path} is not a folder.', path=path)
    root = pathlib.Path(self.images_dir).resolve()
    labels = pathlib.Path(self.labels).resolve()
    names = []
    for path in images.find_in_folder(root):
      name = path.relative_to(root)
      is_label = labels != root and labels in path.parents
      if not is_label and MASKS not in name.parts[:-1]:
        names.append(name.as_posix())
    if not names:
      raise UserError(
        f'{self.images_dir} holds no image ({", ".join(images.ENDINGS)}).',
        path=self.images_dir,
      )
    return names

  def label_files(self, suffix: str) -> dict[str, pathlib.Path]:
    """Label files by image name: of the same name, or of it in the top folder.

    Args:
      suffix: lower-case ending of label files.
    """
    root = pathlib.Path(self.labels)
    found = {
      path.relative_to(root).with_suffix('').as_posix(): path
      for path in sorted(root.rglob('*'))
      if path.suffix.lower() == suffix and path.is_file()
    }
    labels = {}
    for name in self.image_names:
      stem = pathlib.PurePosixPath(name).with_suffix('')
      path = found.get(stem.as_posix()) or found.get(stem.name)
      if path:
        labels[name] = path
    return labels


@dataclasses.dataclass(frozen=True)
class Image:
  """An image whose label is read.

  Attributes:
    path: path of the file.
    sizes: see `images.read_sizes`.
  """

  path: str
  sizes: tuple[tuple[int, int], tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class ImageLabels:
  """Labels of an image.

  Attributes:
    size: (height, width) that the objects refer to; None: it cannot be used.
    objects: `category_id` and `segmentation` of COCO for each.
    findings: problems of the image and its labels.
  """

  size: tuple[int, int] | None
  objects: Sequence[dict] = ()
  findings: Sequence[Finding] = ()


def collect(
  source: Source,
  labels: Mapping[str, Any],
  read: Callable[[Any, Image], ImageLabels],
  names: Mapping[int, str],
  unlabelled: str = 'error',
) -> Content:
  """The lists of a COCO JSON, and the findings.

  Images are numbered from 1 in the order of their names.

  Args:
    source: the images.
    labels: label of an image by its name, as `read` takes it.
    read: reads a label; picklable.
    names: class names by category id.
    unlabelled: severity of an image without a label: an `error`, or a `note` of
      an image without objects.

  Raises:
    UserError: there is no image, or none has a label.
  """
  if not any(name in labels for name in source.image_names):
    raise UserError(
      f'{source.labels} has no label for any of {len(source.image_names)} '
      f'images, such as {source.image_names[0]}.',
      argument='annotations',
      path=source.labels,
    )
  call = functools.partial(
    read_image, read=read, source=source, unlabelled=unlabelled
  )
  tasks = ((name, labels.get(name)) for name in source.image_names)
  total = len(source.image_names)
  results = workers.map_images(call, tasks, total, source.num_workers)
  entries, annotations, findings = [], [], []
  for image_id, (name, found) in enumerate(zip(source.image_names, results), 1):
    findings += found.findings
    if found.size is None:
      continue
    height, width = found.size
    entry = {'id': image_id, 'file_name': name}
    entries.append({**entry, 'height': height, 'width': width})
    for each in found.objects:
      ids = {'id': len(annotations) + 1, 'image_id': image_id, 'iscrowd': 0}
      annotations.append({**ids, **each})
  categories = [{'id': i, 'name': name} for i, name in names.items()]
  content = {'images': entries, 'annotations': annotations}
  return {**content, 'categories': categories}, findings


def read_image(
  name: str,
  label: Any,
  read: Callable[[Any, Image], ImageLabels],
  source: Source,
  unlabelled: str = 'error',
) -> ImageLabels:
  """The labels of an image, its objects with box and area; see `collect`."""
  path = os.path.join(source.images_dir, name)
  try:
    image = Image(path, images.read_sizes(path))
  except ValueError as error:
    message = f'{error}. Replace the file or remove it.'
    finding = Finding('unusable_image', path, message, 'error')
    return ImageLabels(None, findings=(finding,))
  if label is None:
    is_empty = unlabelled == 'note'
    message = f'has no label in {source.labels}: ' + (
      'no objects.' if is_empty else 'one without objects needs an empty one.'
    )
    finding = Finding('missing_label', path, message, unlabelled)
    size = image.sizes[1] if is_empty else None
    return ImageLabels(size, findings=(finding,))
  found = read(label, image)
  objects = [_measure(each, found.size) for each in found.objects]
  return dataclasses.replace(found, objects=objects)


def _measure(entry, size) -> dict:
  """An object with its box and its area in pixels."""
  segmentation = entry['segmentation']
  if isinstance(segmentation, dict):
    box = coco_mask.toBbox(segmentation).tolist()
    area = int(coco_mask.area(segmentation))
  else:
    corners = np.concatenate([np.reshape(x, (-1, 2)) for x in segmentation])
    first, last = corners.min(axis=0), corners.max(axis=0)
    box = [*first.tolist(), *(last - first).tolist()]
    area = np.count_nonzero(masks.decode_segmentation(segmentation, *size))
  return {**entry, 'bbox': box, 'area': int(area)}
