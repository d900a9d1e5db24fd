"""The benchmark of the input pipeline: rates and stages on one core."""

import os

import example_records
import ml_collections
import pytest

from maskrcnn_jax.benchmarks import input_pipeline


@pytest.mark.slow
def test_every_stage_is_measured_on_one_core(tmp_path):
  path = example_records.write(tmp_path / 'a.tfrecord', [(40, 60)] * 6)
  inputs = {
    'file_pattern': path,
    'canvases': ((64, 96), (96, 64)),
    'batch_size': 2,
    'mask_size': 14,
    'max_instances': 3,
  }
  config = ml_collections.ConfigDict({'input': inputs})
  found = input_pipeline.run(config, num_images=5, rounds=1)
  assert found['num_images'] == 5
  assert found['num_objects'] == 0.8  # 0, 1, 2, 0, 1.
  assert found['megapixels'] == 0.0024
  for name in ('uncached', 'cached_records', 'cached_rows'):
    assert found[name]['images_per_second'] > 0
    assert found[name]['images_per_cpu_second'] > 0
  stages = found['milliseconds']
  names = 'read decode_image resize round masks pad batch rest'
  assert list(stages) == names.split()
  total = 1e3 / found['uncached']['images_per_cpu_second']
  assert sum(stages.values()) == pytest.approx(total)
  if hasattr(os, 'sched_getaffinity'):
    assert found['cores'] == [max(os.sched_getaffinity(0))]
