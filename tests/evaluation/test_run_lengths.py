"""Compressed run lengths against pycocotools, and by hand."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskrcnn_jax.benchmarks import plain_evaluation
from maskrcnn_jax.evaluation import run_lengths


@pytest.mark.parametrize(
  'lengths, text',
  [
    ([3], '3'),
    ([0, 15], '0?'),
    # 16 would look negative in five bits: a second character says it is not.
    ([0, 16], '0`0'),
    ([9, 32], '9P1'),
    # The fourth length is 4 less than the second, 11100 in five bits.
    ([1, 7, 2, 3], '172L'),
  ],
)
def test_by_hand(lengths, text):
  assert run_lengths.compress(np.array(lengths), np.array([len(lengths)])) == [
    text
  ]


def test_numbers_of_all_lengths():
  rng = np.random.default_rng(0)
  num_runs = rng.integers(1, 40, 50)
  bits = rng.integers(0, 22, num_runs.sum())
  lengths = rng.integers(0, 2**bits, endpoint=True)
  texts = run_lengths.compress(lengths, num_runs)
  ends = np.cumsum(num_runs)
  for text, start, end in zip(texts, ends - num_runs, ends):
    counts = lengths[start:end].tolist()
    height = sum(counts)
    whole = {'size': [height, 1], 'counts': counts}
    expected = coco_mask.frPyObjects(whole, height, 1)['counts'].decode()
    assert text == expected


@pytest.mark.parametrize('seed', range(4))
def test_encoding_is_that_of_pycocotools(seed):
  rng = np.random.default_rng(seed)
  masks = rng.random((30, 28, 28)).astype(np.float32)
  masks[:10] = 1.0  # Whole boxes, so that runs go on over the columns.
  masks[29] = 0.0
  corners = rng.uniform(-20, 40, (30, 2))
  boxes = np.concatenate([corners, corners + rng.uniform(0, 60, (30, 2))], 1)
  boxes[0] = [-9, -9, 60, 70]  # The whole image.
  boxes[1] = [-9, 10, 60, 20]  # Whole columns.
  boxes[2] = [-9, 40, 60, 70]  # Whole columns to the end.
  boxes[3] = [90, 90, 99, 99]  # Outside.
  encoded = run_lengths.encode_masks(masks, boxes, (45, 52))
  plain = plain_evaluation.encode_masks(masks, boxes, (45, 52))
  assert encoded == plain


def test_no_masks():
  none = np.zeros((0, 28, 28), np.float32), np.zeros((0, 4)), (5, 6)
  assert run_lengths.encode_masks(*none) == []
  one = np.ones((1, 28, 28)), np.array([[0, 0, 9, 9]]), (9, 9)
  images = run_lengths.encode_images(*zip(one, none, one))
  assert images == [run_lengths.encode_masks(*one), [], images[0]]
