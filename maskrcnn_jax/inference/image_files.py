"""Image files: finding them, their ids and names, and reading their pixels.

Pillow decodes them, to the pixels that training sees of the records that
`prepare` makes of them. EXIF orientation is applied.
"""

import collections
import dataclasses
import glob
import logging
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from PIL import ExifTags, Image, ImageOps

from maskrcnn_jax.datasets import (
  categories,
  coco_files,
  coco_json,
  images,
  stored_images,
  survey,
  value_range,
)
from maskrcnn_jax.datasets.formats.source import folded
from maskrcnn_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ImageFile:
  """An image to detect objects in."""

  path: pathlib.Path
  image_id: int  # In the results.
  size: tuple[int, int] | None  # (height, width) by the annotations, if known.
  picture: str  # Name of its picture in the output.
  name: str  # Shown in the page.
  upright: bool | None = (
    None  # By the annotations, see `stored_images.is_turned`.
  )


def list_images(
  paths: Sequence[str | os.PathLike],
  output: str | os.PathLike,
  annotations: str | os.PathLike | None = None,
) -> tuple[list[ImageFile], Mapping[int, str]]:
  """The image files, and the class names of the annotations.

  Args:
    paths: see `find`.
    output: folder whose images are skipped: pictures of an earlier run.
    annotations: COCO json with ids and sizes by file name; None: ids count
      from 1.

  Raises:
    FileNotFoundError: there are no such images.
    UserError: an image is not in the annotations, or two have the same entry.
  """
  inside = pathlib.Path(output).resolve()
  found = [x for x in find(paths) if inside not in x.resolve().parents]
  if not found:
    raise FileNotFoundError(f'--images holds nothing but --output {output}.')
  class_names, ids, sizes = {}, range(1, len(found) + 1), [None] * len(found)
  upright = [None] * len(found)
  if annotations is not None:
    dataset = coco_json.load(annotations, lists=('images', 'categories'))
    class_names, entries = dataset.class_names, _match(found, dataset)
    ids = [entry.image_id for entry in entries]
    sizes = [(entry.height, entry.width) for entry in entries]
    upright = [entry.upright for entry in entries]
  common = os.path.commonpath([os.path.abspath(x.parent) for x in found])
  names = [os.path.relpath(path, common) for path in found]
  rows = zip(found, ids, sizes, picture_names(found), names, upright)
  return [ImageFile(*row) for row in rows], class_names


def find(paths: Sequence[str | os.PathLike]) -> list[pathlib.Path]:
  """Image files by path, folder or pattern, each once.

  Args:
    paths: files; folders, of which every image in them and below is taken, in
      the order of their names; patterns such as `photos/*.jpg`, `**` for any
      folders.

  Raises:
    FileNotFoundError: one of them is none of these.
  """
  found = {}
  for path in paths:
    files = list(_expand(path))
    if not files:
      raise FileNotFoundError(
        f'{path} is no file, no folder with images '
        f'({", ".join(images.ENDINGS)}) and no pattern that matches.'
      )
    for file in files:
      found.setdefault(os.path.abspath(file), file)
  return list(found.values())


def _expand(path) -> Iterator[pathlib.Path]:
  named = pathlib.Path(path)
  # A file's own name may look like a pattern.
  matches = [named]
  if not named.exists():
    matches = map(pathlib.Path, sorted(glob.glob(str(path), recursive=True)))
  for match in matches:
    if match.is_dir():
      yield from images.find_in_folder(match)
    else:
      yield match


def picture_names(paths: Iterable[pathlib.Path]) -> list[str]:
  """Names `pictures/NAME.png` of images; a second NAME gets `-2` and so on."""
  taken, names = set(), []
  for path in paths:
    stem, number = path.stem, 1
    # Some file systems ignore case.
    while stem.casefold() in taken:
      number += 1
      stem = f'{path.stem}-{number}'
    taken.add(stem.casefold())
    names.append(f'pictures/{stem}.png')
  return names


