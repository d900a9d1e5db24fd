"""What a run that fine-tunes takes from its source, besides the weights.

Weights mean what they meant only in a model that computes as theirs did: with
the same layers, anchors, box coding, RoIAlign and colours. Those fields become
the source's. Which classes there are is told by the records. How RoIs are
sampled, how losses are weighed and which detections are kept stays the run's.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.checkpoints import compatibility as checkpoint_match
from maskrcnn_jax.checkpoints import store as checkpoint
from maskrcnn_jax.datasets import categories
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.training import data_checks
from maskrcnn_jax.weights import account as account_lib
from maskrcnn_jax.weights import foreign

_OF_WEIGHTS = (
  'backbone',
  'pyramid_channels',
  'max_level',
  'rpn_convs',
  'box_convs',
  'box_dense',
  'box_channels',
  'mask_channels',
  'mask_convs',
  'head_norm',
  'box_size',
  'mask_size',
  'anchors',
  'roi_align',
  'plus_one',
  'box_weights',
  'pixel_mean',
  'pixel_std',
  'bgr',
)
# Fields of the backbone that a run chooses.
_CHOSEN = ('frozen_stages', 'norm_momentum')


def complete(config, workdir, overrides: Sequence[str] = ()) -> None:
  """Fills in what a config leaves to its source and to the data.

  In a workdir that holds a run already, the model is that of the run.

  Args:
    config: changed in place; may be locked.
    workdir: directory of the run, or where it will be.
    overrides: `model.field=value` of these are the user's, and win.

  Raises:
    ValueError: `training.finetune` is set and `training.pretrained` is not, or
      the classes are to be read off records that cannot be read.
    FileNotFoundError: the source is not there.
  """
  claimed = checkpoint.claimed_config(workdir)
  source = claimed and claimed['model']
  if config.get('training', {}).get('finetune'):
    if source is None:
      source = _model_of(config.training.get('pretrained'))
    changed = _adopt(config, source)
    if changed and claimed is None:
      logging.info(
        'The model is as %s needs it:\n%s',
        config.training.pretrained,
        checkpoint_match.listed(changed),
      )
    config_lib.apply_overrides(
      config, [text for text in overrides if text.startswith('model.')]
    )
  if config.model.get('num_classes', 0) is None:
    if claimed is not None:
      config.model.num_classes = source['num_classes']
    else:
      config.model.num_classes = _count_classes(config)


def fit(training, classes: Mapping[int, str]) -> account_lib.Fit:
  """How much of a model a run must take from `training.pretrained`.

  Args:
    training: `options.TrainingOptions`.
    classes: names of this run's classes by id; {} if they are not known.
  """
  if not training.finetune:
    return account_lib.WHOLE
  if checkpoint.is_checkpoint(training.pretrained):
    theirs = checkpoint.read_classes(training.pretrained)
  else:
    theirs = foreign.recipe(training.pretrained).classes
  if not theirs or not classes or dict(theirs) == dict(classes):
    return account_lib.Fit(partial=True)
  return account_lib.Fit(
    partial=True,
    renewed=account_lib.PREDICTORS,
    why_renewed='is of other classes',
  )


def _model_of(source: str | None) -> Mapping[str, Any]:
  """The section `model` of the config that weights are of."""
  if not source:
    raise UserError(
      'training.finetune starts from other weights: set training.pretrained '
      'to a workdir, a checkpoint or a file of weights, or '
      'training.finetune=false to start from random values.'
    )
  if checkpoint.is_checkpoint(source):
    return checkpoint.read_config(source)['model']
  try:
    recipe = foreign.recipe(source)
  except (ValueError, FileNotFoundError) as error:
    raise UserError(f'training.pretrained: {error}') from error
  return config_lib.load_config(recipe.config, recipe.overrides).model


def _adopt(config, source: Mapping[str, Any]) -> list[str]:
  """Sets the fields that weights depend on; one line for each change."""
  theirs = _fields(MaskRCNN.from_config({**source, 'num_classes': 2}))
  ours = _fields(MaskRCNN.from_config({**config.model, 'num_classes': 2}))
  for name in _CHOSEN:
    theirs['backbone'][name] = ours['backbone'][name]
  if theirs['backbone']['norm'] == 'group':
    # Frozen stages have batch norm.
    theirs['backbone']['frozen_stages'] = 0
  with config.unlocked():
    for name in _OF_WEIGHTS:
      value = theirs[name]
      if isinstance(value, dict):
        value = ml_collections.ConfigDict(value)
      config.model[name] = value
  before, after = (
    {name: fields[name] for name in _OF_WEIGHTS} for fields in (ours, theirs)
  )
  return [
    line.replace('saved ', '').replace('given ', 'now ')
    for line in checkpoint_match.differences(before, after, 'model.')
  ]


def _fields(options) -> dict[str, Any]:
  """Options as nested dicts, without what is Linen's own."""
  return {
    field.name: _fields(value) if dataclasses.is_dataclass(value) else value
    for field in dataclasses.fields(options)
    if field.name not in ('parent', 'name', 'layout')
    for value in [getattr(options, field.name)]
  }


def _count_classes(config) -> int:
  """Classes with background, of the records and the annotations."""
  classes = data_checks.training_classes(config)
  # Whoever only trains may have no other records.
  with contextlib.suppress(UserError):
    pattern = config.get('evaluation', {}).get('file_pattern')
    recorded = categories.read_from_records(pattern) if pattern else {}
    classes = {**recorded, **classes}
  if not classes:
    raise UserError(
      f'The records {config.input.file_pattern} have no object: set '
      'model.num_classes to the largest class id plus one.'
    )
  names = data_checks.names_of(classes)
  listed = ', '.join(f'{i} {names[i]}' for i in sorted(names))
  number = max(names) + 1
  logging.info('model.num_classes is %d: 0 background, %s', number, listed)
  return number
