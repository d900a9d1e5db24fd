"""Image files as records hold them: whole, and as large as the json says.

JPEG and PNG files go into a record byte for byte, of any colour mode; others,
some of which TensorFlow cannot decode, as PNG. Of 16 bits the upper 8 count.

Cameras store some pictures turned and note that in EXIF. Which way up the
annotations are shows in the size the json gives: that of the stored pixels
(COCO's own practice; the flag is then ignored, by TensorFlow too) or that of
the upright picture, which is then stored upright, as JPEG.
"""

import io
import os
import pathlib
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageOps

from maskrcnn_jax.errors import UserError

KEPT_FORMATS = ('JPEG', 'MPO', 'PNG')  # MPO: a JPEG with a preview behind it.
_JPEG_QUALITY = 95


def read_image(
  path: str | os.PathLike, height: int, width: int
) -> tuple[bytes, str | None]:
  """An image file that decodes to the given size.

  Returns:
    The file's bytes, and what was done to them: None, `stored_upright`,
    `rotation_ignored` or `stored_as_png`.

  Raises:
    ValueError: if the file is missing, damaged or of another size; says how.
  """
  try:
    encoded = pathlib.Path(path).read_bytes()
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Of Pillow, about odd EXIF blocks.
      with Image.open(io.BytesIO(encoded)) as image:
        image.load()  # Decodes all of it: a truncated file ends here.
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return _fit(encoded, image, orientation, (width, height))
  except (OSError, SyntaxError, Image.DecompressionBombError) as error:
    raise UserError(f'cannot be read ({error})') from error


def _fit(encoded, image, orientation, size):
  if image.size == size:
    if image.format not in KEPT_FORMATS:
      return _encode(to_rgb(image), 'PNG'), 'stored_as_png'
    return encoded, None if orientation == 1 else 'rotation_ignored'
  if orientation in (5, 6, 7, 8) and image.size == size[::-1]:
    upright = to_rgb(ImageOps.exif_transpose(image))
    return _encode(upright, 'JPEG'), 'stored_upright'
  raise UserError(
    f'is {image.size[1]} x {image.size[0]} (height x width), the json says '
    f'{size[1]} x {size[0]}'
  )


def to_rgb(image: Image.Image) -> Image.Image:
  """8-bit RGB as TensorFlow makes it: without alpha, of 16 bits the upper 8.

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
