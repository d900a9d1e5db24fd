"""Clips to detect in: video files, and folders of images in order."""

import dataclasses
import fractions
import itertools
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.inference import image_files, video
from maskrcnn_jax.inference.video import Frame

# Frames per second of a folder, which does not tell.
FOLDER_RATE = fractions.Fraction(30)


@dataclasses.dataclass(frozen=True)
class Clip:
  """Frames of one size, in order.

  Attributes:
    path: of the file, or the folder.
    name: of its files in the output.
    length: number of frames.
    rate: frames in a second.
    read: yields every n-th frame.
    file_name: names the frame of a number.
  """

  path: pathlib.Path
  name: str
  length: int
  rate: fractions.Fraction
  read: Callable[[int], Iterator[Frame]]
  file_name: Callable[[int], str]


def is_video(path: str | os.PathLike) -> bool:
  """True for names of video files, and for patterns of them."""
  return pathlib.Path(path).suffix.lower() in video.ENDINGS


def find(
  paths: Sequence[str | os.PathLike],
  output: str | os.PathLike,
  exif: str | None = None,
  value_range: tuple[float, float] | None = None,
) -> list[Clip]:
  """The clips, each looked through from end to end.

  Args:
    paths: video files, and patterns of them; or images, see `image_files.find`,
      of which those in one folder are a clip, in the order of the numbers in
      their names.
    output: see `image_files.list_images`.
    exif, value_range: see `datasets.prepare.prepare`, for images.

  Raises:
    FileNotFoundError: there are no such files.
    UserError: there are both, or see `video.survey`.
  """
  kinds = {is_video(path) for path in paths}
  if len(kinds) > 1:
    raise UserError(
      '--images holds videos and others: detect in one kind at a time.',
      argument='images',
      given=list(map(str, paths)),
    )
  if kinds == {True}:
    return _videos(image_files.find(paths))
  return _folders(paths, output, exif, value_range)


def _videos(paths) -> list[Clip]:
  clips = []
  for path, name in zip(paths, _names(paths)):
    length, rate = video.survey(path)

    def read(every, path=path):
      return video.read(path, every)

    def file_name(number, name=name):
      return f'{name}/{number:06d}.png'

    clips.append(Clip(path, name, length, rate, read, file_name))
  return clips


def _folders(paths, output, exif, value_range) -> list[Clip]:
  files, _ = image_files.list_images(paths, output)
  files, seen = image_files.survey_files(files, None, exif, value_range)
  for finding in seen.findings:
    print(finding, file=sys.stderr)
  files = sorted(files, key=lambda x: (str(x.path.parent), _order(x.path.name)))
  groups = itertools.groupby(files, key=lambda x: x.path.parent)
  groups = [(folder, list(group)) for folder, group in groups]
  clips = []
  for (folder, group), name in zip(groups, _names(x for x, _ in groups)):

    def read(every, group=group):
      return _read_files(group, every, seen.ranges)

    def file_name(number, group=group):
      return pathlib.PurePath(group[number].name).as_posix()

    clips.append(Clip(folder, name, len(group), FOLDER_RATE, read, file_name))
  return clips


def _read_files(files, every, ranges) -> Iterator[Frame]:
  size = None
  for number in range(0, len(files), every):
    file = files[number]
    try:
      pixels = image_files.read(file.path, None, file.upright, ranges)
    except UserError as error:
      message = f'{file.path} {error}'
      raise UserError(message, path=file.path, item=number) from error
    size = size or pixels.shape[:2]
    video.check_same_size(pixels, size, file.path, number)
    yield Frame(number, number / float(FOLDER_RATE), pixels)


def _order(name: str) -> tuple:
  """Sorts frame2 before frame10."""
  words = re.split(r'(\d+)', name)
  return [int(x) if x.isdecimal() else x for x in words], name


def _names(paths) -> list[str]:
  """A name for each, as `image_files.picture_names` has them."""
  pictures = image_files.picture_names(
    pathlib.Path(os.path.abspath(x)) for x in paths
  )
  return [pathlib.PurePath(x).name.removesuffix('.png') for x in pictures]
