"""COCO json to checked examples."""

import dataclasses
import io
import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class ImageExample:
  """x"""


def encode_mask(mask: np.ndarray) -> bytes:
  """PNG bytes of a mask, one channel of 0 and 1."""
  stream = io.BytesIO()
  Image.fromarray(np.asarray(mask, np.uint8)).save(stream, 'PNG')
  return stream.getvalue()
