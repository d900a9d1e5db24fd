"""Shapes as a TFDS data set, with the feature names of our records."""

import concurrent.futures
import functools
import multiprocessing
from typing import ClassVar

import drawing
import examples
import tensorflow_datasets as tfds

from maskrcnn_jax.datasets import tfds_features

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
      features=tfds_features.features(drawing.SIZE, drawing.SIZE),
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
      for example in pool.map(make, range(count), chunksize=32):
        yield example.image_id - 1, tfds_features.to_features(example)
