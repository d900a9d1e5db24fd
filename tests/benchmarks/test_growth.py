"""Growth of a step: one size at a time, and its rows."""

import pytest
import tiny_run

from maskrcnn_jax.benchmarks import growth


def _make_config():
  config = tiny_run.make_config('no data is read', 'none')
  config.input.batch_size = 1
  config.input.image_dtype = 'uint8'
  return config


@pytest.mark.parametrize(
  'axis, shape, count, classes',
  [
    ('batch', (3, 64, 64, 3), None, 3),
    ('canvas', (1, 96, 96, 3), None, 3),
    ('objects', (1, 64, 64, 3), 3, 3),
    ('classes', (1, 64, 64, 3), None, 96),
  ],
)
def test_one_size_changes_and_the_others_stay(axis, shape, count, classes):
  config = _make_config()
  value = {'canvas': 96, 'classes': 96}.get(axis, 3)
  subject = growth.subject_of(config, axis, value)
  batch = subject.host_batches[0]
  assert batch['images'].shape == shape
  assert subject.model.num_classes == classes
  if count:
    assert batch['instances']['valid'].sum(axis=1).tolist() == [count]
  assert config == _make_config()


@pytest.mark.slow
def test_the_number_of_objects_changes_no_program():
  rows = growth.run(
    _make_config(), rounds=2, warmup=1, axes={'objects': (1, 4)}
  )
  assert [(row['axis'], row['value']) for row in rows] == [
    ('objects', 1),
    ('objects', 4),
  ]
  one, four = rows
  assert one['program']['flops'] == four['program']['flops'] > 1e6
  assert one['program']['memory'] == four['program']['memory']
  for row in rows:
    assert len(row['seconds']['all']) == 2
    assert row['images_per_second'] == pytest.approx(
      1 / row['seconds']['median']
    )
