"""A split of a data set, with the findings on its images and objects."""

import collections
import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence

from maskrcnn_jax.datasets import (
  coco_files,
  examples,
  labelled,
  survey,
  workers,
)
from maskrcnn_jax.datasets.coco_json import CocoDataset, CocoImage
from maskrcnn_jax.datasets.doctor import objects
from maskrcnn_jax.datasets.doctor.objects import CheckedObject
from maskrcnn_jax.datasets.findings import Finding, collected
from maskrcnn_jax.datasets.formats import convert
from maskrcnn_jax.datasets.labelled import LabelOptions


@dataclasses.dataclass(frozen=True)
class Split:
  """A split of a data set, read and checked entry by entry."""

  name: str  # `train` or `val`.
  images_dir: str
  dataset: CocoDataset  # The usable entries of the json.
  objects: Sequence[CheckedObject]  # All usable ones.
  digests: dict[int, bytes]  # Of the usable image files, by image id.
  findings: Sequence[Finding]  # On entries of the json, images and objects.
  ranges: Mapping[str, tuple[float, float]]  # See `survey`.
  data_format: str = convert.COCO

  @property
  def file(self) -> str:
    """The json."""
    return self.dataset.annotations_file

  def image_path(self, image: CocoImage) -> str:
    """Path of the file of an image."""
    return os.path.join(self.images_dir, image.file_name)

  def count_classes(self) -> collections.Counter:
    """Number of objects of every class id, without crowds."""
    return collections.Counter(
      each.class_id for each in self.objects if not each.is_crowd
    )

  def finding(
    self,
    kind: str,
    message: str,
    severity: str = 'warning',
    image: CocoImage | None = None,
  ) -> Finding:
    """A finding on the json, or on an image."""
    if image is None:
      return Finding(kind, self.file, message, severity)
    path = self.image_path(image)
    return Finding(kind, path, message, severity, image.image_id)


def read_split(
  name: str,
  images_dir: str | os.PathLike,
  annotations_file: str | os.PathLike,
  options: LabelOptions,
  numbers: Mapping[int, str] | None = None,
) -> Split:
  """Reads and checks all images and objects of a split.

  See `check.check`; for `numbers`, see `Source`.
  """
  allow_outside, num_workers = options.allow_outside, options.num_workers
  images_dir = os.fspath(images_dir)
  if not os.path.isdir(images_dir):
    raise FileNotFoundError(f'There is no folder of images {images_dir}.')
  file = os.fspath(annotations_file)
  source = options.source(images_dir, file, numbers)
  data_format = convert.find_format(options.data_format, source)
  _, dataset = labelled.read_entries(
    source, data_format, file, allow_outside, required=False
  )
  dataset, seen = survey.of_dataset(
    *(dataset, images_dir, options.exif, options.value_range, allow_outside)
  )
  findings = [*dataset.findings, *seen.findings]
  found, digests = [], {}
  entries = dataset.annotations
  tasks = ((x, entries.get(x.image_id, ())) for x in dataset.images)
  check = functools.partial(
    check_image,
    images_dir=images_dir,
    file=file,
    allow_outside=allow_outside,
    ranges=seen.ranges,
  )
  results = workers.map_images(check, tasks, len(dataset.images), num_workers)
  for image, (digest, checked, problems) in zip(dataset.images, results):
    if digest is not None:
      digests[image.image_id] = digest
    found += checked
    findings += problems
  parts = name, images_dir, dataset, found, digests, findings, seen.ranges
  return Split(*parts, data_format)


def check_image(
  image: CocoImage,
  entries: Sequence[dict],
  images_dir: str,
  file: str,
  allow_outside: bool,
  ranges: Mapping[str, tuple[float, float]],
) -> tuple[bytes | None, list[CheckedObject], list[Finding]]:
  """Reads an image and its objects.

  Returns:
    The digest of the file, None if it is unusable; the usable objects, even of
    an unusable file; the findings.
  """
  path = os.path.join(images_dir, image.file_name)
  encoded, findings, checked, shapes = None, [], [], []
  with collected(findings, file, image.image_id):
    coco_files.check_file(image, images_dir, allow_outside)
    encoded, finding = examples.read_image(image, path, ranges)
    findings += [finding] if finding else []
  for entry in entries:
    usable, problems = objects.check_object(entry, image, path)
    findings += problems
    if usable is not None:
      checked.append(usable)
      shapes.append((entry.get('id'), usable.shape))
  findings += examples.find_doubles(shapes, path, image.image_id)
  digest = hashlib.sha256(encoded).digest() if encoded is not None else None
  return digest, checked, findings
