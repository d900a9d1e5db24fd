"""The benchmark of the input pipeline: rates and stages on one core."""

import os

import example_records
import ml_collections
import pytest

from maskrcnn_jax.benchmarks import input_pipeline


@pytest.mark.long
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
  rows = input_pipeline.run(config, rounds=1, num_images=5)
  assert rows[0]['num_images'] == 5
  assert rows[0]['num_objects'] == 0.8  # 0, 1, 2, 0, 1.
  assert rows[0]['megapixels'] == pytest.approx(0.0024)
  caches = ['cache nothing', 'cache records', 'cache rows']
  stages = ['read', 'decode_image', 'resize', 'round', 'masks', 'pad']
  stages += ['batch', 'rest']
  assert [row['name'] for row in rows] == caches + stages
  times = [row['seconds']['median'] for row in rows]
  assert times[0] == pytest.approx(sum(times[3:]))
  for row, seconds in zip(rows[:3], times):
    assert row['images_per_second'] == pytest.approx(1 / seconds)
  if hasattr(os, 'sched_getaffinity'):
    assert rows[0]['cores'] == [max(os.sched_getaffinity(0))]


@pytest.mark.slow
@pytest.mark.long
def test_augmentation_is_measured_beside_none(tmp_path):
  path = example_records.write(tmp_path / 'a.tfrecord', [(40, 60)] * 6)
  inputs = {
    'file_pattern': path,
    'canvases': ((64, 64),),
    'batch_size': 2,
    'mask_size': 14,
    'augment': {'scale_range': (0.1, 2.0), 'photometric': True},
  }
  config = ml_collections.ConfigDict({'input': inputs})
  rows = input_pipeline.run(config, rounds=1, num_images=5)
  assert [row['name'] for row in rows] == [
    *('cache nothing', 'cache records', 'no augmentation'),
    *('read', 'decode_image', 'augment', 'pad', 'batch', 'rest'),
  ]
  times = [row['seconds']['median'] for row in rows]
  assert times[0] == pytest.approx(sum(times[3:]))
  assert rows[2]['ratio']['median'] == pytest.approx(times[0] / times[2])
