"""Fine-tuning: completes a config from its pretrained weights and its data.

Pretrained weights need the layers, anchors, box coding, RoIAlign and channel
order that they were trained with, so a run takes these fields from its source.
The records tell the classes. Sampling of RoIs, loss weights and the selection
of detections stay as the config has them.
"""

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from maskrcnn_jax import config as config_lib
from maskrcnn_jax import override
from maskrcnn_jax.checkpoints import compatibility, store
from maskrcnn_jax.datasets import categories
from maskrcnn_jax.datasets.run_data import RunData
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models import backbones
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.training import own_records
from maskrcnn_jax.weights import external
from maskrcnn_jax.weights.load_report import STRICT, LoadOptions

# Fields of `model` that weights depend on.
_SOURCE_FIELDS = (
  *('backbone', 'pyramid_channels', 'max_level', 'rpn_convs', 'box_convs'),
  *('box_dense', 'box_channels', 'mask_channels', 'mask_convs', 'head_norm'),
  *('box_size', 'mask_size', 'mask_upsample', 'anchors', 'roi_align'),
  *('plus_one', 'box_weights', 'pixel_mean', 'pixel_std', 'bgr'),
)
# Fields of the backbone that the run keeps.
_KEPT_BACKBONE_FIELDS = ('frozen_stages', 'norm_momentum')
_KEPT_BY_KIND = ('drop_path', 'remat')


def complete(
  config, workdir, overrides: Sequence[str] = (), data: RunData | None = None
) -> None:
  """Fills in the fields that depend on the source of weights and on the data.

  In a workdir with a run, the model is that run's.

  Args:
    config: changed in place; may be locked.
    workdir: directory of the run; need not exist.
    overrides: those of the form `model.field=value` are the user's and win.
    data: images and labels to prepare records of, see `own_records`.

  Raises:
    UserError: `training.finetune` is set and `training.pretrained` is not, or
      the classes are unknown and the records cannot be read.
    FileNotFoundError: the source does not exist.
  """
  claimed = store.claimed_config(workdir)
  source = claimed and claimed['model']
  if config.get('training', {}).get('finetune'):
    if source is None:
      source = _source_model(config.training.get('pretrained'))
    changed = _adopt(config, source)
    if changed and claimed is None:
      logging.info(
        'Fields of the model that %s sets:\n%s',
        config.training.pretrained,
        compatibility.listed(changed),
      )
    config_lib.apply_overrides(
      config, [text for text in overrides if text.startswith('model.')]
    )
  own_records.complete(config, workdir, data, overrides)
  if config.model.get('num_classes', 0) is None:
    config.model.num_classes = (
      _count_classes(config) if claimed is None else source['num_classes']
    )


def load_options(
  source: str, finetune: bool, classes: Mapping[int, str]
) -> LoadOptions:
  """How much of a model its pretrained weights must cover.

  Logs the classes that are others there, and warns of predictors that may be
  for other classes.

  Args:
    classes: names of the run's classes by id; {} if unknown.
  """
  theirs, has_predictors = _source_classes(source, finetune)
  others = [
    f'{k} is {theirs.get(k)!r} there and {name!r} here'
    for k, name in classes.items()
    if theirs and theirs.get(k, '').casefold() != name.casefold()
  ]
  listed = compatibility.listed(others)
  if finetune and others:
    logging.info('%s has predictors for other classes:\n%s', source, listed)
  elif finetune and has_predictors and not theirs:
    logging.warning(
      '%s does not name its classes: its predictors are loaded if they are for '
      'as many classes as the run has.',
      source,
    )
  # Without names, a class is called by its number.
  elif others and any(name != str(k) for k, name in classes.items()):
    logging.warning(
      'training.pretrained: the predictors of %s are loaded, although they are '
      'for other classes:\n%s\nSet training.finetune=true to train new ones.',
      *(source, listed),
    )
  return LoadOptions(False, bool(others)) if finetune else STRICT


def _source_classes(source, finetune) -> tuple[Mapping[int, str], bool]:
  """Class names of weights, {} if unknown; whether they are of a Mask R-CNN."""
  if store.is_checkpoint(source):
    return store.read_classes(source), True
  try:
    inferred = external.infer_model(source)
  except UserError:
    if finetune:
      raise
    return {}, False  # The config may tell what the file does not.
  sizes = (text.partition('=')[0] for text in inferred.overrides)
  return inferred.classes, 'model.num_classes' in sizes


def _source_model(source: str | None) -> Mapping[str, Any]:
  """Section `model` of the config that weights belong to."""
  if not source:
    raise UserError(
      'training.finetune starts from other weights: set training.pretrained '
      'to a workdir, a checkpoint or a weight file, or training.finetune=false '
      'to start from random values.',
      argument='training.pretrained',
    )
  if store.is_checkpoint(source):
    return store.read_config(source)['model']
  try:
    inferred = external.infer_model(source)
  except (UserError, FileNotFoundError) as error:
    raise UserError(
      f'training.pretrained: {error}',
      argument='training.pretrained',
      path=source,
    ) from error
  return config_lib.load_config(inferred.config, inferred.overrides).model


def _adopt(config, source: Mapping[str, Any]) -> list[str]:
  """Sets the fields that weights depend on; one line for each change."""
  theirs, ours = (
    override.as_dict(MaskRCNN.from_config({**section, 'num_classes': 2}))
    for section in (source, config.model)
  )
  for name in _KEPT_BACKBONE_FIELDS:
    theirs['backbone'][name] = ours['backbone'][name]
  for kind, name in itertools.product(backbones.KINDS, _KEPT_BY_KIND):
    if kind in ours['backbone']:  # The options of a ResNet lie beside it.
      theirs['backbone'][kind][name] = ours['backbone'][kind][name]
  if theirs['backbone']['norm'] == 'group':
    # Frozen stages need batch norm.
    theirs['backbone']['frozen_stages'] = 0
  with config.unlocked():
    for name in _SOURCE_FIELDS:
      value = theirs[name]
      if isinstance(value, dict):
        value = ml_collections.ConfigDict(value)
      config.model[name] = value
  before, after = (
    {name: fields[name] for name in _SOURCE_FIELDS} for fields in (ours, theirs)
  )
  return [
    line.replace('saved ', '').replace('given ', 'now ')
    for line in compatibility.differences(before, after, 'model.')
  ]


def _count_classes(config) -> int:
  """Classes, with background, of the records and the annotations."""
  # It loads TensorFlow, which `import_weights` does without.
  from maskrcnn_jax.training import class_checks

  classes, validated = class_checks.training_classes(config)
  classes = {**validated, **classes}
  if beyond := categories.ids_far_beyond(classes):
    raise UserError(
      f'The records {config.input.file_pattern} have the class ids '
      f'{beyond[:10]}, far beyond the number of classes ({len(classes)}): a '
      'model has an output for every number up to the largest. Renumber the '
      'categories of the annotations from 1 and prepare the records again.',
      argument='model.num_classes',
      path=config.input.file_pattern,
      item=beyond[0],
      given=beyond[-1] + 1,
    )
  names = categories.names_of(classes)
  listed = ', '.join(f'{i} {names[i]}' for i in sorted(names))
  number = max(names) + 1
  logging.info('model.num_classes is %d: 0 background, %s', number, listed)
  return number
