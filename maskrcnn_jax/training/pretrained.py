"""Weights that a run does not start from itself: of another program or run."""

import logging
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from maskrcnn_jax.checkpoints import store as checkpoint
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.training import train_step
from maskrcnn_jax.weights import account as account_lib
from maskrcnn_jax.weights import foreign

_HOW_TO_GET = (
  'bash data/download_pretrained_weights.sh fetches those of the seed. To '
  "train without, set training.pretrained to '' and the backbone free: "
  'model.backbone.norm=group, model.backbone.frozen_stages=0 (as in '
  'coco:from_scratch).'
)


def check(prefix: str | None, model: MaskRCNN) -> None:
  """Raises if a run cannot start from there; warns if it will not learn.

  Args:
    prefix: of a TensorFlow checkpoint, a file of weights, or a checkpoint of
      ours; None or '' for none.
    model: to be trained.
  """
  if prefix:
    if checkpoint.is_checkpoint(prefix):
      return
    try:
      foreign.kind(prefix)
    except (ValueError, FileNotFoundError) as error:
      raise UserError(f'training.pretrained: {error} {_HOW_TO_GET}') from error
  elif model.backbone.norm == 'frozen' or model.backbone.frozen_stages:
    logging.warning(
      'The backbone has frozen parts and no pretrained weights: they keep '
      'random values. Set training.pretrained.'
    )


def start_from(
  prefix: str,
  state: train_step.TrainState,
  fit: account_lib.Fit = account_lib.WHOLE,
) -> tuple[train_step.TrainState, str]:
  """A fresh state with weights of a backbone or of a whole Mask R-CNN.

  Args:
    prefix: of a TensorFlow checkpoint, a file of weights, or a checkpoint of
      ours.
    state: with initial values.
    fit: how much of the model the weights must cover.

  Returns:
    The state, and an account of what went where.

  Raises:
    ValueError: the weights do not fit the model.
  """
  if checkpoint.is_checkpoint(prefix):
    saved = account_lib.flatten(checkpoint.restore(prefix)[0])
    saved = {name: np.asarray(array) for name, array in saved.items()}
    names = {name: name for name in account_lib.flatten(state.variables())}
    variables, misfits, left_over = account_lib.fill(
      state.variables(),
      saved,
      names,
      prefix,
      excess=sorted(saved.keys() - names.keys()),
      fit=fit,
    )
    account = account_lib.Account(
      source=f'{prefix} (step {checkpoint.step_of(prefix)})',
      kind='model',
      loaded={name: name for name in names if name not in misfits},
      misfits=misfits,
      left_over=left_over,
    )
  else:
    variables, account = foreign.load(prefix, state.variables(), fit)
  return state.replace(**jax.tree.map(jnp.asarray, variables)), str(account)


def whole_model(path: str, model: MaskRCNN, config):
  """All variables of a model, and the steps that made them.

  Args:
    path: one checkpoint of a run (`WORKDIR/checkpoints/STEP`), a workdir, the
      prefix of a TensorFlow checkpoint, or a file of weights.
    model: that the variables are for.
    config: of the model, to be compared.

  Returns:
    The variables; the step, 0 where the path does not say.

  Raises:
    ValueError: the checkpoint is a backbone's or another model's.
    FileNotFoundError: there is no checkpoint.
  """
  if checkpoint.is_checkpoint(path):
    checkpoint.check_same_model(path, config)
    return checkpoint.restore(path)[0], checkpoint.step_of(path)
  if foreign.kind(path) == 'backbone':
    raise UserError(
      f'{path} is a checkpoint of a backbone, which has nothing to detect '
      'with; evaluation needs one of a Mask R-CNN.'
    )
  template = jax.eval_shape(
    lambda key: train_step.init_variables(model, key), jax.random.key(0)
  )
  variables, account = foreign.load(path, template)
  logging.info('%s', account)
  step = re.search(r'-(\d+)$', pathlib.Path(path).name)
  variables = jax.tree.map(jnp.asarray, variables)
  return variables, int(step[1]) if step else 0
