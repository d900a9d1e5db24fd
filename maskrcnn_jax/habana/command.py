"""Command line of Habana's "Mask R-CNN for TensorFlow", run by this package.

Its numbers are literal: batch sizes are per device, and the learning rate does
not follow them. Without mpirun one device is used, as there. Flags of the form
`--config.section.field=value` apply last and override any field of the config.
"""

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from maskrcnn_jax.cli import command_line
from maskrcnn_jax.errors import UserError, invalid, require
from maskrcnn_jax.habana import flags
from maskrcnn_jax.terminal import escaped_streams

# Value of TF_BF16_CONVERSION -> model.dtype.
_PRECISIONS = {
  **dict.fromkeys(('', '0', 'false'), 'float32'),
  'basic': 'bfloat16_products',
  **dict.fromkeys(('full', '1', 'true'), 'bfloat16'),
}


def main(argv: Sequence[str]) -> int:
  """Runs a command line and returns its exit code; `--help` is instant.

  Args:
    argv: without the name of the program.
  """
  with escaped_streams():
    try:
      command = flags.parse(argv)
    except UserError as error:
      print(f'{flags.PROGRAM}: {error}', file=sys.stderr)
      return 2
    if command.wants_help:
      print(flags.help_text())
      return 0
    return command_line.run(flags.PROGRAM, lambda: _run(command), command.debug)


def make_config(
  command: flags.Command,
  environ: Mapping[str, str],
  num_processes: int = 1,
  num_devices: int = 1,
):
  """The config of a command line.

  Args:
    command: of `flags.parse`.
    environ: of the process, for TF_BF16_CONVERSION.
    num_processes: started by mpirun.
    num_devices: that share a step; batch sizes of the flags are per device.

  Returns:
    A locked ConfigDict: `coco:habana_1x` with the changes of the flags.
  """
  from maskrcnn_jax import config as config_lib

  values = command.values
  config = config_lib.load_config('coco:habana_1x')
  for flag in flags.FLAGS:
    if flag.field:
      section, _, name = flag.field.partition('.')
      config[section][name] = values[flag.name]
  _set_model(config.model, values, environ)
  _set_optimizer(config.optimizer, values)
  _set_evaluation(config.evaluation, values, num_devices)
  config.input.seed = config.training.seed = values['seed'] or 0
  config.input.num_threads = min(values['max_cpus'], os.cpu_count() or 1)
  config.input.batch_size = values['train_batch_size'] * num_devices
  config.training.pretrained = values['checkpoint']
  config.training.allow_empty_classes = True  # As in the reference.
  config.training.profile = _profile(values['profile'])
  config.training.log_every_steps = 50
  config.training.keep_checkpoints = 5
  if 'device' in command.given:
    config.runtime.backend = flags.BACKENDS[values['device']]
  if num_processes == 1 and not values['use_tf_distributed']:
    config.runtime.num_devices = 1
  config_lib.apply_overrides(config, command.overrides)
  return config


def _set_model(model, values, environ):
  model.dtype = _precision(values, environ)
  if values['pyramid_roi_impl'] == 'habana_fp32':
    model.roi_align.dtype = 'float32'
  if values['finetune_bn']:
    model.backbone.norm = 'batch'
  if not values['topk_before_nms']:
    for proposals in (model.train_proposals, model.test_proposals):
      with proposals.ignore_type():
        proposals.pre_nms_top_k = None


def _set_optimizer(optimizer, values):
  optimizer.tuned_batch_size = None
  optimizer.decay_steps = _numbers(values, 'learning_rate_steps', int)
  factors = _numbers(values, 'learning_rate_decay_levels', float)
  optimizer.decay_factors = factors
  if values['global_gradient_clip_ratio'] > 0:
    optimizer.clip_global_norm = values['global_gradient_clip_ratio']


