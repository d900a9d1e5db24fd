"""Whether a batch fits the devices and the model."""

import logging
from collections.abc import Mapping

import numpy as np

from maskrcnn_jax.distributed import mesh as sharding
from maskrcnn_jax.errors import UserError


def check_classes(batch: Mapping, num_classes: int) -> None:
  """Raises for an instance whose class the model does not have."""
  classes = batch['instances']['classes']
  rows = np.flatnonzero(np.max(classes, axis=1, initial=0) >= num_classes)
  if rows.size:
    raise UserError(
      f'Image {batch["image_ids"][rows[0]]} has class '
      f'{np.max(classes[rows[0]])}; model.num_classes is {num_classes}, so '
      f'classes may be 1 to {num_classes - 1}. Set it to the largest class id '
      f'plus one, {np.max(classes) + 1} or more.'
    )


def check_batch_size(section: str, batch_size: int, mesh) -> None:
  """Raises if a batch cannot be split evenly over the devices."""
  parts = sharding.num_parts(mesh)
  if batch_size < 1 or batch_size % parts:
    what = f'the {parts} devices'
    if parts < mesh.size:
      what = f'{parts}, the {mesh.size} devices by runtime.spatial'
    raise UserError(
      f'{section}.batch_size must be a positive multiple of {what}, got '
      f'{batch_size}.'
    )


def whole_batch(batch_size: int, mesh) -> int:
  """The next multiple of the devices; rows without an image fill a batch."""
  if batch_size < 1:
    raise UserError(
      f'evaluation.batch_size must be at least 1, got {batch_size}.'
    )
  parts = sharding.num_parts(mesh)
  whole = -(-batch_size // parts) * parts
  if whole != batch_size:
    logging.info(
      'evaluation.batch_size %d becomes %d: %d devices share a batch evenly',
      *(batch_size, whole, mesh.size),
    )
  return whole
