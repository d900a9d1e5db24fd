"""Faults of records: counted by kind, logged, and an error above a share.

A bad image leaves its row empty, a bad object is skipped. Every row carries its
faults as a text, so that counts are those of the delivered rows, however many
are read ahead.
"""

import collections
import enum
import json
from collections.abc import Sequence

import numpy as np
from absl import logging

from maskrcnn_jax.errors import UserError

LOGGED_PER_KIND = 5  # In full; more are only counted.
# A share is one of at least this many rows: one bad row among the first four
# does not mean that a quarter of the data is bad.
MIN_ROWS = 256
# This many lost rows without a break stop a run, however long all went well.
MAX_LOST_IN_A_ROW = 64


class ImageFault(enum.IntEnum):
  """Reason for a row without an image."""

  UNREADABLE_RECORD = 101  # No file, or it ends before the record.
  CORRUPT_RECORD = 102  # A checksum is wrong.
  UNUSABLE_RECORD = 103  # Not of the schema.
  UNUSABLE_IMAGE = 104  # The image file cannot be decoded.


class ObjectFault(enum.IntEnum):
  """Reason to skip an object; 0 for a good one."""

  NONE = 0
  UNUSABLE_CLASS = 1
  ZERO_AREA_BOX = 2  # Or a side below zero.
  UNUSABLE_BOX = 3  # A coordinate that is not finite.
  UNUSABLE_MASK = 4  # Its file cannot be decoded.
  OTHER_SIZE_MASK = 5
  EMPTY_MASK = 6


def encode(found: Sequence[tuple[enum.IntEnum, str]]) -> bytes:
  """Faults of a row, each with a sentence to log, as a text."""
  return json.dumps(
    [[kind.name.lower(), text] for kind, text in found]
  ).encode()


class Tally:
  """Counts the faults of the batches of a process.

  Attributes:
    counts: number of faults of each kind.
    rows: rows with an image, or with one that was lost.
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
      texts: `[batch]`, see `encode`; empty without a fault.
    """
    is_empty = ~batch['valid']
    if 'instances' in batch:
      is_empty |= ~np.any(batch['instances']['valid'], axis=-1)
    for row, text in enumerate(texts):
      self._log(text)
      is_lost = text and is_empty[row]
      if is_lost:
        self.lost += 1
        self._lost_ids.append(int(batch['image_ids'][row]))
      self._lost_in_a_row = self._lost_in_a_row + 1 if is_lost else 0
    self.rows += int(np.sum(batch['valid'] | (texts != b'')))

  def _log(self, text):
    for kind, sentence in json.loads(text or '[]'):
      self.counts[kind] += 1
      if self.counts[kind] <= LOGGED_PER_KIND:
        logging.warning('%s', sentence)
      if self.counts[kind] == LOGGED_PER_KIND:
        logging.warning('From here on %s is only counted.', kind)

  def check(self, max_share: float) -> None:
    """Raises a `UserError` if more than a share of the rows is lost.

    Args:
      max_share: of the rows so far, counted as `MIN_ROWS` at least.
    """
    if self._lost_in_a_row >= MAX_LOST_IN_A_ROW:
      lost = f'The last {self._lost_in_a_row} rows'
      rule = f'the limit is {MAX_LOST_IN_A_ROW} without a break'
    elif self.lost > max_share * max(self.rows, MIN_ROWS):
      lost = f'{self.lost} of {self.rows} rows'
      rule = (
        f'input.max_unreadable_share is {max_share:g} of the rows, of '
        f'{MIN_ROWS} at least'
      )
    else:
      return
    kinds = ', '.join(f'{n} {kind}' for kind, n in self.counts.most_common())
    raise UserError(
      f'{lost} cannot be trained on ({rule}). Counted so far: {kinds}. The '
      f'last ones are images {", ".join(map(str, self._lost_ids))}. The log '
      'names file, offset and reason of the first of each kind.',
      argument='input.max_unreadable_share',
      item=self._lost_ids[-1],
      given=(self.lost, self.rows),
      wanted=max_share,
    )
