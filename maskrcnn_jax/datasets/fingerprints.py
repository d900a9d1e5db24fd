"""Fingerprints of images and labels, to tell if they have changed.

A fingerprint is the size of a file, its times of change and its SHA-256. A file
of known size and times is not read again.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from maskrcnn_jax.datasets.formats import class_names, convert, voc
from maskrcnn_jax.datasets.formats.source import META, Source
from maskrcnn_jax.errors import UserError

Fingerprint = Sequence[int | str]
Files = Mapping[str, Fingerprint]  # By name.


def of_labels(
  source: Source, data_format: str, known: Files | None = None
) -> dict[str, Fingerprint]:
  """Fingerprints of the files that a reader of a format opens.

  Args:
    source: images and labels.
    data_format: one of `convert.FORMATS` but `auto`.
    known: earlier ones.
  """
  return _of_files(_label_files(source, data_format), known)


def of_images(
  source: Source,
  data_format: str,
  listed: Sequence[str],
  known: Files | None = None,
) -> dict[str, Fingerprint]:
  """Fingerprints of the images.

  Args:
    source: images and labels.
    data_format: one of `convert.FORMATS` but `auto`.
    listed: names of the images, for one of `convert.OF_COCO`.
    known: earlier ones.
  """
  names = listed if data_format in convert.OF_COCO else source.image_names
  root = pathlib.Path(source.images_dir)
  return _of_files(((name, root / name) for name in names), known)


def changes(
  source: Source, data_format: str, labels: Files, images: Files
) -> dict[str, list[str]]:
  """Labels and images that are not as before.

  Args:
    source: images and labels.
    data_format: one of `convert.FORMATS` but `auto`.
    labels: earlier fingerprints.
    images: earlier fingerprints.

  Returns:
    By `annotations` and `images`: `PATH has changed`, `is gone` or `is new`.
  """
  folder = pathlib.Path(source.labels)
  folder = folder.parent if folder.is_file() else folder
  now = of_labels(source, data_format, labels)
  now_images = of_images(source, data_format, [*images], images)
  return {
    'annotations': _differences(folder, labels, now),
    'images': _differences(source.images_dir, images, now_images),
  }


def written_name(name: str) -> str:
  """The name of a file in a JSON, which holds no names that are no Unicode."""
  return name.encode('utf-8', 'backslashreplace').decode()


def check_outside(source: Source, data_format: str, folder) -> None:
  """Raises if a folder lies among the files that are searched for data.

  Pictures and records of a run would be taken for data of the next one.

  Raises:
    UserError: it does; names the searched folder.
  """
  folder = pathlib.Path(folder).resolve()
  searched = {'--annotations': source.labels}
  if data_format not in convert.OF_COCO:
    searched['--images'] = source.images_dir
  for argument, path in searched.items():
    path = pathlib.Path(path)
    if path.is_dir() and folder.is_relative_to(path.resolve()):
      raise UserError(
        f'{folder} lies in {path}, which is searched for images and labels: '
        f'take another --workdir, or a folder within {path} as {argument}.',
        argument='--workdir',
        path=path,
        given=str(folder),
      )


def _differences(folder, before, now) -> list[str]:
  changed = {name: 'is gone' for name in before if name not in now}
  for name, fingerprint in now.items():
    if name not in before:
      changed[name] = 'is new'
    elif fingerprint[-1] != before[name][-1]:
      changed[name] = 'has changed'
  return [f'{os.path.join(folder, k)} {verb}' for k, verb in changed.items()]


def _label_files(source, data_format) -> Iterator[tuple[str, pathlib.Path]]:
  """Names and paths of the files that a reader of a format opens."""
  if data_format in convert.OF_COCO:
    is_file = os.path.isfile(source.labels)
    for name, path in source.files.items():
      if is_file or path.suffix.lower() == '.json':
        yield name, path
    return
  yield from source.files.items()
  labels = pathlib.Path(source.labels).resolve()
  if data_format == 'voc':
    labels = voc.find_folder(source)
    for folder in voc.FOLDERS:
      masks = Source(source.images_dir, labels / folder)
      for name, path in masks.files.items():
        yield f'{folder}/{name}', path
  # Names of the classes may lie above the labels.
  for place in (labels, *list(labels.parents)[:2]):
    for name in (*class_names.FILES, META, voc.LABEL_MAP):
      yield os.path.relpath(place / name, labels), place / name


def _of_files(named, known) -> dict[str, Fingerprint]:
  """Fingerprints by name of those that are files."""
  found, known = {}, known or {}
  for name, path in named:
    if path.is_file():
      name = written_name(name)
      found[name] = _fingerprint(path, known.get(name))
  return found


def _fingerprint(path, known) -> Fingerprint:
  status = os.stat(path)
  # A copy has another time of change, whatever its time of modification.
  times = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
  if known and list(known[:-1]) == times:
    return known
  with open(path, 'rb') as file:
    return [*times, hashlib.file_digest(file, 'sha256').hexdigest()]
