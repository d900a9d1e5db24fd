"""Features of a TFDS data set that is stored like our records.

TFDS joins nested names with a slash, so `image -> object -> mask` is stored as
`image/object/mask`, and `records.parse_record` reads these files too.
"""

import hashlib

import numpy as np
import tensorflow_datasets as tfds

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
  """An example under the names of `features`."""
  fractions = example.boxes / ([example.height, example.width] * 2)
  objects = [
    {
      'bbox': dict(zip(_BOX_SIDES, box)),
      'class': {'label': class_id, 'text': class_name},
      'is_crowd': is_crowd,
      'area': area,
      'mask': mask,
    }
    for box, class_id, class_name, is_crowd, area, mask in zip(
      fractions,
      example.classes,
      example.class_names,
      example.is_crowd.astype(np.int64),
      example.areas,
      example.masks,
      strict=True,
    )
  ]
  return {
    'image': {
      'encoded': example.encoded,
      'format': 'jpeg',  # As in `records.encode_record`.
      'filename': example.filename,
      'source_id': str(example.image_id),
      'key': {'sha256': hashlib.sha256(example.encoded).hexdigest()},
      'height': example.height,
      'width': example.width,
      'caption': list(example.captions),
      'object': objects,
    }
  }
