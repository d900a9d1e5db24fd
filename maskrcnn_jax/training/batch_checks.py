"""Checks of batches: their classes, and their division over devices."""

import logging
from collections.abc import Mapping

import numpy as np

from maskrcnn_jax.errors import UserError, invalid


def check_batch_classes(batch: Mapping, num_classes: int) -> None:
  """Raises for an instance whose class the model does not have."""
  classes = batch['instances']['classes']
  largest = np.max(classes, axis=1, initial=0)
  rows = np.flatnonzero(largest >= num_classes)
  if rows.size:
    image_id, class_id = int(batch['image_ids'][rows[0]]), int(largest[rows[0]])
    raise UserError(
      f'Image {image_id} has class {class_id}; model.num_classes is '
      f'{num_classes}, so classes may be 1 to {num_classes - 1}. Set it to the '
      f'largest class id plus one, {np.max(classes) + 1} or more.',
      argument='model.num_classes',
      item=image_id,
      given=num_classes,
      wanted=int(np.max(classes)) + 1,
    )


def check_batch_size(
  section: str, batch_size: int, mesh, accumulate_steps: int = 1
) -> None:
  """Raises if a batch, or a part of it, cannot be split over devices."""
  parts = mesh.shape['data']
  if batch_size < 1 or batch_size % (parts * accumulate_steps):
    what = f'the {parts} devices'
    if parts < mesh.size:
      what = f'{parts}, the {mesh.size} devices by runtime.spatial'
    if accumulate_steps > 1:
      what += f', times optimizer.accumulate_steps={accumulate_steps}'
    raise invalid(
      f'{section}.batch_size', batch_size, f'a positive multiple of {what}'
    )


def padded_batch_size(batch_size: int, mesh) -> int:
  """The next multiple of the devices; rows without an image fill a batch."""
  if batch_size < 1:
    raise invalid('evaluation.batch_size', batch_size, 'at least 1')
  parts = mesh.shape['data']
  padded = -(-batch_size // parts) * parts
  if padded != batch_size:
    logging.info(
      'evaluation.batch_size %d becomes %d: %d devices share a batch evenly',
      *(batch_size, padded, mesh.size),
    )
  return padded
