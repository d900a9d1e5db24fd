"""Initial state of a run: a checkpoint, pretrained weights or random values."""

import dataclasses
import functools
import logging
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from maskrcnn_jax import config as config_lib
from maskrcnn_jax import files
from maskrcnn_jax.checkpoints import compatibility, store
from maskrcnn_jax.distributed import arrays
from maskrcnn_jax.distributed import mesh as mesh_lib
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.optimization.optimizer import make_optimizer
from maskrcnn_jax.training import finetuning, train_state
from maskrcnn_jax.weights import external, load_report, state_dicts
from maskrcnn_jax.weights.load_report import STRICT, LoadOptions
from maskrcnn_jax.weights.tensor_files import Tensors

# Position of the input before the first batch.
START = {'examples': 0, 'salt': 0}
_HOW_TO_GET = (
  'maskrcnn-jax weights lists public weights by name, and bash '
  "data/download_pretrained_weights.sh downloads Habana's. To train "
  "without, set training.pretrained to '' and use a backbone without frozen "
  'parts: model.backbone.norm=group, model.backbone.frozen_stages=0 (as in '
  'coco:from_scratch).'
)


def check(path: str | None, model: MaskRCNN) -> None:
  """Checks that a run can start from weights; warns if it would not learn.

  Args:
    path: of one of our checkpoints, a weight file, or the prefix of a
      TensorFlow checkpoint; or the name of public weights; None or '' for none.
    model: to be trained.

  Raises:
    UserError: there are no such weights, or they cannot be read.
  """
  if not path:
    if model.backbone.has_frozen_parts:
      logging.warning(
        'The backbone has frozen parts and no pretrained weights: they keep '
        'random values. Set training.pretrained.'
      )
  elif not store.is_checkpoint(path):
    try:
      external.kind(path)
    except (UserError, FileNotFoundError) as error:
      raise UserError(
        f'training.pretrained: {error} {_HOW_TO_GET}',
        argument='training.pretrained',
        path=path,
      ) from error


def start_from(
  path: str, state: train_state.TrainState, options: LoadOptions = STRICT
) -> tuple[train_state.TrainState, str]:
  """Initial state with the weights of a backbone or of a whole Mask R-CNN.

  Args:
    path: as in `check`.
    state: with initial values.
    options: how much of the model the weights must cover.

  Returns:
    The state, and the load report.

  Raises:
    UserError: the weights do not fit the model.
  """
  variables = state.variables()
  if store.is_checkpoint(path):
    leaves = load_report.flatten(store.restore(path)[0])
    variables, report = load_report.load(
      Tensors(path, leaves), load_report.OURS, variables, options
    )
    source = f'{path} (step {store.step_of(path)})'
    report = dataclasses.replace(report, source=source)
  else:
    variables, report = external.load(path, variables, options)
  return state.replace(**jax.tree.map(jnp.asarray, variables)), str(report)


def start(
  config,
  workdir,
  model: MaskRCNN,
  batch: Mapping[str, Any],
  key: jax.Array,
  mesh,
  classes: Mapping[int, str],
) -> tuple[store.Restored, str]:
  """The newest checkpoint of a run, or a fresh state and its load report.

  Args:
    config: of the run.
    workdir: directory of the run.
    model: to be trained.
    batch: any batch of the run; only its shapes are used.
    key: random key of the parameters.
    mesh: of the devices.
    classes: names of the run's classes by id.
  """
  optimizer = make_optimizer(model, config.optimizer)
  init = functools.partial(train_state.init_state, model, optimizer, batch)
  shapes = jax.eval_shape(init, key)
  shardings = mesh_lib.state_shardings(
    shapes, mesh, mesh_lib.config_shard_state(config)
  )
  target = jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    ),
    *(shapes, shardings),
  )
  restored = store.restore_latest(workdir, target, config)
  if restored:
    return restored, ''
  state, _ = train_state.create_train_state(model, config.optimizer, batch, key)
  report, source = '', config.training.get('pretrained')
  if source:
    options = finetuning.load_options(
      source, config.training.get('finetune', False), classes
    )
    state, report = start_from(source, state, options)
    state = train_state.restart_average(state)
  state = arrays.put(state, shardings)
  return store.Restored(0, state, START, dict(classes)), report


