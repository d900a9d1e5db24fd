"""Image files as records store them, and the list of image file endings.

JPEG and PNG files go into a record byte for byte, in any colour mode; other
formats, some of which TensorFlow cannot decode, as PNG. Of 16 bits the upper 8
count.

Cameras store some photos rotated and note that in EXIF. The size in the
annotations tells which orientation they refer to: the stored pixels (COCO's own
practice; the flag is then ignored, by TensorFlow too) or the upright photo,
which is then stored upright, as JPEG.
"""

import io
import os
import pathlib
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageOps

from maskrcnn_jax.errors import UserError

# Files that are taken from a folder. A file that is named may have any ending.
ENDINGS = (
  *('.jpg', '.jpeg', '.jpe', '.jfif', '.mpo', '.png', '.gif', '.bmp', '.dib'),
  *('.tif', '.tiff', '.webp', '.avif', '.jp2', '.j2k', '.ppm', '.pgm', '.pbm'),
  *('.pnm', '.tga'),
)
KEPT_FORMATS = ('JPEG', 'MPO', 'PNG')  # MPO: a JPEG followed by a preview.
_JPEG_QUALITY = 95
_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap height and width.
# What Pillow raises on files that it cannot read.
UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)


def find_in_folder(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields the image files in a folder and below, in the order of their names.

  Hidden files, such as those that macOS leaves, are skipped.
  """
  for path in sorted(pathlib.Path(folder).rglob('*')):
    is_image = path.suffix.lower() in ENDINGS and not path.name.startswith('.')
    if is_image and path.is_file():
      yield path


def read_sizes(
  path: str | os.PathLike,
) -> tuple[tuple[int, int], tuple[int, int]]:
  """(height, width) of an image as stored, and as EXIF rotates it.

  Raises:
    UserError: the file cannot be read.
  """
  try:
    with Image.open(path) as image:
      orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
      stored = image.size[::-1]
  except UNREADABLE as error:
    raise UserError(f'cannot be read ({error})', path=path) from error
  return stored, stored[::-1] if orientation in _TRANSPOSED else stored


def read_image(
  path: str | os.PathLike, height: int, width: int
) -> tuple[bytes, str | None]:
  """Reads an image file and checks that all of it decodes to a size.

  Returns:
    The bytes to store, and how they differ from the plain file: None,
    `stored_upright`, `rotation_ignored` or `stored_as_png`.

  Raises:
    UserError: the file is missing, corrupt or of another size.
  """
  try:
    encoded = pathlib.Path(path).read_bytes()
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Of Pillow, about odd EXIF blocks.
      with Image.open(io.BytesIO(encoded)) as image:
        image.load()  # Decodes all of it: a truncated file ends here.
        return _fit(encoded, image, (height, width), path)
  except UNREADABLE as error:
    raise UserError(f'cannot be read ({error})', path=path) from error


def _fit(encoded, image, size, path):
  orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
  if is_turned(image.size[::-1], orientation, size, path):
    upright = to_rgb(ImageOps.exif_transpose(image))
    return _encode(upright, 'JPEG'), 'stored_upright'
  if image.format not in KEPT_FORMATS:
    return _encode(to_rgb(image), 'PNG'), 'stored_as_png'
  return encoded, None if orientation == 1 else 'rotation_ignored'


def is_turned(
  stored: tuple[int, int],
  orientation: int,
  size: tuple[int, int] | None,
  path: str | os.PathLike | None = None,
) -> bool:
  """Whether the EXIF orientation of an image is applied.

  Args:
    stored: (height, width) of the pixels in the file.
    orientation: by EXIF; 1 if there is none.
    size: (height, width) that the annotations give; None: not known.
    path: of the file, for the error.

  Raises:
    UserError: neither the stored nor the upright image has the size.
  """
  if size is None:
    return orientation in range(2, 9)
  if stored == size:
    return False
  if orientation in _TRANSPOSED and stored == size[::-1]:
    return True
  raise UserError(
    f'is {stored[0]} x {stored[1]} (height x width), the JSON says {size[0]} x '
    f'{size[1]}',
    path=path,
    given=stored,
    wanted=size,
  )


def to_rgb(image: Image.Image) -> Image.Image:
  """Converts to 8-bit RGB as TensorFlow does: no alpha, upper 8 of 16 bits.

  Pillow's own conversion makes all but the darkest of 16 bits white.
  """
  if image.mode.startswith('I;16'):
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  return image.convert('RGB')


def _encode(image, kind):
  stream = io.BytesIO()
  # Without its EXIF block: the pixels are upright now.
  image.info.pop('exif', None)
  options = {'quality': _JPEG_QUALITY, 'subsampling': 0}
  image.save(stream, kind, **(options if kind == 'JPEG' else {}))
  return stream.getvalue()
