"""COCO's compressed run lengths of masks that live on boxes.

Runs in processes that must start fast: knows NumPy alone.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from maskrcnn_jax.evaluation import mask_edges


def encode_masks(
  masks: np.ndarray, boxes: np.ndarray, image_size: tuple[int, int]
) -> list[str]:
  """The `counts` of every mask, as pycocotools makes them of full-size masks.

  Args:
    masks: `[n, size, size]` float probabilities over the boxes.
    boxes: `[n, 4]` in pixels of the image.
    image_size: (height, width) of the image.
  """
  if not len(masks):
    return []
  owners, edges = mask_edges.find_edges(masks, boxes, image_size)
  # Runs end at the edges and at the end of the image.
  num_runs = np.bincount(owners, minlength=len(masks)) + 1
  last = np.cumsum(num_runs) - 1
  run_ends = np.empty(last[-1] + 1, np.int64)
  run_ends[np.arange(len(edges)) + owners] = edges
  run_ends[last] = image_size[0] * image_size[1]
  lengths = np.diff(run_ends, prepend=0)
  first = last + 1 - num_runs
  lengths[first] = run_ends[first]
  return compress(lengths, num_runs)


def encode_images(
  masks: Sequence[np.ndarray],
  boxes: Sequence[np.ndarray],
  image_sizes: Sequence[tuple[int, int]],
) -> list[list[str]]:
  """`encode_masks` of several images."""
  return [encode_masks(*image) for image in zip(masks, boxes, image_sizes)]


def compress(lengths: np.ndarray, num_runs: np.ndarray) -> list[str]:
  """Run lengths as COCO's text.

  From the fourth run on it is the difference to the run two places before. A
  number is written in characters of five bits from the lowest on, a sixth says
  that more follow; the highest bit written is the sign.

  Args:
    lengths: `[sum(num_runs)]` int64 of all masks, one after the other.
    num_runs: `[n]` number of runs of each mask, at least 1.

  Returns:
    n texts.
  """
  ends = np.cumsum(num_runs)
  starts = ends - num_runs
  numbers = lengths.copy()
  numbers[2:] -= lengths[:-2]
  for place in range(3):
    whole = starts[num_runs > place] + place
    numbers[whole] = lengths[whole]
  index, parts = np.arange(len(numbers)), []
  num_characters = np.ones(len(numbers), np.int64)
  while len(index):
    bits = numbers & 31
    numbers >>= 5
    # All that is left is the sign, which the highest bit says already.
    more = numbers != -(bits >> 4)
    parts.append((index, bits + 32 * more + 48))
    index, numbers = index[more], numbers[more]
    num_characters[index] += 1
  text_ends = np.cumsum(num_characters)
  text_starts = text_ends - num_characters
  text = np.empty(text_ends[-1], np.uint8)
  for place, (index, characters) in enumerate(parts):
    text[text_starts[index] + place] = characters
  text = text.tobytes().decode('ascii')
  cuts = [0, *text_ends[ends - 1].tolist()]
  return [text[start:end] for start, end in itertools.pairwise(cuts)]
