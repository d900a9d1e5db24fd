"""Images as records store them.

JPEG and PNG files go into a record byte for byte, in any colour mode, if
TensorFlow decodes them, as training does; other formats, some of which it
cannot decode, as PNG. Values of more than 8 bits are scaled, see `value_range`.

Cameras store some photos rotated and note that in EXIF. The size in the
annotations tells which orientation they refer to: the stored pixels (COCO's own
practice; the flag is then ignored, by TensorFlow too) or the upright photo,
which is then stored upright, as JPEG.
"""

import contextlib
import functools
import io
import os
from collections.abc import Mapping

from PIL import Image, ImageOps

from maskrcnn_jax.datasets import images, value_range
from maskrcnn_jax.errors import UserError, brief

_KEPT_FORMATS = ('JPEG', 'MPO', 'PNG')
_JPEG_QUALITY = 95
# Of EXIF in a JPEG, in a chunk and in a text of a PNG, and of XMP in both.
_EXIF_MARKS = (b'Exif', b'eXIf', b'exif', b'adobe')


def read(
  path: str | os.PathLike,
  height: int,
  width: int,
  upright: bool | None = None,
  ranges: Mapping[str, value_range.Range] | None = None,
) -> tuple[bytes, str | None]:
  """Reads an image file and checks that all of it decodes to a size.

  Args:
    path: of the file.
    height: of the image as stored, or as EXIF rotates it.
    width: the same.
    upright: see `is_turned`.
    ranges: see `value_range.to_8_bits`.

  Returns:
    The bytes to store, and how they differ from the plain file: None,
    `stored_upright`, `rotation_ignored`, `stored_as_png`, `first_frame` (of
    several) or `values_clipped`.

  Raises:
    UserError: the file is missing, corrupt, too large or of another size.
  """
  encoded = images.read_bytes(path)
  image = images.open_image(encoded, path)
  is_kept = keeps_bytes(image, ranges)
  if not is_kept:
    images.load(image, path)  # Pillow then turns a TIFF, and drops the flag.
  may_turn = not is_kept or mentions_exif(encoded)
  turn = images.orientation(image) if may_turn else 1
  is_turn = is_turned(image.size[::-1], turn, (height, width), path, upright)
  if is_kept and not is_turn:
    decode_as_training(encoded, path)
    return encoded, None if turn == 1 else 'rotation_ignored'
  images.load(image, path)
  pixels, clipped = value_range.to_8_bits(
    ImageOps.exif_transpose(image) if is_turn else image, ranges
  )
  note = 'stored_upright' if is_turn else 'stored_as_png'
  if not is_kept and _has_frames(encoded, path):
    note = 'first_frame'
  if clipped > value_range.MOST_CLIPPED:
    note = 'values_clipped'
  return _encode(pixels.convert('RGB'), 'JPEG' if is_turn else 'PNG'), note


def _has_frames(encoded: bytes, path: str | os.PathLike) -> bool:
  """Whether a file has a second frame or page that can be reached."""
  # Another object, as the first has its pixels.
  image = images.open_image(encoded, path)
  try:
    image.seek(1)
  except Exception:  # Pillow's plugins raise all kinds on corrupt frames.
    return False
  return True


def keeps_bytes(
  image: Image.Image, ranges: Mapping[str, value_range.Range] | None = None
) -> bool:
  """Whether TensorFlow decodes the file of an image to the wanted pixels.

  It decodes JPEG and PNG, and of 16 bits takes the upper 8.
  """
  kind = value_range.kind(image)
  if kind is not None:
    whole = (ranges or {}).get(kind) == value_range.OF_TYPE.get(kind)
    return image.format == 'PNG' and whole
  return image.format in _KEPT_FORMATS


def mentions_exif(encoded: bytes) -> bool:
  """Whether a JPEG or PNG file may have an orientation, in EXIF or XMP.

  Faster than opening it; of other formats any may have one.
  """
  return any(mark in encoded for mark in _EXIF_MARKS)


def decode_as_training(
  encoded: bytes, path: str | os.PathLike | None = None
) -> None:
  """Checks that TensorFlow, with which training decodes, decodes all of a file.

  It is stricter than Pillow: with a wrong checksum or without the end of a PNG.

  Raises:
    UserError: it does not.
  """
  tf = _tensorflow()
  try:
    tf.io.decode_image(encoded, channels=3, expand_animations=False)
  except tf.errors.OpError as error:
    reason = str(error.message).rpartition('}} ')[2].partition(' [Op:')[0]
    raise UserError(
      f'cannot be decoded by TensorFlow ({brief(reason)})', path=path
    ) from error


@functools.cache
def _tensorflow():
  import tensorflow as tf  # Takes seconds.

  with contextlib.suppress(RuntimeError):  # It is in use.
    tf.config.set_visible_devices([], 'GPU')
  return tf


def is_turned(
  stored: tuple[int, int],
  orientation: int,
  size: tuple[int, int] | None,
  path: str | os.PathLike | None = None,
  upright: bool | None = None,
) -> bool:
  """Whether the EXIF orientation of an image is applied.

  Args:
    stored: (height, width) of the pixels in the file.
    orientation: by EXIF; 1 if there is none.
    size: (height, width) that the annotations give; None: not known.
    path: of the file, for the error.
    upright: annotations mean the upright image where both have the size, as
      after a flip.

  Raises:
    UserError: neither the stored nor the upright image has the size.
  """
  turned = stored[::-1] if orientation in images.TRANSPOSED else stored
  if size is None or (upright and size == turned):
    return orientation in range(2, 9)
  if stored == size:
    return False
  if turned == size:
    return True
  raise UserError(
    f'is {stored[0]} x {stored[1]} (height x width), the JSON says {size[0]} x '
    f'{size[1]}',
    path=path,
    given=stored,
    wanted=size,
  )


def _encode(image, kind):
  stream = io.BytesIO()
  # Without its EXIF block: the pixels are upright now.
  image.info.pop('exif', None)
  options = {'quality': _JPEG_QUALITY, 'subsampling': 0}
  image.save(stream, kind, **(options if kind == 'JPEG' else {}))
  return stream.getvalue()
