"""Features of a TFDS data set that is stored like our records.

TFDS joins nested names with a slash, so `image -> object -> mask` is stored as
`image/object/mask`, and `records.parse_record` reads these files too.
"""

import numpy as np
import tensorflow_datasets as tfds

from maskrcnn_jax.datasets import records
from maskrcnn_jax.datasets.examples import ImageExample

_BOX_SIDES = ('ymin', 'xmin', 'ymax', 'xmax')


def features(
  height: int | None = None, width: int | None = None
) -> tfds.features.FeaturesDict:
  """The features of a TFDS builder, for images of one or any size."""
  text, image = tfds.features.Text(), tfds.features.Image
  content = {
    'encoded': image(shape=(height, width, 3), encoding_format='jpeg'),
    'format': text,
    'filename': text,
    'source_id': text,
    'key': {'sha256': text},
    'height': np.int64,
    'width': np.int64,
    'caption': tfds.features.Sequence(text),
    'object': tfds.features.Sequence(
      {
        'bbox': dict.fromkeys(_BOX_SIDES, np.float32),
        'class': {'label': np.int64, 'text': text},
        'is_crowd': np.int64,
        'area': np.float32,
        'mask': image(shape=(height, width, 1), encoding_format='png'),
      }
    ),
  }
  return tfds.features.FeaturesDict({'image': content})


def to_features(example: ImageExample) -> dict:
  """An example under the names of `features`, each object's in columns."""
  nested = {}
  for name, column in records.columns(example).items():
    *folders, last = name.split('/')
    place = nested
    for folder in folders:
      place = place.setdefault(folder, {})
    is_list = folders[:1] == ['object'] or last == 'caption'
    place[last] = column if is_list else column[0]
  return {'image': nested}
