"""What is wrong with a record, counted by kind, and when it is too much.

An unusable image empties its row, an unusable object is left out of its row. A
row brings what was found along as a text, so that counts are those of the rows
delivered, whatever was read ahead.
"""

import collections
import enum
import json
from collections.abc import Sequence

import numpy as np
from absl import logging

LOGGED_PER_KIND = 5  # In full; more are only counted.
# A share is one of at least so many rows: one bad row among the first four is
# no quarter of the data.
MIN_ROWS = 256
# So many lost rows in a row are no accident, however long all went well.
MAX_LOST_IN_A_ROW = 64


class ImageFault(enum.IntEnum):
  """Why a row holds no image."""

  UNREADABLE_RECORD = 101  # No file, or it ends before the record.
  DAMAGED_RECORD = 102  # A checksum is wrong.
  UNUSABLE_RECORD = 103  # Not of the schema.
  UNUSABLE_IMAGE = 104  # The image file cannot be decoded.


class ObjectFault(enum.IntEnum):
  """Why an object is left out; 0 where nothing is wrong with it."""

  NONE = 0
  UNUSABLE_CLASS = 1
  ZERO_AREA_BOX = 2  # Or a side below zero.
  UNUSABLE_BOX = 3  # A coordinate that is not finite.
  UNUSABLE_MASK = 4  # Its file cannot be decoded.
  OTHER_SIZE_MASK = 5
  EMPTY_MASK = 6


def encode(found: Sequence[tuple[enum.IntEnum, str]]) -> bytes:
  """Faults of a row and a sentence on each, as a text."""
  return json.dumps(
    [[kind.name.lower(), text] for kind, text in found]
  ).encode()


class Tally:
  """Counts the faults of the batches of a process.

  Attributes:
    counts: how many of each kind there were.
    rows: that were to hold an image.
    lost: rows without their image, or without all of their objects.
  """

  def __init__(self):
    self.counts = collections.Counter()
    self.rows = self.lost = self._lost_in_a_row = 0
    self._lost_ids = collections.deque(maxlen=8)

  def add(self, batch: dict, texts: np.ndarray) -> None:
    """Counts and logs a batch.

    Args:
      batch: rows without image and fault are fillers.
      texts: `[batch]`, see `encode`; empty where nothing is wrong.
    """
    nothing_left = ~batch['valid']
    if 'instances' in batch:
      nothing_left |= ~np.any(batch['instances']['valid'], axis=-1)
    for row, text in enumerate(texts):
      self._add_row(
        int(batch['image_ids'][row]), text, text and nothing_left[row]
      )
    self.rows += int(np.sum(batch['valid'] | (texts != b'')))

  def _add_row(self, image_id, text, is_lost):
    for kind, sentence in json.loads(text or '[]'):
      self.counts[kind] += 1
      if self.counts[kind] <= LOGGED_PER_KIND:
        logging.warning('%s', sentence)
      if self.counts[kind] == LOGGED_PER_KIND:
        logging.warning('From here on %s is only counted.', kind)
    if is_lost:
      self.lost += 1
      self._lost_ids.append(image_id)
    self._lost_in_a_row = self._lost_in_a_row + 1 if is_lost else 0

  def check(self, max_share: float) -> None:
    """Raises if more than a share of the rows is lost.

    Args:
      max_share: of the rows so far, counted as `MIN_ROWS` at least.

    Raises:
      RuntimeError: says how many rows are lost, to what, and the last ones.
    """
    if self._lost_in_a_row >= MAX_LOST_IN_A_ROW:
      first = f'The last {self._lost_in_a_row} rows'
      rule = f'{MAX_LOST_IN_A_ROW} without a break are no accident'
    elif self.lost > max_share * max(self.rows, MIN_ROWS):
      first = f'{self.lost} of {self.rows} rows'
      rule = (
        f'input.max_unreadable_share is {max_share:g} of the rows, of '
        f'{MIN_ROWS} at least'
      )
    else:
      return
    kinds = ', '.join(f'{n} {kind}' for kind, n in self.counts.most_common())
    raise RuntimeError(
      f'{first} cannot be trained on ({rule}). Counted so far: {kinds}. The '
      f'last ones are images {", ".join(map(str, self._lost_ids))}. The log '
      'names file, place and reason of the first of each kind.'
    )
