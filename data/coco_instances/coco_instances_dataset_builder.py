"""COCO 2017 with instance masks as a TFDS data set.

TFDS's own `coco` has boxes only. Images and objects are checked as by
`maskrcnn-jax prepare`: the same examples, in the files of TFDS.
"""

import os
import pathlib
from typing import ClassVar

import tensorflow_datasets as tfds

from maskrcnn_jax.datasets import (
  coco_files,
  coco_json,
  prepare,
  tfds_features,
)
from maskrcnn_jax.datasets.findings import raise_errors


class Builder(tfds.core.GeneratorBasedBuilder):
  """Writes the splits `train` and `val`.

  Args:
    coco: folder that download_and_preprocess_coco.sh filled; by default the
      `manual_dir` of TFDS.
    num_workers: processes that read images; by default one per core.
  """

  name = 'coco_instances'
  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First release.'}
  BUILDER_CONFIGS: ClassVar = [
    tfds.core.BuilderConfig(name='2017', description='The splits of 2017.')
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    'bash data/download_and_preprocess_coco.sh DIR download extract'
  )

  def __init__(self, *, coco=None, num_workers=None, **kwargs):
    self._coco = coco
    self._num_workers = num_workers
    super().__init__(**kwargs)

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      description='Common Objects in Context, with a mask for every object.',
      features=tfds_features.features(),
      homepage='https://cocodataset.org',
      citation='Lin et al., Microsoft COCO, ECCV 2014, arXiv:1405.0312',
    )

  def _split_generators(self, dl_manager):
    folder = pathlib.Path(os.fspath(self._coco or dl_manager.manual_dir))
    year = self.builder_config.name
    return {
      split: self._generate_examples(folder, f'{split}{year}')
      for split in ('train', 'val')
    }

  def _generate_examples(self, folder, name):
    images = folder / 'raw-data' / name
    instances, captions = (
      folder / 'annotations' / f'{kind}_{name}.json'
      for kind in ('instances', 'captions')
    )
    dataset = coco_files.find(coco_json.load(instances, captions), images)
    raise_errors(dataset.findings)
    findings = []
    for example, found in prepare.make_examples(
      dataset, images, self._num_workers, drop_outside=True
    ):
      findings += found
      if example is not None:
        yield example.image_id, tfds_features.to_features(example)
    raise_errors(findings)
