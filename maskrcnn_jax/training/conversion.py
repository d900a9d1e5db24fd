"""Weights of other programs as checkpoints of ours, and back."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.checkpoints import store as checkpoint
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.training import train_step
from maskrcnn_jax.weights import foreign, tensor_writing, torchvision

_START = {'examples': 0, 'salt': 0}
# Where detection is the same arithmetic in torchvision.
_TORCHVISION = 'coco:torchvision'
# Fields of a model that detection does not depend on, or that the shapes of a
# state dict tell.
_FREE = (
  'train_proposals',
  'rpn_targets',
  'sampling',
  'losses',
  'mask_threshold',
  'dtype',
  'num_classes',
  'pyramid_channels',
  'rpn_convs',
  'box_convs',
  'box_dense',
  'box_channels',
  'mask_channels',
  'mask_convs',
  'head_norm',
  'backbone.depth',
  'backbone.width',
  'backbone.norm',
  'backbone.norm_momentum',
  'backbone.frozen_stages',
)
# What no torchvision model can be told.
_IMPOSSIBLE = ('bgr', 'backbone.stride_in_1x1')


def import_weights(
  source: str | os.PathLike,
  output: str | os.PathLike,
  config_name: str | None = None,
  overrides: Sequence[str] = (),
) -> str:
  """Writes a checkpoint, with its config, of the weights of another program.

  Args:
    source: a file or the prefix of a TensorFlow checkpoint, see
      `weights.foreign`.
    output: folder to be made, a workdir at step 0: to train in, to evaluate, to
      detect with.
    config_name: of the model; None: what the weights themselves tell.
    overrides: fields of the config that are to be another way.

  Returns:
    The config, and what went where.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file cannot be read or does not fit the model, or there is
      something in the output already.
  """
  output = pathlib.Path(output)
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise UserError(
      f'--output {output} is not empty; it is left as it is. Name a new folder.'
    )
  recipe = foreign.recipe(source)
  name, told = config_name or recipe.config, []
  if not config_name:
    told = _changing(recipe)
  config = config_lib.load_config(name, [*told, *overrides])
  state, account = _filled_state(source, config)
  checkpoint.check_can_save(output, state, keep=1)
  checkpoint.claim_workdir(output, config)
  classes = recipe.classes
  if config.model.num_classes <= max(classes, default=0):
    classes = {}
  with checkpoint.CheckpointWriter(output) as writer:
    writer.save(0, state, _START, config, classes)
  given = ' '.join([name, *(f'--config.{x}' for x in [*told, *overrides])])
  return '\n'.join(
    [
      str(account),
      f'The model is --config={given}',
      f'Written to {output} as step 0.',
    ]
  )


def _changing(recipe: foreign.Recipe) -> list[str]:
  """The overrides of a recipe that its config does not have anyway."""
  plain = config_lib.load_config(recipe.config)
  changed = config_lib.load_config(recipe.config, recipe.overrides)

  def value(config, override):
    for name in override.partition('=')[0].split('.'):
      config = config[name]
    return config

  return [x for x in recipe.overrides if value(plain, x) != value(changed, x)]


def _filled_state(source, config):
  """A train state at step 0 with the weights of a file, and their account."""
  model = MaskRCNN.from_config(config.model)
  optimizer = train_step.make_optimizer(model, config.optimizer)
  key = jax.random.key(config.training.seed)

  def make(key):
    return train_step.init_variables(model, key)

  variables, account = foreign.load(source, jax.eval_shape(make, key))
  if account.initial:
    logging.info('Initial values are drawn for what the file is not about.')
    variables, account = foreign.load(source, jax.jit(make)(key))
  variables = jax.tree.map(jnp.asarray, variables)
  return train_step.initial_state(optimizer, variables), account


def export_weights(source: str | os.PathLike, output: str | os.PathLike) -> str:
  """Writes a checkpoint as a state dict of torchvision's Mask R-CNN.

  Args:
    source: a workdir or one checkpoint of it.
    output: file to be made; `.pth`, `.safetensors` or `.npz`.

  Returns:
    What was written, and in what torchvision's model would differ.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    ValueError: torchvision has no such model, or there is such a file already.
  """
  tensor_writing.check_output(output)
  variables, config = checkpoint.restore(source)
  differences = dict(_differences(MaskRCNN.from_config(config.model)))
  impossible = [differences[x] for x in _IMPOSSIBLE if x in differences]
  if impossible:
    raise UserError(
      f'{source} cannot be a model of torchvision: {", ".join(impossible)}.'
    )
  tensors = torchvision.state_dict(variables)
  tensor_writing.write(output, tensors)
  lines = [f'{len(tensors)} tensors of {source} -> {output}']
  if differences:
    lines.append(
      f'torchvision will detect a little differently: {len(differences)} '
      f'fields are not those of {_TORCHVISION}:'
    )
  return '\n'.join([*lines, *(f'  {x}' for x in differences.values())])


def _differences(model: MaskRCNN) -> Iterator[tuple[str, str]]:
  """Fields in which a model detects otherwise than torchvision's, in words."""
  section = config_lib.load_config(_TORCHVISION).model
  reference = dict(_fields(MaskRCNN.from_config(section)))
  for name, value in _fields(model):
    is_free = any(f'{name}.'.startswith(f'{x}.') for x in _FREE)
    if value != reference[name] and not is_free:
      yield name, f'model.{name} is {value}, there {reference[name]}'


def _fields(options: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Names and values of a dataclass, of those in it too."""
  for field in dataclasses.fields(options):
    value = getattr(options, field.name)
    if field.name in ('parent', 'name', 'layout'):  # Linen's, and places.
      continue
    if dataclasses.is_dataclass(value):
      yield from _fields(value, f'{prefix}{field.name}.')
    else:
      yield f'{prefix}{field.name}', value
