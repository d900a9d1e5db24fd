"""Repeats of images with rare classes: LVIS's rule, exact on resume."""

import math

import example_records
import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn_jax import input_pipeline
from maskrcnn_jax.datasets import record_file, records
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.input_pipeline import order
from maskrcnn_jax.optimization import epochs

FACTORS = np.array([1.0, 2.5, 1.0, 1.25, 3.0, 1.0, 1.75])


def test_factors_by_hand():
  # Class 1 in 4 of 5 images, class 2 in 1 of 5, class 3 in 2 of 5.
  classes = [{1}, {1, 3}, [1, 1, 2], (), {3, 1}]
  factors = order.repeat_factors(classes, 0.8)
  rare, common = math.sqrt(0.8 / 0.2), math.sqrt(0.8 / 0.4)
  np.testing.assert_allclose(factors, [1, common, rare, 1, common])
  np.testing.assert_array_equal(order.repeat_factors(classes, 0.1), [1] * 5)


def test_repeats_are_rounded_by_chance_for_each_epoch_and_example():
  drawn = np.stack(
    [order.draw_repeats(FACTORS, 3, 0, epoch) for epoch in range(4000)]
  )
  assert set(drawn[:, 1]) == {2, 3} and set(drawn[:, 4]) == {3}
  np.testing.assert_array_equal(drawn[:, [0, 2, 5]], 1)
  # Four standard deviations of a mean.
  np.testing.assert_allclose(drawn.mean(axis=0), FACTORS, atol=0.032)
  pairs = np.corrcoef(drawn[:, [1, 3, 6]].T)
  assert np.abs(pairs - np.eye(3)).max() < 0.07
  other = order.draw_repeats(np.full(100, 1.5), 4, 0, 0)
  assert np.any(other != order.draw_repeats(np.full(100, 1.5), 3, 0, 0))
  assert np.any(other != order.draw_repeats(np.full(100, 1.5), 4, 1, 0))


def slow_batches(canvases, batch_size, seed, salt, factors, number):
  """Rows, uses and canvas of every batch, by walking through all examples."""
  waiting, batches, epoch = {}, [], 0
  most = math.ceil(max(factors))
  while len(batches) < number:
    listed = []
    repeats = order.draw_repeats(factors, seed, salt, epoch)
    for row, times in enumerate(repeats.tolist()):
      listed += [(row, epoch * most + copy) for copy in range(times)]
    for index in order.epoch_order(len(listed), seed, salt, epoch):
      row, use = listed[index]
      queue = waiting.setdefault(int(canvases[row]), [])
      queue.append((row, use))
      if len(queue) == batch_size:
        batches.append((queue[:], int(canvases[row])))
        queue.clear()
    epoch += 1
  return batches[:number]


@given(
  st.lists(st.integers(0, 2), min_size=7, max_size=7),
  st.integers(1, 9),
  st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_batches_are_those_of_a_walk(canvases, batch_size, seed):
  canvases = np.array(canvases)
  expected = slow_batches(canvases, batch_size, seed, 1, FACTORS, 40)
  sequence = order.TrainOrder(
    canvases, batch_size, seed, salt=1, factors=FACTORS
  )
  # Backwards too: a batch does not depend on those asked for before.
  for number in (*range(39, -1, -7), *range(40)):
    plan = sequence.batch(number * batch_size)
    pairs, canvas = expected[number]
    assert [*zip(plan.rows.tolist(), plan.uses.tolist())] == pairs
    assert plan.canvas == canvas


def test_every_use_of_an_example_has_its_own_number():
  sequence = order.TrainOrder(np.zeros(7, int), 5, factors=FACTORS)
  plans = [sequence.batch(5 * k) for k in range(200)]
  used = [
    pair
    for plan in plans
    for pair in zip(plan.rows.tolist(), plan.uses.tolist())
  ]
  assert len({*used}) == len(used) == 1000


def test_factors_of_one_change_nothing():
  canvases = np.arange(25) % 2
  plain = order.TrainOrder(canvases, 4, 5, 1)
  ones = order.TrainOrder(canvases, 4, 5, 1, factors=np.ones(25))
  for number in range(40):
    expected, found = plain.batch(4 * number), ones.batch(4 * number)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.uses, expected.uses)


@pytest.fixture(scope='module')
def pattern(tmp_path_factory):
  """Eight images; class 2 is in the last one only, and a crowd in the first."""
  folder = tmp_path_factory.mktemp('records')
  for number in range(8):
    image, boxes, masks = example_records.rectangles(40, 60, 2, number)
    record = example_records.record(
      example_records.jpeg(image),
      number + 1,
      (40, 60),
      boxes,
      masks,
      classes=[1, 2 if number in (0, 7) else 1],
      crowd=[0, int(number == 0)],
    )
    records.write_records(folder / f'{number}.tfrecord', [record])
  return str(folder / '*.tfrecord')


def train(pattern, count, **options):
  """The first batches and their positions."""
  batches = input_pipeline.train_batches(
    pattern,
    ((64, 64),),
    batch_size=4,
    repeat_factor_threshold=1.0,
    mask_size=28,
    **options,
  )
  found = []
  for _ in range(count):
    found.append((next(batches), batches.position))
  return found


def test_rare_classes_come_up_more_often(pattern):
  index = records.index_records(pattern)
  classes = record_file.trained_classes(index.files)
  assert classes == [{1}] * 7 + [{1, 2}]
  found = train(pattern, 40)
  ids = np.concatenate([batch['image_ids'] for batch, _ in found])
  counts = np.bincount(ids)[1:]
  # sqrt(1 / (1 / 8)) = 2.83 times as often as the others.
  assert counts[:7].max() - counts[:7].min() <= 1
  assert counts[7] / counts[0] == pytest.approx(math.sqrt(8), abs=0.25)


@pytest.mark.slow
def test_hosts_and_resumed_runs_see_the_same(pattern):
  expected = train(pattern, 9)
  for hosts in (2, 4):
    parts = [
      train(pattern, 9, host_index=i, host_count=hosts) for i in range(hosts)
    ]
    for number, (batch, _) in enumerate(expected):
      for key in ('images', 'image_ids'):
        joined = np.concatenate([part[number][0][key] for part in parts])
        np.testing.assert_array_equal(joined, batch[key])
  # In the middle of an epoch, whose length is not a multiple of the batch.
  position = expected[4][1]
  assert position == {'examples': 20, 'salt': 0}
  resumed = train(pattern, 4, start_examples=position['examples'])
  for (batch, place), (other, expected_place) in zip(resumed, expected[5:]):
    assert place == expected_place
    np.testing.assert_array_equal(batch['images'], other['images'])
    np.testing.assert_array_equal(batch['image_ids'], other['image_ids'])


def test_lengths_in_epochs_count_the_repeats(pattern):
  config = ml_collections.ConfigDict(
    {
      'input': {
        'file_pattern': pattern,
        'batch_size': 4,
        'repeat_factor_threshold': 1.0,
      },
      'training': {'num_epochs': 10.0, 'num_steps': 1},
    }
  )
  # An epoch is 7 + sqrt(8) images.
  assert epochs.with_steps(config).training.num_steps == round(98.28 / 4)


def test_an_impossible_threshold(pattern):
  with pytest.raises(UserError) as error:
    input_pipeline.train_batches(pattern, repeat_factor_threshold=1.5)
  assert error.value.argument == 'input.repeat_factor_threshold'
