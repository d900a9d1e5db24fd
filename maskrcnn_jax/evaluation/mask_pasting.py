"""Masks of detections pasted into images, as run lengths and as pictures.

A detection's mask covers its box. It is padded by one zero cell, its box grows
in proportion, and the mask is resized to it, bilinearly and with half-pixel
centers, by one of two rules:
  whole_pixels: the box is truncated to whole pixels, the last one included; the
    mask is where the value is above 0.5. Detectron, torchvision and Habana.
    `ops.masks.paste_masks` does the same on a device.
  continuous: the box stays as it is; the mask is where the value is 0.5 or
    more. Detectron2.

Runs in worker processes, which load neither JAX nor TensorFlow.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from maskrcnn_jax.evaluation import mask_edges


def encode_masks(
  masks: np.ndarray,
  boxes: np.ndarray,
  image_size: tuple[int, int],
  rule: str = 'whole_pixels',
) -> list[str]:
  """COCO's compressed run lengths, equal to pycocotools' of pasted masks.

  Args:
    masks: `[n, size, size]` float probabilities over the boxes.
    boxes: `[n, 4]` in pixels of the image.
    image_size: (height, width) of the image.
    rule: `whole_pixels` or `continuous`.

  Returns:
    `counts` of every mask.
  """
  if not len(masks):
    return []
  owners, edges = mask_edges.find_edges(masks, boxes, image_size, rule)
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


def encode_images(images: Sequence[tuple]) -> list[list[str]]:
  """`encode_masks` of several images, each with its arguments."""
  return list(itertools.starmap(encode_masks, images))


def paste_masks(
  masks: np.ndarray,
  boxes: np.ndarray,
  image_size: tuple[int, int],
  rule: str = 'whole_pixels',
) -> np.ndarray:
  """Masks of the size of the image.

  Args:
    masks: see `encode_masks`, also for the others.

  Returns:
    `[n, height, width]` bool.
  """
  height, width = image_size
  changes = np.zeros((len(masks), width * height), np.uint8)
  changes[mask_edges.find_edges(masks, boxes, image_size, rule)] = 1
  inside = np.bitwise_xor.accumulate(changes, axis=1).astype(bool)
  return inside.reshape(len(masks), width, height).transpose(0, 2, 1)


def compress(lengths: np.ndarray, num_runs: np.ndarray) -> list[str]:
  """Run lengths as COCO's text.

  From the fourth run on a number is the difference to the run two before it. It
  is written in characters of five bits, lowest first; a sixth bit says that
  more follow, and the highest bit written is the sign.

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
  for position in range(3):
    absolute = starts[num_runs > position] + position
    numbers[absolute] = lengths[absolute]
  index, parts = np.arange(len(numbers)), []
  num_characters = np.ones(len(numbers), np.int64)
  while len(index):
    bits = numbers & 31
    numbers >>= 5
    # Done if only sign bits are left and the highest bit written equals them.
    more = numbers != -(bits >> 4)
    parts.append((index, bits + 32 * more + 48))
    index, numbers = index[more], numbers[more]
    num_characters[index] += 1
  text_ends = np.cumsum(num_characters)
  text_starts = text_ends - num_characters
  text = np.empty(text_ends[-1], np.uint8)
  for position, (index, characters) in enumerate(parts):
    text[text_starts[index] + position] = characters
  text = text.tobytes().decode('ascii')
  cuts = [0, *text_ends[ends - 1].tolist()]
  return [text[start:end] for start, end in itertools.pairwise(cuts)]
