"""Shapes as a TFDS data set, with the feature names of our records.

TFDS joins nested names with a slash, so `image -> object -> mask` is stored as
`image/object/mask`: the parser of `maskrcnn_jax.datasets.records` reads these
files like any other record.
"""

import concurrent.futures
import functools
import multiprocessing
from typing import ClassVar

import drawing
import examples
import numpy as np
import tensorflow_datasets as tfds

_DESCRIPTION = 'Flat shapes on textured grounds, with visible masks.'


class Builder(tfds.core.GeneratorBasedBuilder):
  """Writes one split per entry of `splits`.

  Args:
    splits: (seed, number of pictures) by name of the split.
    num_workers: processes that draw.
  """

  name = 'shapes'
  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First release.'}

  def __init__(self, *, splits=None, num_workers=1, **kwargs):
    self._splits = splits or {'train': (0, 8000), 'val': (1, 500)}
    self._num_workers = num_workers
    super().__init__(**kwargs)

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      description=_DESCRIPTION,
      features=tfds.features.FeaturesDict({'image': _image_features()}),
      metadata=tfds.core.MetadataDict(
        splits={name: list(value) for name, value in self._splits.items()}
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # Nothing is downloaded.
    return {
      name: self._generate_examples(*value)
      for name, value in self._splits.items()
    }

  def _generate_examples(self, seed, count):
    make = functools.partial(examples.make_example, seed)
    # TensorFlow's threads do not survive a fork.
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(
      self._num_workers, mp_context=context
    ) as pool:
      yield from enumerate(pool.map(make, range(count), chunksize=32))


def _image_features():
  picture = (drawing.SIZE, drawing.SIZE)
  box_sides = dict.fromkeys(('xmin', 'xmax', 'ymin', 'ymax'), np.float32)
  mask = tfds.features.Image(shape=(*picture, 1), encoding_format='png')
  return {
    'encoded': tfds.features.Image(shape=(*picture, 3), encoding_format='jpeg'),
    'format': tfds.features.Text(),
    'filename': tfds.features.Text(),
    'source_id': tfds.features.Text(),
    'key': {'sha256': tfds.features.Text()},
    'height': np.int64,
    'width': np.int64,
    'object': tfds.features.Sequence(
      {
        'bbox': box_sides,
        'class': {'label': np.int64, 'text': tfds.features.Text()},
        'is_crowd': np.int64,
        'area': np.float32,
        'mask': mask,
      }
    ),
  }
