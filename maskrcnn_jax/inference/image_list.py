"""Which image files are looked at, and what they are called in the results."""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from maskrcnn_jax.datasets import coco_json
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.inference import image_files


@dataclasses.dataclass(frozen=True)
class ImageFile:
  """An image to be read.

  Attributes:
    path: of the file.
    image_id: in the results.
    size: (height, width) by the annotations; None: whatever it has.
    picture: name of its picture in the output.
    name: what the page calls it.
  """

  path: pathlib.Path
  image_id: int
  size: tuple[int, int] | None
  picture: str
  name: str


def make_list(
  images: Sequence[str | os.PathLike],
  output: str | os.PathLike,
  annotations: str | os.PathLike | None = None,
) -> tuple[list[ImageFile], Mapping[int, str]]:
  """The files, and the class names that the annotations tell.

  Args:
    images: see `image_files.find`.
    output: folder whose images are not meant: pictures of an earlier run.
    annotations: COCO json that tells ids and sizes by file name; None: ids
      count from 1.

  Raises:
    FileNotFoundError: there are no such images.
    ValueError: an image is not in the annotations, or two are the same there.
  """
  inside = pathlib.Path(output).resolve()
  paths = [
    path
    for path in image_files.find(images)
    if inside not in path.resolve().parents
  ]
  if not paths:
    raise FileNotFoundError(f'--images holds nothing but --output {output}.')
  if annotations is None:
    class_names = {}
    told = [(number, None) for number in range(1, len(paths) + 1)]
  else:
    dataset = coco_json.load_images(annotations)
    class_names = dataset.class_names
    told = [
      (image.image_id, (image.height, image.width))
      for image in _match(paths, dataset)
    ]
  common = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
  files = [
    ImageFile(path, image_id, size, picture, os.path.relpath(path, common))
    for path, (image_id, size), picture in zip(
      paths, told, picture_names(paths)
    )
  ]
  return files, class_names


def picture_names(paths: Iterable[pathlib.Path]) -> list[str]:
  """A name of its own for the picture of every image: `pictures/NAME.png`.

  Args:
    paths: of the images; of several with the same name all but the first get a
      number.
  """
  taken, names = set(), []
  for path in paths:
    stem, number = path.stem, 1
    # Some file systems do not tell upper from lower case.
    while stem.casefold() in taken:
      number += 1
      stem = f'{path.stem}-{number}'
    taken.add(stem.casefold())
    names.append(f'pictures/{stem}.png')
  return names


def _match(paths, dataset) -> list[coco_json.CocoImage]:
  """The entry of each file, by as many folders of its name as fit."""
  by_name = {image.file_name: image for image in dataset.images}
  by_last = collections.defaultdict(list)
  for image in dataset.images:
    by_last[pathlib.PurePath(image.file_name).name].append(image)
  found, unknown = [], []
  for path in paths:
    parts = pathlib.Path(os.path.abspath(path)).parts
    tails = ['/'.join(parts[i:]) for i in range(1, len(parts))]
    known = [by_name[tail] for tail in tails if tail in by_name][:1]
    # The annotations may know of folders that were left behind.
    known = known or by_last[path.name]
    if len(known) == 1:
      found += known
    else:
      unknown.append(path)
  if unknown:
    raise UserError(
      f'{len(unknown)} of {len(paths)} images are not in '
      f'{dataset.annotations_file}, such as {unknown[0]}.'
    )
  _check_distinct(paths, found)
  return found


def _check_distinct(paths, found) -> None:
  """Raises if two files would get the same id."""
  owners = {}
  for path, image in zip(paths, found):
    other = owners.setdefault(image.image_id, path)
    if other != path:
      raise UserError(
        f'{other} and {path} would both be image {image.image_id} '
        f'({image.file_name}) of the annotations.'
      )
