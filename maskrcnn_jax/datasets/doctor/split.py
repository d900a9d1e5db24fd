"""A split of a data set, with the findings on its images and objects."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence

from maskrcnn_jax.datasets import coco_json, examples, workers
from maskrcnn_jax.datasets.coco_json import CocoDataset, CocoImage
from maskrcnn_jax.datasets.doctor import objects
from maskrcnn_jax.datasets.doctor.objects import CheckedObject
from maskrcnn_jax.datasets.findings import Finding


@dataclasses.dataclass(frozen=True)
class Split:
  """A split of a data set, read and checked entry by entry.

  Attributes:
    name: `train` or `val`.
    images_dir: folder of the images.
    dataset: the usable entries of the json.
    objects: all usable objects.
    digests: of the usable image files, by image id.
    findings: on entries of the json, images and objects.
  """

  name: str
  images_dir: str
  dataset: CocoDataset
  objects: Sequence[CheckedObject]
  digests: dict[int, bytes]
  findings: Sequence[Finding]

  @property
  def file(self) -> str:
    """The json."""
    return self.dataset.annotations_file


def read_split(
  name: str,
  images_dir: str | os.PathLike,
  annotations_file: str | os.PathLike,
  num_workers: int | None = None,
) -> Split:
  """Reads and checks all images and objects of a split.

  Args:
    name: see `Split`.
    images_dir: folder that the json's file names are relative to.
    annotations_file: COCO instances json.
    num_workers: processes; by default one per core.

  Raises:
    FileNotFoundError: there is no such folder.
    UserError: the file is no COCO file at all.
  """
  images_dir = os.fspath(images_dir)
  if not os.path.isdir(images_dir):
    raise FileNotFoundError(f'There is no folder of images {images_dir}.')
  dataset = coco_json.inspect(annotations_file)
  findings = list(dataset.findings)
  found, digests = [], {}
  tasks = (
    (image, dataset.annotations.get(image.image_id, ()))
    for image in dataset.images
  )
  check = functools.partial(
    check_image, images_dir=images_dir, file=dataset.annotations_file
  )
  results = workers.map_images(check, tasks, len(dataset.images), num_workers)
  for image, (digest, checked, problems) in zip(dataset.images, results):
    if digest is not None:
      digests[image.image_id] = digest
    found += checked
    findings += problems
  return Split(name, images_dir, dataset, found, digests, findings)


def check_image(
  image: CocoImage, entries: Sequence[dict], images_dir: str, file: str
) -> tuple[bytes | None, list[CheckedObject], list[Finding]]:
  """Reads an image and its objects.

  Args:
    image: its entry.
    entries: its annotations.
    images_dir: folder of the images.
    file: the json.

  Returns:
    The digest of the file, None if it is unusable; the usable objects, even of
    an unusable file; the findings.
  """
  path = os.path.join(images_dir, image.file_name)
  digest, checked, findings = None, [], []
  missing = coco_json.find_missing(image, images_dir, file)
  if missing is None:
    encoded, finding = examples.read_image(image, path)
    findings += [] if finding is None else [finding]
    if encoded is not None:
      digest = hashlib.sha256(encoded).digest()
  else:
    findings.append(missing)
  for entry in entries:
    usable, problems = objects.check_object(entry, image, path)
    findings += problems
    checked += [] if usable is None else [usable]
  return digest, checked, findings