def warn_of_other_names(
  trained: Mapping[int, str], annotated: Mapping[int, str], source, annotations
) -> None:
  """Warns if annotations name or number classes otherwise than a checkpoint.

  Args:
    trained: names by class id in the checkpoint, which results have.
    annotated: those of the annotations.
    source: of the checkpoint.
    annotations: their path.
  """
  sides = (
    {k: categories.Category(name, k) for k, name in names.items()}
    for names in (trained, annotated)
  )
  try:
    where = source, '--annotations', annotations
    categories.check_same_classes(*sides, *where)
  except UserError as error:
    logging.warning(
      '%s has class %d as %r, and %s has not: results have the classes of the '
      'checkpoint, and would score 0 with this file.',
      *(annotations, error.item, error.given, source),
    )


def _match(paths, dataset) -> list[coco_json.CocoImage]:
  """The entry of each file, by as many folders of its name as possible."""
  by_name, by_last = {}, collections.defaultdict(list)
  for image in dataset.images:
    names = [*coco_files.readings(image.file_name)]
    by_name |= {x: by_name.get(x, image) for x in names[1:]}
    for last in {folded(pathlib.PurePath(name).name) for name in names}:
      by_last[last].append(image)
  by_name |= {image.file_name: image for image in dataset.images}
  file, owners, unknown = dataset.annotations_file, {}, []
  for path in paths:
    parts = pathlib.Path(os.path.abspath(path)).parts
    tails = ['/'.join(parts[i:]) for i in range(1, len(parts))]
    known = [by_name[tail] for tail in tails if tail in by_name][:1]
    # The annotations may name folders that do not exist here.
    known = known or by_last[folded(path.name)]
    if len(known) != 1:
      unknown.append(path)
      continue
    other, image = owners.setdefault(known[0].image_id, (path, known[0]))
    if other != path:
      raise UserError(
        f'{other} and {path} would both be image {image.image_id} '
        f'({image.file_name}) of {file}.',
        path=path,
        item=image.image_id,
      )
  if unknown:
    raise UserError(
      f'{len(unknown)} of {len(paths)} images are not in {file}, such as '
      f'{unknown[0]}.',
      path=file,
      item=str(unknown[0]),
    )
  return [image for _, image in owners.values()]


def survey_files(
  files: Sequence[ImageFile],
  annotations: str | os.PathLike | None = None,
  exif: str | None = None,
  value_range: tuple[float, float] | None = None,
) -> tuple[list[ImageFile], survey.Survey]:
  """The files with `upright`, and the survey, which has value ranges.

  See `survey.read`, with the same rules as in `prepare`.
  """
  rows = [
    (file.path, file.size if file.upright is None else None) for file in files
  ]
  source = '--images' if annotations is None else os.fspath(annotations)
  seen = survey.read(rows, source, exif, value_range)
  return seen.decide(files, exif), seen


def read(
  path: str | os.PathLike,
  size: tuple[int, int] | None = None,
  upright: bool | None = None,
  ranges: Mapping[str, tuple[float, float]] | None = None,
) -> np.ndarray:
  """Pixels of an image file, `[height, width, 3]` uint8 RGB.

  Grey is repeated, alpha dropped, a palette looked up; values of more than 8
  bits are scaled, and of an animation the first frame is taken.

  Args:
    path: of the file.
    size: (height, width) of the image by its annotations; the EXIF orientation
      is applied if the image then has this size, as in `prepare`. None: always.
    upright: see `stored_images.is_turned`.
    ranges: see `value_range.to_8_bits`.

  Raises:
    UserError: the file cannot be decoded, see `images.decode`, or is not of the
      given size; the message does not repeat the path.
  """
  try:
    pixels, turn = _decode(images.read_bytes(path), ranges)
    stored, size = pixels.shape[:2], None if size is None else tuple(size)
    if not stored_images.is_turned(stored, turn, size, None, upright):
      return pixels
    image = Image.fromarray(pixels)
    image.getexif()[ExifTags.Base.Orientation] = turn
    return np.asarray(ImageOps.exif_transpose(image))
  except UserError as error:
    error.path = os.fspath(path)
    raise


def _decode(encoded: bytes, ranges) -> tuple[np.ndarray, int]:
  """Pixels as they are stored, and the EXIF orientation."""
  image = images.decode(encoded)
  image.info.pop('transparency', None)  # Pillow warns that it is lost.
  pixels = np.asarray(value_range.to_rgb(image, ranges))
  # After decoding: Pillow turns a TIFF by itself, and then drops the flag.
  return pixels, images.orientation(image)