def _set_evaluation(evaluation, values, num_devices):
  evaluation.batch_size = values['eval_batch_size'] * num_devices
  evaluation.report_every_batches = values['report_frequency'] or 0
  has_cycles = values['mode'] == 'train_and_eval'
  evaluation.every_steps = values['num_steps_per_eval'] if has_cycles else 0
  if values['include_groundtruth_in_features']:
    evaluation.annotations_file = ''


def _precision(values, environ) -> str:
  """`model.dtype` by TF_BF16_CONVERSION and --amp."""
  text = environ.get('TF_BF16_CONVERSION', '')
  if text.lower() not in _PRECISIONS:
    wanted = 'full, basic, 1 or 0 (only SynapseAI reads lists of operations)'
    raise invalid('TF_BF16_CONVERSION', text, wanted)
  dtype = _PRECISIONS[text.lower()]
  return 'bfloat16' if values['amp'] and dtype == 'float32' else dtype


def _numbers(values, name, kind) -> tuple:
  """Numbers of a list flag; `1e5` is a whole number too."""
  texts = [text for text in values[name] if text.strip()]
  try:
    return tuple(kind(float(text)) for text in texts)
  except (ValueError, OverflowError):
    wanted = 'numbers joined by commas'
    raise invalid(f'--{name}', ','.join(texts), wanted) from None


def _profile(text: str) -> tuple[int, int] | None:
  """First and last step of `first,last` or of one number."""
  if not text:
    return None
  try:
    steps = [int(word) for word in text.split(',')]
  except ValueError:
    steps = []
  if len(steps) not in (1, 2):
    raise invalid('--profile', text, 'one step or first,last')
  return steps[0], steps[-1]


def _run(command: flags.Command) -> None:
  require('train', 'tensorflow', purpose=flags.PROGRAM)
  config, num_devices = _start(command)
  from maskrcnn_jax.training import loop

  values, workdir = command.values, command.values['model_dir']
  for line in _opening(command, config, num_devices):
    logging.info('%s', line)
  if values['mode'] == 'eval':
    # The default of --checkpoint is a backbone, for training.
    source = values['checkpoint'] if 'checkpoint' in command.given else None
    loop.evaluate(config, workdir, source=source or None)
    return
  notes = {'params.yaml': _params(values, config)}
  if values['mode'] == 'train' and not values['eval_after_training']:
    loop.train(config, workdir, notes)
  else:
    loop.train_and_evaluate(config, workdir, notes)


def _start(command: flags.Command):
  """The config and the number of devices, once the processes have started."""
  from maskrcnn_jax.distributed import processes

  config = make_config(command, os.environ)
  num_processes = processes.start(config.runtime)
  if num_processes > 1 and command.values['use_tf_distributed']:
    raise UserError(
      '--use_tf_distributed is for one process; mpirun started '
      f'{num_processes}, each of which drives one device.',
      argument='--use_tf_distributed',
      given=num_processes,
    )
  config = make_config(command, os.environ, num_processes)
  from maskrcnn_jax.distributed import mesh

  num_devices = mesh.config_mesh(config).size
  config = make_config(command, os.environ, num_processes, num_devices)
  return config, num_devices


def _opening(command, config, num_devices):
  """Log lines before the run."""
  for name, reason in flags.without_effect(command).items():
    yield f'--{name} has no effect here: {reason}'
  if command.values['deterministic'] and command.values['seed'] is None:
    yield '--deterministic without --seed: the seed is 0.'
  if command.values['mode'] != 'eval':
    yield (
      f'{command.values["train_batch_size"]} images for each of {num_devices} '
      f'devices, {config.input.batch_size} a step; learning rate and steps '
      'are used as given'
    )


def _params(values: Mapping[str, Any], config) -> str:
  """YAML of the flags, the values Habana derives from them, and the config."""
  import yaml

  rate, levels = values['init_learning_rate'], 'learning_rate_decay_levels'
  rates = {'learning_rate_levels': [float(x) * rate for x in values[levels]]}
  # Through JSON, which has no tuples.
  text = json.dumps({**values, **rates, **config.to_dict()})
  return yaml.safe_dump(json.loads(text))