def whole_model(path: str, model: MaskRCNN, config):
  """All variables of a model, and the number of steps it was trained for.

  Args:
    path: as in `check`.
    model: that the variables are for.
    config: of the model, to be compared.

  Returns:
    The variables; the step, 0 where the path does not tell.

  Raises:
    UserError: the weights are of a backbone or of another model.
    FileNotFoundError: there are no such weights.
  """
  if store.is_checkpoint(path):
    compatibility.check_model(path, store.read_config(path), config)
    return store.restore(path)[0], store.step_of(path)
  if external.kind(path) == 'backbone':
    raise UserError(
      f'{path} is a checkpoint of a backbone, which cannot detect objects; '
      'evaluation needs the weights of a Mask R-CNN.',
      path=path,
      given='backbone',
      wanted='model',
    )
  template = jax.eval_shape(
    lambda key: train_state.init_variables(model, key), jax.random.key(0)
  )
  variables, report = external.load(path, template)
  logging.info('%s', report)
  step = re.search(r'-(\d+)$', pathlib.Path(path).name)
  variables = jax.tree.map(jnp.asarray, variables)
  return variables, int(step[1]) if step else 0


def import_weights(
  source: str | os.PathLike,
  output: str | os.PathLike,
  config_name: str | None = None,
  overrides: Sequence[str] = (),
) -> str:
  """Writes weights of another program as a checkpoint with its config.

  Args:
    source: a weight file, the prefix of a TensorFlow checkpoint or a name, see
      `weights.external`.
    output: folder to be made: a workdir at step 0, to train, evaluate or
      detect with.
    config_name: config of the model; None to infer it from the weights.
    overrides: fields of the config to change.

  Returns:
    The load report, and the config as flags.

  Raises:
    FileNotFoundError: there is no such file.
    UserError: the file cannot be read or does not fit the model, or the output
      is not empty.
  """
  output = pathlib.Path(output)
  files.check_new_folder(output)
  weights = external.read(source)
  inferred = state_dicts.infer_model(*weights)
  name, changed = config_name or inferred.config, list(overrides)
  if not config_name:
    changed = [*_needed_overrides(inferred), *overrides]
  config = config_lib.load_config(name, changed)
  state, report = _imported_state(weights, config)
  classes = inferred.classes
  if config.model.num_classes <= max(classes, default=0):
    classes = {}
  with files.new_folder(output.absolute()) as folder:
    store.check_can_save(folder, state, keep=0)
    store.claim_workdir(folder, config)
    with store.CheckpointWriter(folder) as writer:
      writer.save(0, state, START, config, classes)
  flags = ' '.join([name, *(f'--config.{x}' for x in changed)])
  return f'{report}\nmodel: --config={flags}\nwritten to {output} as step 0'


def _needed_overrides(inferred: state_dicts.InferredModel) -> list[str]:
  """Overrides that change their config."""
  plain = config_lib.load_config(inferred.config)
  changed = config_lib.load_config(inferred.config, inferred.overrides)

  def value(config, override):
    for name in override.partition('=')[0].split('.'):
      config = config[name]
    return config

  return [x for x in inferred.overrides if value(plain, x) != value(changed, x)]


def _imported_state(weights, config):
  """A train state at step 0 with the weights of a file; the load report."""
  model = MaskRCNN.from_config(config.model)
  optimizer = make_optimizer(model, config.optimizer)
  key = jax.random.key(config.training.seed)

  def init(key):
    return train_state.init_variables(model, key)

  variables, report = load_report.load(*weights, jax.eval_shape(init, key))
  if report.missing:
    variables, report = load_report.load(*weights, jax.jit(init)(key))
  variables = jax.tree.map(jnp.asarray, variables)
  return train_state.initial_state(optimizer, variables), report
