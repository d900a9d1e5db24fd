"""The command line of Habana's "Mask R-CNN for TensorFlow", run by this code.

Its numbers are taken literally: batches are per device, and the learning rate
does not follow them. Without mpirun one device is used, as there. Flags of the
form `--config.section.field=value` come last and change any field of a config.
"""

import json
import logging
import os
from collections.abc import Mapping
from typing import Any

import yaml

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.habana import flags as seed_flags
from maskrcnn_jax.habana.flags import Command

# What TF_BF16_CONVERSION may say -> model.dtype.
_PRECISIONS = {
  '': 'float32',
  '0': 'float32',
  'false': 'float32',
  'basic': 'bfloat16_products',
  'full': 'bfloat16',
  '1': 'bfloat16',
  'true': 'bfloat16',
}


def make_config(
  command: Command,
  environ: Mapping[str, str],
  num_processes: int = 1,
  num_devices: int = 1,
):
  """The config that a command line stands for.

  Args:
    command: see `seed_flags.parse`.
    environ: of the process, for TF_BF16_CONVERSION.
    num_processes: that mpirun started.
    num_devices: that share a step; batches of the flags are per device.

  Returns:
    A locked ConfigDict, `coco:habana_1x` with what the flags change.

  Raises:
    ValueError: a value cannot be used.
  """
  values = command.values
  config = config_lib.load_config('coco:habana_1x')
  for flag in seed_flags.FLAGS:
    if flag.field:
      section, _, name = flag.field.partition('.')
      config[section][name] = values[flag.name]
  model, optimizer = config.model, config.optimizer
  model.dtype = _precision(values, environ)
  if values['pyramid_roi_impl'] == 'habana_fp32':
    model.roi_align.dtype = 'float32'
  if values['finetune_bn']:
    model.backbone.norm = 'batch'
  if not values['topk_before_nms']:
    for proposals in (model.train_proposals, model.test_proposals):
      with proposals.ignore_type():
        proposals.pre_nms_top_k = None
  optimizer.tuned_batch_size = None
  optimizer.decay_steps = _numbers(values, 'learning_rate_steps', int)
  optimizer.decay_factors = _numbers(
    values, 'learning_rate_decay_levels', float
  )
  if values['global_gradient_clip_ratio'] > 0:
    optimizer.clip_global_norm = values['global_gradient_clip_ratio']
  config.input.seed = config.training.seed = values['seed'] or 0
  config.input.num_threads = min(values['max_cpus'], os.cpu_count() or 1)
  config.input.batch_size = values['train_batch_size'] * num_devices
  config.training.pretrained = values['checkpoint']
  config.training.profile = _profile(values['profile'])
  config.training.log_every_steps = 50
  config.training.keep_checkpoints = 5
  _set_evaluation(config.evaluation, values, num_devices)
  config.runtime.backend = 'auto'
  if 'device' in command.given:
    config.runtime.backend = seed_flags.BACKENDS[values['device']]
  alone = num_processes == 1 and not values['use_tf_distributed']
  config.runtime.num_devices = 1 if alone else None
  config_lib.apply_overrides(config, command.overrides)
  return config


def _set_evaluation(evaluation, values, num_devices):
  evaluation.batch_size = values['eval_batch_size'] * num_devices
  evaluation.report_every_batches = values['report_frequency'] or 0
  evaluation.every_steps = 0
  if values['mode'] == 'train_and_eval':
    evaluation.every_steps = values['num_steps_per_eval']
    evaluation.skip_first = values['skip_cycles']
  if values['include_groundtruth_in_features']:
    evaluation.annotations_file = ''


def _precision(values, environ) -> str:
  """`model.dtype` of TF_BF16_CONVERSION and --amp."""
  text = environ.get('TF_BF16_CONVERSION', '')
  if text.lower() not in _PRECISIONS:
    raise UserError(
      'TF_BF16_CONVERSION must be full, basic, 1 or 0, got '
      f'{text!r}; lists of operations are for SynapseAI alone.'
    )
  dtype = _PRECISIONS[text.lower()]
  return 'bfloat16' if values['amp'] and dtype == 'float32' else dtype


def _numbers(values, name, kind) -> tuple:
  """A list flag as numbers; `1e5` counts as a whole one."""
  texts = [text for text in values[name] if text.strip()]
  try:
    return tuple(kind(float(text)) for text in texts)
  except ValueError as error:
    raise UserError(
      f'--{name} must be numbers joined by commas, got {",".join(texts)!r}.'
    ) from error


def _profile(text: str) -> tuple[int, int] | None:
  """First and last step of `first,last` or of one number."""
  if not text:
    return None
  try:
    steps = [int(word) for word in text.split(',')]
  except ValueError:
    steps = []
  if len(steps) not in (1, 2):
    raise UserError(f'--profile must be one step or first,last, got {text!r}.')
  return steps[0], steps[-1]


def run(command: Command) -> None:
  """Does what a command line says.

  Args:
    command: see `seed_flags.parse`.

  Raises:
    ValueError: a flag, an input or the model folder cannot be used.
  """
  config, num_devices = _start(command)
  from maskrcnn_jax.training import loop

  values, workdir = command.values, command.values['model_dir']
  for line in _opening(command, config, num_devices):
    logging.info('%s', line)
  if values['mode'] == 'eval':
    # Its default is a backbone, for training.
    source = values['checkpoint'] if 'checkpoint' in command.given else None
    loop.evaluate(config, workdir, source=source or None)
    return
  notes = {'params.yaml': _params(values, config)}
  if values['mode'] == 'train' and not values['eval_after_training']:
    loop.train(config, workdir, notes)
  else:
    loop.train_and_evaluate(config, workdir, notes)


def _start(command: Command):
  """The config, once processes and devices are known, and their number."""
  from maskrcnn_jax.distributed import processes as runtime

  config = make_config(command, os.environ)
  num_processes = runtime.start(config.runtime)
  if num_processes > 1 and command.values['use_tf_distributed']:
    raise UserError(
      'use_tf_distributed is for one process; mpirun started '
      f'{num_processes}, each of which drives one device.'
    )
  config = make_config(command, os.environ, num_processes)
  from maskrcnn_jax.distributed import mesh as sharding

  num_devices = sharding.config_mesh(config).size
  config = make_config(command, os.environ, num_processes, num_devices)
  return config, num_devices


def _opening(command, config, num_devices):
  """What to say before the run."""
  yield from seed_flags.answers(command)
  if command.values['deterministic'] and command.values['seed'] is None:
    yield '--deterministic without --seed: the seed is 0.'
  if command.values['mode'] != 'eval':
    yield (
      f'{command.values["train_batch_size"]} images for each of {num_devices} '
      f'devices, {config.input.batch_size} a step; learning rate and steps '
      'are taken as they are given'
    )


def _params(values: Mapping[str, Any], config) -> str:
  """The flags, what the original derives from them, and the config, in YAML."""
  levels = [
    float(level) * values['init_learning_rate']
    for level in values['learning_rate_decay_levels']
  ]
  params = {**values, 'learning_rate_levels': levels}
  # Through JSON, which knows no tuples.
  return yaml.safe_dump(json.loads(json.dumps(params | config.to_dict())))
