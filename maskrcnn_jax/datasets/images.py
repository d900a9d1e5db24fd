"""The decoder of image files, its limits, and the files of a folder.

A file is opened by its content, in one of `FORMATS` only: none of them starts
another program. Its size is compared with a budget of pixels before anything is
decoded.
"""

import contextlib
import io
import os
import pathlib
import stat
import warnings
from collections.abc import Iterator

from PIL import ExifTags, Image

from maskrcnn_jax.datasets import image_headers
from maskrcnn_jax.errors import UserError, invalid

# Of Pillow; a JPEG may turn out to be an MPO, followed by a preview.
FORMATS = ('JPEG', 'PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'AVIF', 'PPM')
# Files that are taken from a folder. A file that is named may have any ending.
ENDINGS = (
  *('.jpg', '.jpeg', '.jpe', '.jfif', '.mpo', '.png', '.gif', '.bmp', '.dib'),
  *('.tif', '.tiff', '.webp', '.avif', '.ppm', '.pgm', '.pbm', '.pnm'),
)
# 8192 x 8192: more than the 61 million of full-frame cameras. Such an image
# takes 0.2 GB decoded, and up to 1 GB on its way through training.
MAX_PIXELS = 2**26
# Passes over a JPEG of that many pixels; usual progressive ones have ten.
_MAX_SCANS = 32
_BYTES_PER_PIXEL = 8  # Of 16 bits, with alpha, not compressed.
_METADATA_BYTES = 2**25  # And previews, and the video of a moving photo.
TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap height and width.

# The budget below takes the place of Pillow's, a warning and an error.
Image.MAX_IMAGE_PIXELS = None
_limit = MAX_PIXELS


def max_pixels() -> int:
  """Pixels of the largest image that this process decodes, first MAX_PIXELS."""
  return _limit


def set_max_pixels(count: int | None, argument: str = '--max_pixels') -> None:
  """Sets `max_pixels` for everything in this process; None changes nothing.

  Raises:
    UserError: the count is no whole number of 1 or more; names the argument.
  """
  global _limit
  if count is None:
    return
  if not isinstance(count, int) or count < 1:
    raise invalid(argument, count, 'a whole number of 1 or more')
  _limit = count


def check_size(
  height: int, width: int, path: str | os.PathLike | None = None
) -> None:
  """Checks that an image, or what is claimed of it, is within the budget.

  Raises:
    UserError: a side is below 1, or there are more pixels than `max_pixels`;
      the message does not repeat the path.
  """
  if min(height, width) < 1 or height * width > _limit:
    raise UserError(
      f'is {height} x {width} (height x width), allowed are 1 to {_limit:,} '
      'pixels (--max_pixels, in training input.max_pixels)',
      path=path,
      given=(height, width),
      wanted=_limit,
    )


def check_encoded(
  encoded: bytes, path: str | os.PathLike | None = None
) -> tuple[int, int] | None:
  """`check_size` by the header of a JPEG, PNG, GIF, BMP or WebP file.

  Needs no decoder. Data that takes time but adds no pixels is limited too:
  passes over a JPEG, and what follows the last row of a PNG. Returns
  `image_headers.stored_size`.
  """
  size = image_headers.stored_size(encoded)
  if size is None:
    return None
  check_size(*size, path)
  pixels, scans = size[0] * size[1], 0
  most_scans = _MAX_SCANS * _limit // pixels
  # Fast, but counts what may lie around the image too.
  if encoded.count(b'\xff\xda') > most_scans:
    scans = image_headers.jpeg_scans(encoded)
  num_bytes = image_headers.png_data_bytes(encoded)
  for unit, count, most in (
    ('scans', scans, most_scans),
    ('bytes of image data', num_bytes, 2**16 + 9 * pixels),
  ):
    if count > most:
      raise UserError(
        f'is {size[0]} x {size[1]} and has {count} {unit}, allowed are {most}',
        path=path,
        given=count,
        wanted=most,
      )
  return size


def open_image(
  encoded: bytes, path: str | os.PathLike | None = None
) -> Image.Image:
  """Opens an image file within the budget, without decoding it.

  Raises:
    UserError: it is empty, corrupt, too large or of none of `FORMATS`; the
      message does not repeat the path.
  """
  with _errors(path):
    check_encoded(encoded, path)
    image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    check_size(*image.size[::-1], path)
    if image.format == 'TIFF':  # Whole tiles are decoded.
      tags = image.tag_v2
      check_size(tags.get(323, 1), tags.get(322, 1), path)
    return image


def decode(
  encoded: bytes, path: str | os.PathLike | None = None
) -> Image.Image:
  """Decodes all of an image file, of an animation the first frame.

  Raises a `UserError` as `open_image`, or if it is truncated.
  """
  image = open_image(encoded, path)
  load(image, path)
  return image


def orientation(image: Image.Image) -> int:
  """EXIF orientation of an image; 1 if there is none, or corrupt EXIF data.

  Decodes a PNG that does not state it before its pixels.
  """
  with contextlib.suppress(Exception), warnings.catch_warnings():
    warnings.simplefilter('ignore')
    return image.getexif().get(ExifTags.Base.Orientation, 1)
  return 1


@contextlib.contextmanager
def _errors(path):
  """Turns what Pillow raises into a `UserError`."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # About odd EXIF blocks.
      yield
  except UserError:
    raise
  except Image.UnidentifiedImageError:
    raise UserError(
      f'is no image, or of a format other than {", ".join(FORMATS)}', path=path
    ) from None
  # Pillow's plugins raise all kinds on corrupt files.
  except Exception as error:
    raise UserError(f'cannot be read ({error})', path=path) from error


def find_in_folder(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields the image files that `walk` finds, in the order of their names."""
  for path in sorted(walk(folder)):
    if path.suffix.lower() in ENDINGS and path.is_file():
      yield path


def walk(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields the files in a folder and below, of links to folders at last.

  A folder that can be reached twice is listed once, so loops end. Hidden files
  and folders, such as those that macOS leaves, are skipped.
  """
  pending, seen = [folder], set()
  while pending:
    for place, folders, names in os.walk(pending.pop(0)):
      real = os.path.realpath(place)
      folders[:] = sorted(x for x in folders if not x.startswith('.'))
      if real in seen:
        folders.clear()
        continue
      seen.add(real)
      paths = (os.path.join(place, each) for each in folders)
      pending += filter(os.path.islink, paths)
      for name in sorted(names):
        if not name.startswith('.'):
          yield pathlib.Path(place, name)


def read_sizes(
  path: str | os.PathLike,
) -> tuple[tuple[int, int], tuple[int, int]]:
  """(height, width) of an image as stored, and as EXIF rotates it."""
  image = open_image(read_bytes(path), path)
  stored = image.size[::-1]
  return stored, stored[::-1] if orientation(image) in TRANSPOSED else stored


def read_bytes(path: str | os.PathLike) -> bytes:
  """Content of an image file; the errors are those of `open_image`."""
  try:
    status = os.stat(path)
    # A pipe or a device may have no end.
    if not stat.S_ISREG(status.st_mode):
      raise UserError('is no file', path=path)
    most = _METADATA_BYTES + _BYTES_PER_PIXEL * _limit
    if not 0 < status.st_size <= most:
      raise UserError(
        f'has {status.st_size} bytes, allowed are 1 to {most}', path=path
      )
    return pathlib.Path(path).read_bytes()
  except (OSError, ValueError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(f'cannot be read ({error})', path=path) from error


def load(image: Image.Image, path: str | os.PathLike | None = None) -> None:
  """Decodes an image that `open_image` returned; raises alike."""
  with _errors(path):
    image.load()
