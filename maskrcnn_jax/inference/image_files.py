"""Image files of any kind as the pixels that training and evaluation see.

JPEG and PNG are decoded by TensorFlow, as records are; the others by Pillow, as
`prepare` does. A picture that a camera stored turned comes out upright.
"""

import contextlib
import glob
import io
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import ExifTags, Image, ImageOps

from maskrcnn_jax.datasets import images
from maskrcnn_jax.errors import UserError

# Pixels of the largest image that is read: 3 GiB as RGB.
MOST_PIXELS = 2**30
# TensorFlow decodes no larger ones (`jpeg_mem.cc`: fewer than 2 ** 29 bytes).
_MOST_PIXELS_OF_TENSORFLOW = 2**29 // 3


def find(paths: Sequence[str | os.PathLike]) -> list[pathlib.Path]:
  """The image files that are meant, each once.

  Args:
    paths: files; folders, of which every image in them and below is taken, in
      the order of their names; patterns such as `photos/*.jpg`, `**` for any
      folders.

  Raises:
    FileNotFoundError: one of them is no file, folder or pattern that fits; or a
      folder holds no image.
  """
  found = {}
  for path in paths:
    files = list(_expand(path))
    if not files:
      raise FileNotFoundError(
        f'{path} holds no image file ({", ".join(images.ENDINGS)}).'
      )
    for file in files:
      found.setdefault(os.path.abspath(file), file)
  return list(found.values())


def _expand(path) -> Iterator[pathlib.Path]:
  """The files that one path means."""
  named = pathlib.Path(path)
  if named.is_dir():
    yield from images.find_in_folder(named)
    return
  if named.exists():
    yield named
    return
  matches = sorted(glob.glob(os.fspath(path), recursive=True))
  if not matches:
    raise FileNotFoundError(
      f'{path} is no file or folder, and nothing matches it as a pattern.'
    )
  for match in map(pathlib.Path, matches):
    if match.is_dir():
      yield from _expand(match)
    else:
      yield match


def read(
  path: str | os.PathLike, size: tuple[int, int] | None = None
) -> np.ndarray:
  """The pixels of an image file, `[h, w, 3]` uint8 RGB.

  Grey is repeated, alpha dropped, a palette looked up; of 16 bits the upper 8
  are taken, and of an animation the first picture.

  Args:
    path: of the file.
    size: (height, width) that the image has in a data set. It decides whether a
      picture that was stored turned is meant upright, as in `prepare`. None:
      upright.

  Raises:
    ValueError: it is no image, damaged, larger than `MOST_PIXELS` or not of the
      given size; says what.
  """
  try:
    encoded = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise UserError(f'cannot be read ({error.strerror})') from error
  if not encoded:
    raise UserError('is empty')
  return _turn(*_decode(encoded), size)


def _decode(encoded: bytes) -> tuple[np.ndarray, int]:
  """Pixels as they are stored, and EXIF's word on which way up that is."""
  # It loads TensorFlow.
  from maskrcnn_jax.input_pipeline import single_images

  with _naming_damage():
    image = Image.open(io.BytesIO(encoded))
  width, height = image.size
  if height * width > MOST_PIXELS:
    raise UserError(f'is {height} x {width}, more than {MOST_PIXELS:,} pixels')
  is_kept = image.format in images.KEPT_FORMATS
  with _naming_damage():
    if is_kept and height * width <= _MOST_PIXELS_OF_TENSORFLOW:
      pixels = single_images.decode_file(encoded)
    else:
      pixels = np.asarray(images.to_rgb(image))
  # Not before: Pillow turns a TIFF by itself, and then says so no more.
  return pixels, _orientation(image)


@contextlib.contextmanager
def _naming_damage():
  """Makes what readers raise a `ValueError` that says it in a few words."""
  try:
    yield
  except Image.UnidentifiedImageError:
    raise UserError('is no image of a known format') from None
  # Pillow's readers of some forty formats raise all kinds on damaged files.
  except Exception as error:
    raise UserError(f'cannot be decoded ({error})') from error


def _orientation(image: Image.Image) -> int:
  """The EXIF orientation; 1 where EXIF is missing or cannot be read."""
  try:
    return image.getexif().get(ExifTags.Base.Orientation, 1)
  except Exception:  # As above; the picture itself may well be sound.
    return 1


def _turn(pixels, orientation: int, size) -> np.ndarray:
  """The pixels the way up that is wanted.

  Raises:
    ValueError: no way up has the size.
  """
  stored = pixels.shape[:2]
  if size is None:
    is_turned = orientation in range(2, 9)
  elif tuple(size) == stored:
    is_turned = False
  elif tuple(size) == stored[::-1] and orientation in range(5, 9):
    is_turned = True
  else:
    raise UserError(
      f'is {stored[0]} x {stored[1]} (height x width), the json says '
      f'{size[0]} x {size[1]}'
    )
  if not is_turned:
    return pixels
  image = Image.fromarray(pixels)
  image.getexif()[ExifTags.Base.Orientation] = orientation
  return np.asarray(ImageOps.exif_transpose(image))
