"""Lengths in epochs: the steps that they are with the records of a run."""

import copy
import logging

import numpy as np

from maskrcnn_jax.config import EPOCH_FIELDS
from maskrcnn_jax.datasets import records
from maskrcnn_jax.errors import invalid
from maskrcnn_jax.input_pipeline import batches as input_batches


def with_steps(config):
  """A copy of a config with the steps of its epochs.

  Steps are rounded, and at least 1.

  Args:
    config: a ConfigDict; `training.num_epochs` and `evaluation.every_epochs`
      may be set.

  Returns:
    The config itself if no field is in epochs.

  Raises:
    UserError: a number of epochs is not above 0, or there are no records.
  """
  given = {}
  for name in EPOCH_FIELDS:
    section, _, field = name.partition('.')
    epochs = config.get(section, {}).get(field)
    if epochs is not None:
      given[name] = epochs
  if not given:
    return config
  inputs = config.input
  index = records.index_records(inputs.file_pattern, inputs.get('split'))
  threshold = inputs.get('repeat_factor_threshold', 0.0)
  factors = input_batches.repeat_factors(index, threshold)
  # With repeats the mean length, from which epochs differ a little.
  num_images = len(index) if factors is None else float(np.sum(factors))
  steps_per_epoch = num_images / inputs.batch_size
  steps = {}
  for name, epochs in given.items():
    if not epochs > 0:
      raise invalid(name, epochs, 'above 0, or None')
    steps[EPOCH_FIELDS[name]] = max(1, round(epochs * steps_per_epoch))
  logging.info(
    'an epoch is %.8g images, %.6g steps of %d: %s',
    *(num_images, steps_per_epoch, inputs.batch_size),
    ', '.join(f'{name}={number}' for name, number in steps.items()),
  )
  config = copy.deepcopy(config)
  with config.unlocked():
    config.update_from_flattened_dict(steps)
  return config
