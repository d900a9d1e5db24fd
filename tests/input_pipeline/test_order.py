import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.input_pipeline import order


@given(st.integers(1, 200), st.integers(0, 5), st.integers(1, 70))
@settings(max_examples=50, deadline=None)
def test_epoch_order_is_a_permutation(num_examples, epoch, block_size):
  rows = order.epoch_order(num_examples, 3, 0, epoch, block_size)
  np.testing.assert_array_equal(np.sort(rows), np.arange(num_examples))


def test_epoch_order_keeps_blocks_together():
  rows = order.epoch_order(256, 0, 0, 0, block_size=64).reshape(4, 64)
  np.testing.assert_array_equal(np.diff(rows), np.ones([4, 63]))


def test_epoch_order_depends_on_each_number():
  first = order.epoch_order(100, 0, 0, 0)
  for other in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]:
    assert np.any(order.epoch_order(100, *other) != first)


def test_epoch_order_never_changes():
  # A checkpoint of an earlier release must see the same order.
  rows = order.epoch_order(10, 1, 2, 3)
  np.testing.assert_array_equal(rows, [1, 8, 2, 4, 6, 5, 0, 9, 7, 3])
  seed = order.example_seed(1, 2, 3, 4)
  assert seed.tolist() == [1537445619348816663, 5405077473864034572]


def test_canvas_that_shrinks_least():
  heights = np.array([480, 640, 500, 2000])
  widths = np.array([640, 480, 500, 100])
  fits = [(800, 1333), (1333, 800)]
  choices = order.assign_canvases(heights, widths, fits)
  # The square image fits both: the first one.
  np.testing.assert_array_equal(choices, [0, 1, 0, 1])


canvas_lists = st.lists(st.integers(0, 2), min_size=1, max_size=40)


@given(canvas_lists, st.integers(1, 7), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_batch_has_one_canvas_and_epochs_are_complete(
  canvases, batch_size, seed
):
  canvases = np.array(canvases)
  sequence = order.TrainOrder(canvases, batch_size, seed)
  seen = []
  for number in range(3 * len(canvases) // batch_size + 8):
    plan = sequence.batch(number * batch_size)
    assert len(plan.rows) == batch_size
    assert np.all(canvases[plan.rows] == plan.canvas)
    seen += zip(plan.uses.tolist(), plan.rows.tolist())
  # Nothing twice in an epoch, and an epoch is over before one two later begins.
  assert len(set(seen)) == len(seen)
  for canvas in set(canvases.tolist()):
    epochs = [e for e, r in seen if canvases[r] == canvas]
    assert epochs == sorted(epochs)
    counts = np.bincount(epochs) if epochs else []
    assert all(counts[:-1] == np.sum(canvases == canvas))


def test_all_canvases_are_used_in_their_proportion():
  canvases = np.array([0] * 70 + [1] * 30)
  sequence = order.TrainOrder(canvases, 5)
  used = [sequence.batch(5 * k).canvas for k in range(200)]
  assert 138 <= used.count(0) <= 142


@given(canvas_lists, st.integers(1, 5), st.integers(0, 60))
@settings(max_examples=50, deadline=None)
def test_any_batch_is_found_without_those_before(canvases, batch_size, number):
  walked = order.TrainOrder(np.array(canvases), batch_size, 1, 2)
  for k in range(number):
    walked.batch(k * batch_size)
  fresh = order.TrainOrder(np.array(canvases), batch_size, 1, 2)
  expected = walked.batch(number * batch_size)
  found = fresh.batch(number * batch_size)
  np.testing.assert_array_equal(found.rows, expected.rows)
  np.testing.assert_array_equal(found.uses, expected.uses)


def test_one_canvas_resumes_with_another_batch_size():
  canvases = np.zeros(10, int)
  small = order.TrainOrder(canvases, 2)
  large = order.TrainOrder(canvases, 6)
  rows = np.concatenate([small.batch(k).rows for k in (4, 6, 8)])
  np.testing.assert_array_equal(large.batch(4).rows, rows)


@given(st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 30))
@settings(max_examples=30, deadline=None)
def test_hosts_share_the_global_batch(host_count, number):
  plan = order.TrainOrder(np.arange(25) % 2, 12).batch(12 * number)
  parts = [order.host_rows(plan, i, host_count) for i in range(host_count)]
  rows = np.concatenate([part.rows for part in parts])
  np.testing.assert_array_equal(rows, plan.rows)
  assert {part.canvas for part in parts} == {plan.canvas}


@given(canvas_lists, st.integers(1, 7))
@settings(max_examples=50, deadline=None)
def test_evaluation_sees_every_example_once(canvases, batch_size):
  canvases = np.array(canvases)
  plans = order.eval_plans(canvases, batch_size)
  rows = np.concatenate([plan.rows for plan in plans])
  rows = rows[rows != order.FILLER]
  np.testing.assert_array_equal(np.sort(rows), np.arange(len(canvases)))
  assert all(len(plan.rows) == batch_size for plan in plans)


def test_example_seeds_differ():
  seeds = {
    tuple(order.example_seed(seed, salt, epoch, row).tolist())
    for seed in range(2)
    for salt in range(2)
    for epoch in range(5)
    for row in range(50)
  }
  assert len(seeds) == 2 * 2 * 5 * 50


@pytest.mark.parametrize(
  'canvases, options, argument',
  [([], {}, 'input.file_pattern'), ([0], {'seed': -1}, 'input.seed')],
)
def test_bad_arguments(canvases, options, argument):
  with pytest.raises(UserError) as error:
    order.TrainOrder(np.array(canvases), 2, **options)
  assert error.value.argument == argument


def test_misuse():
  with pytest.raises(ValueError, match='-1'):
    order.TrainOrder(np.array([0]), 2, salt=-1)
  with pytest.raises(ValueError, match='-2'):
    order.TrainOrder(np.array([0]), 2).batch(-2)
