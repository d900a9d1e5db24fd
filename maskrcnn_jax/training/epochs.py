"""Lengths in epochs: the steps that they are with the records of a run."""

import copy
import logging

from maskrcnn_jax.datasets import records
from maskrcnn_jax.errors import invalid

# Field in epochs -> field in steps that it replaces.
_FIELDS = {
  'training.num_epochs': 'training.num_steps',
  'evaluation.every_epochs': 'evaluation.every_steps',
}


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
  for name in _FIELDS:
    section, _, field = name.partition('.')
    epochs = config.get(section, {}).get(field)
    if epochs is not None:
      given[name] = epochs
  if not given:
    return config
  inputs = config.input
  index = records.index_records(inputs.file_pattern, inputs.get('split'))
  steps_per_epoch = len(index) / inputs.batch_size
  steps = {}
  for name, epochs in given.items():
    if not epochs > 0:
      raise invalid(name, epochs, 'above 0, or None')
    steps[_FIELDS[name]] = max(1, round(epochs * steps_per_epoch))
  logging.info(
    'an epoch is %d images, %.6g steps of %d: %s',
    *(len(index), steps_per_epoch, inputs.batch_size),
    ', '.join(f'{name}={number}' for name, number in steps.items()),
  )
  config = copy.deepcopy(config)
  with config.unlocked():
    config.update_from_flattened_dict(steps)
  return config
