"""Scaling of images of 16 bits, 32 bits or floats to 8 bits.

Values from `low` to `high` become 0 to 255 in steps of equal width. The default
range is that of the type (0 to 65535, for floats 0 to 1) where the values fill
at least a quarter of it, else the 0.1 and 99.9 percentiles of the values.
"""

from collections.abc import Mapping

import numpy as np
from PIL import Image

Range = tuple[float, float]
OF_TYPE = {'uint16': (0, 65535), 'float32': (0, 1)}
KINDS = ('uint16', 'int32', 'float32')
PERCENTILES = (0.1, 99.9)
# Images with a larger share of values outside the range get a warning.
MOST_CLIPPED = 0.01
_SAMPLE = 2**14  # Values of an image.


def kind(image: Image.Image) -> str | None:
  """One of `KINDS`; None for images of 8 bits."""
  if image.mode.startswith('I;16'):
    return 'uint16'
  # Pillow scales those of PGM to 16 bits.
  if image.mode == 'I':
    return 'uint16' if image.format in ('PNG', 'PPM') else 'int32'
  return 'float32' if image.mode == 'F' else None


def sample(values: np.ndarray) -> np.ndarray:
  """Some of the values, evenly spaced."""
  values = values.reshape(-1)
  # Odd, so as not to take the same columns of every row.
  values = values[:: max(1, len(values) // _SAMPLE) | 1]
  return values[np.isfinite(values)]


def find(name: str, values: np.ndarray) -> Range:
  """The default range of values of a kind, see above."""
  if not len(values):
    return OF_TYPE.get(name, (0, 1))
  low, high = np.percentile(values, PERCENTILES).tolist()
  whole = OF_TYPE.get(name)
  fits = whole and whole[0] <= values.min() and values.max() <= whole[1]
  if fits and (high == low or high - low >= whole[1] / 4):
    return whole
  if name != 'float32':
    low, high = int(np.floor(low)), int(np.ceil(high))
  return low, high


def scale(values: np.ndarray, value_range: Range) -> tuple[np.ndarray, float]:
  """Scales values to uint8; also returns the share that is clipped.

  NaN becomes 0 and counts as clipped.
  """
  low, high = value_range
  inside = (values >= low) & (values <= high)
  clipped = 1 - np.count_nonzero(inside) / max(values.size, 1)
  is_integer = values.dtype.kind in 'iu'
  wide = np.float64 if values.dtype.itemsize > 2 and is_integer else np.float32
  scaled = values.astype(wide)
  with np.errstate(all='ignore'):
    scaled -= low
    # The steps of integers from `low` to `high` are one more than the distance.
    scaled *= 256 / max(high - low + is_integer, np.finfo(np.float32).tiny)
  scaled = np.nan_to_num(scaled, copy=False, nan=0)
  return scaled.clip(0, 255, out=scaled).astype(np.uint8), clipped


def to_8_bits(
  image: Image.Image, ranges: Mapping[str, Range] | None = None
) -> tuple[Image.Image, float]:
  """An image of 8 bits, and the share of values that is clipped.

  Args:
    image: of any mode.
    ranges: by kind; where there is none, the image's own by `find`.
  """
  name = kind(image)
  if name is None:
    return image, 0.0
  values = np.asarray(image)
  value_range = (ranges or {}).get(name) or find(name, sample(values))
  scaled, clipped = scale(values, value_range)
  return Image.fromarray(scaled), clipped


def to_rgb(
  image: Image.Image, ranges: Mapping[str, Range] | None = None
) -> Image.Image:
  """Converts to 8-bit RGB by the mode, without alpha.

  Pillow's own conversion makes all but the darkest of 16 bits white, and clips
  those of other wide modes.

  Args:
    image: of any mode.
    ranges: see `to_8_bits`.
  """
  return to_8_bits(image, ranges)[0].convert('RGB')
