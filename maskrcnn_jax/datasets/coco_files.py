"""Image files of a COCO JSON: their names looked up in the folder of images.

Exporters write paths of other systems, URLs, or folders that do not exist here.
Such a name means the file of its last part, with as many folders as both have,
if there is one such file and no other entry means it.
"""

import collections
import contextlib
import dataclasses
import os
import urllib.parse
from collections.abc import Iterable, Iterator

from maskrcnn_jax import files
from maskrcnn_jax.datasets import images
from maskrcnn_jax.datasets.coco_json import CocoDataset, CocoImage
from maskrcnn_jax.datasets.findings import (
  Finding,
  InvalidEntryError,
  collected,
)
from maskrcnn_jax.datasets.formats.source import Source, folded, passed_over
from maskrcnn_jax.errors import UserError, brief


def find(
  dataset: CocoDataset,
  images_dir: str | os.PathLike,
  allow_outside: bool = False,
  required: bool = True,
) -> CocoDataset:
  """The data set with the names of the files that its images mean.

  Args:
    dataset: of a COCO JSON.
    images_dir: folder of the images.
    allow_outside: see `check_file`.
    required: add an error for every image that is no file.
  """
  problems, missing = [], []
  for image in dataset.images:
    with collected(problems, dataset.annotations_file, image.image_id):
      check_file(image, images_dir, allow_outside)
      continue
    missing.append(image)
  names, several = _look_up(missing, images_dir, dataset.annotations_file)
  meant = collections.Counter(
    names.get(x.image_id, os.path.normpath(x.file_name)) for x in dataset.images
  )
  taken = {i: name for i, name in names.items() if meant[name] == 1}
  findings = [*dataset.findings]
  if taken:
    findings.append(_note(dataset, images_dir, taken))
  for each in problems if required else ():
    name = names.get(each.image_id)
    if name and each.image_id not in taken:
      message = f'Several entries may mean {brief(name)} there.'
      each = dataclasses.replace(each, message=f'{each.message} {message}')
    elif each.image_id in several:
      message = f'It may mean any of {brief(several[each.image_id])} there.'
      each = dataclasses.replace(each, message=f'{each.message} {message}')
    if each.image_id not in taken:
      findings.append(each)
  found = (
    dataclasses.replace(x, file_name=taken.get(x.image_id, x.file_name))
    for x in dataset.images
  )
  return dataclasses.replace(
    dataset, images=tuple(found), findings=tuple(findings)
  )


def check_file(
  image: CocoImage, images_dir: str | os.PathLike, allow_outside: bool = False
) -> None:
  """Raises an `InvalidEntryError` unless an image is a file of a folder.

  Args:
    image: entry of a COCO file.
    images_dir: the folder.
    allow_outside: the name may lead out of it, see `files.inside`.
  """
  try:
    if not allow_outside:
      files.inside(images_dir, image.file_name)
  except UserError as error:
    message = f'{error}. Correct the file_name, or give --allow_outside.'
    raise InvalidEntryError('outside_folder', message) from None
  path = os.path.join(images_dir, image.file_name)
  if not os.path.isfile(path):
    message = f'{path} does not exist. Add it, or remove the entry of the JSON.'
    raise InvalidEntryError('missing_image', message)


def find_unlisted(
  images_dir: str | os.PathLike, listed: Iterable[str], file: str
) -> Iterator[Finding]:
  """Yields the files of a folder that are not in a JSON, images as a note.

  Args:
    images_dir: the folder.
    listed: names of images in the JSON.
    file: the JSON.
  """
  listed = {os.path.normpath(name) for name in listed}
  for path in images.walk(images_dir):
    if os.path.relpath(path, images_dir) in listed:
      continue
    yield from passed_over(path)
    if path.suffix.lower() in images.ENDINGS:
      message = (
        f'is not in {file}, so it is not used. Add it there, if only as an '
        'image without objects, or move it away.'
      )
      yield Finding('image_not_listed', str(path), message, 'note')


def _look_up(missing, images_dir, file):
  """Names of the files that missing images mean, or may mean, by image id."""
  names, several = {}, {}
  if not missing:
    return names, several
  source = Source(images_dir, file)
  with contextlib.suppress(UserError):  # There is no image at all.
    for image in missing:
      for name in readings(image.file_name):
        found = [
          each
          for each in source.find_images(name)
          if folded(_last(each)) == folded(_last(name))
        ]
        if len(found) == 1:
          names[image.image_id] = found[0]
          break
        if found:
          several.setdefault(image.image_id, found)
  return names, several


def readings(file_name) -> Iterator[str]:
  """Yields paths that a name may mean."""
  yield file_name
  with contextlib.suppress(ValueError):
    address = urllib.parse.urlsplit(file_name.replace('\\', '/'))
    # Label Studio's local files are in the query.
    yield from urllib.parse.parse_qs(address.query).get('d', ())
    yield urllib.parse.unquote(address.path)


def _last(name) -> str:
  return name.replace('\\', '/').rpartition('/')[2]


def _note(dataset, images_dir, taken) -> Finding:
  """Note on names that were looked up; the id is that of the first image."""
  first = next(x for x in dataset.images if x.image_id in taken)
  what = 'a path of Windows' if '\\' in first.file_name else 'no file'
  message = (
    f'the file_name {brief(first.file_name)} is {what} in {images_dir}: '
    f'{brief(taken[first.image_id])} there is taken, as for {len(taken)} '
    'images in all.'
  )
  file = dataset.annotations_file
  return Finding('file_name', file, message, 'note', first.image_id)
