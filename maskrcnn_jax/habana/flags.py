"""Flags of Habana's Mask R-CNN for TensorFlow.

Names, types and defaults are those of SynapseAI 1.13.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags as absl_flags

from maskrcnn_jax.cli import command_line
from maskrcnn_jax.errors import UserError

PROGRAM = 'mask_rcnn_main.py'
# Value of --device -> runtime.backend.
BACKENDS = {'CPU': 'cpu', 'HPU': 'hpu', 'GPU': 'gpu', 'TPU': 'tpu'}
_MODES = ('train', 'eval', 'train_and_eval')
_ROI_IMPLEMENTATIONS = ('habana', 'habana_fp32', 'gather')
_RECORDS = '/data/tensorflow/coco2017/tf_records'
_WEIGHTS = 'weights/resnet/resnet-nhwc-2018-02-07/model.ckpt-112603'
_DEFINERS = {
  str: absl_flags.DEFINE_string,
  int: absl_flags.DEFINE_integer,
  float: absl_flags.DEFINE_float,
  bool: absl_flags.DEFINE_boolean,
  list: absl_flags.DEFINE_list,
}


@dataclasses.dataclass(frozen=True)
class Flag:
  """A flag of Habana's script, with its name, type and default."""

  name: str
  kind: type
  default: Any
  help: str = ''
  field: str = ''  # Config field that takes the value unchanged.
  choices: Sequence[str] = ()  # Allowed values; () for any.
  replaced: str = ''  # Of a flag without effect here: what replaces it.


# Heading in `--help` -> its flags.
# fmt: off
GROUPS = {
  'run': (
    Flag('mode', str, 'train_and_eval', 'what to do', choices=_MODES),
    Flag('model_dir', str, 'results/', 'folder of the run; resumes if not new'),
    Flag('checkpoint', str, _WEIGHTS,
         'TensorFlow checkpoint that a new run starts from; with --mode=eval, '
         'if given, a Mask R-CNN to evaluate'),
    Flag('total_steps', int, 360000, 'number of the last step',
         field='training.num_steps'),
    Flag('train_batch_size', int, 4, 'images per step and device'),
    Flag('save_checkpoints_steps', int, 2500, 'steps between checkpoints',
         field='training.checkpoint_every_steps'),
    Flag('seed', int, None, 'random seed; 0 if not given'),
    Flag('deterministic', bool, False, 'bit-identical runs for the same --seed',
         field='runtime.deterministic'),
  ),
  'data': (
    Flag('training_file_pattern', str, f'{_RECORDS}/train-*.tfrecord',
         'records for training', 'input.file_pattern'),
    Flag('validation_file_pattern', str, f'{_RECORDS}/val-*.tfrecord',
         'records for evaluation', 'evaluation.file_pattern'),
    Flag('val_json_file', str, f'{_RECORDS}/annotations/instances_val2017.json',
         'COCO json of the records for evaluation',
         'evaluation.annotations_file'),
    Flag('include_groundtruth_in_features', bool, False,
         'take the ground truth from the records, not from --val_json_file'),
    Flag('use_fake_data', bool, False, 'repeat the first batch',
         field='input.repeat_first'),
    Flag('max_cpus', int, 16, 'input threads, at most one per CPU'),
  ),
  'model and precision': (
    Flag('pyramid_roi_impl', str, 'habana',
         'type of RoIAlign: habana and gather use that of the features, '
         'habana_fp32 float32', choices=_ROI_IMPLEMENTATIONS),
    Flag('finetune_bn', bool, False,
         'train the batch norms of stages 3 to 5 of the backbone'),
    Flag('topk_before_nms', bool, True,
         'keep the best anchors of each level before NMS; NVIDIA does not'),
    Flag('amp', bool, False,
         'mixed precision, as TF_BF16_CONVERSION=full; without a loss scale'),
  ),
  'schedule': (
    Flag('init_learning_rate', float, 0.005, 'learning rate after the warm-up',
         field='optimizer.learning_rate'),
    Flag('learning_rate_steps', list, '240000,320000',
         'last steps before the learning rate decays'),
    Flag('learning_rate_decay_levels', list, '0.1,0.01',
         'factors of the learning rate after these steps'),
    Flag('warmup_learning_rate', float, 0.0, 'learning rate of the first step',
         field='optimizer.warmup_learning_rate'),
    Flag('warmup_steps', int, 1000, 'steps of linear warm-up',
         field='optimizer.warmup_steps'),
    Flag('momentum', float, 0.9, 'momentum of SGD', 'optimizer.momentum'),
    Flag('l2_weight_decay', float, 1e-4,
         'weight decay: times half the squared kernels, part of the loss',
         'optimizer.weight_decay'),
    Flag('global_gradient_clip_ratio', float, -1.0,
         'largest norm of the gradients; not positive: no clipping'),
  ),
  'evaluation': (
    Flag('num_steps_per_eval', int, 29568,
         'steps between evaluations in train_and_eval; the end has one too'),
    Flag('skip_cycles', int, 0, 'evaluations to skip, the first ones',
         field='evaluation.skip_first'),
    Flag('eval_after_training', bool, True,
         'with --mode=train, evaluate at the end'),
    Flag('eval_samples', int, 5000, 'images to evaluate, the first ones',
         field='evaluation.max_images'),
    Flag('eval_batch_size', int, 4,
         'images per batch and device; does not change the accuracy'),
    Flag('report_frequency', int, None,
         'batches between intermediate scores; none if not given'),
  ),
  'reports': (
    Flag('save_summary_steps', int, None,
         "steps between TensorBoard scalars under Habana's names",
         'training.summary_every_steps'),
    Flag('log_path', str, './mrcnn.json', 'JSON lines that summarize the run',
         field='training.log_file'),
    Flag('profile', str, '',
         "step, or first,last step to trace for TensorBoard's profiler"),
  ),
  'machine': (
    Flag('device', str, 'HPU', 'backend; if not given, the best that JAX finds',
         choices=tuple(BACKENDS)),
    Flag('use_tf_distributed', bool, False,
         'use all devices of this machine in one process, not only the first'),
  ),
  'accepted, without effect': (
    Flag('xla', bool, False, replaced='XLA compiles every step.'),
    Flag('allow_xla_at_inference', bool, False,
         replaced='XLA compiles detection.'),
    Flag('use_batched_nms', bool, False,
         replaced='NMS is always batched, with integer indices.'),
    Flag('nms_on_hpu', bool, True, replaced='NMS runs where the model runs.'),
    Flag('offload_maskhead_postproc', bool, False,
         replaced='the mask head computes only the channel of the class.'),
    Flag('use_habana_get_mask_targets', bool, True,
         replaced='mask targets are always made on the device.'),
    Flag('use_custom_box_proposals_op', bool, False,
         replaced='models/proposals.py makes the proposals on every device.'),
    Flag('recipe_cache', str, '/tmp/maskrcnn_recipe_cache/',
         replaced='--config.runtime.compilation_cache is the folder of '
         'compiled programs; nothing in it is deleted.'),
    Flag('dump_config', str, None,
         replaced='jax.debug.print shows tensors, --profile a trace.'),
  ),
}
# fmt: on
FLAGS = tuple(flag for group in GROUPS.values() for flag in group)


@dataclasses.dataclass(frozen=True)
class Command:
  """A parsed command line."""

  values: Mapping[str, Any]  # Of all flags.
  given: frozenset[str]  # Names of the flags on the command line.
  overrides: Sequence[str]  # Texts `section.field=value`.
  wants_help: bool
  debug: bool


def parse(argv: Sequence[str]) -> Command:
  """Parses a command line.

  Args:
    argv: without the name of the program.

  Raises:
    UserError: a flag or a value is unknown.
  """
  parsed = absl_flags.FlagValues()
  for flag in (*FLAGS, Flag('help', bool, False), Flag('debug', bool, False)):
    if flag.choices:
      define, choices = absl_flags.DEFINE_enum, (flag.choices,)
    else:
      define, choices = _DEFINERS[flag.kind], ()
    define(flag.name, flag.default, *choices, flag.help, flag_values=parsed)
  overrides, rest = command_line.split_overrides(argv)
  try:
    positional = parsed([PROGRAM, *rest])[1:]
  except absl_flags.Error as error:
    raise UserError(f'{error} --help lists the flags.') from error
  if positional:
    raise UserError(
      f'{positional[0]!r} is not a flag; flags have the form --name=value.',
      given=positional[0],
    )
  return Command(
    values={flag.name: parsed[flag.name].value for flag in FLAGS},
    given=frozenset(flag.name for flag in FLAGS if parsed[flag.name].present),
    overrides=overrides,
    wants_help=parsed.help,
    debug=parsed.debug,
  )


def help_text() -> str:
  """The flags by group, with their defaults."""
  lines = [
    "Command line of Habana's Mask R-CNN for TensorFlow.",
    'Boolean flags are given as --name or --noname, others as --name=value.',
    '--config.section.field=value overrides any field of configs/coco.py.',
    'The precision is TF_BF16_CONVERSION=full, basic or 0 in the environment.',
  ]
  for heading, group in GROUPS.items():
    lines += ['', f'{heading}:']
    for flag in group:
      choices = f': {", ".join(flag.choices)}' if flag.choices else ''
      lines += [
        f'  --{flag.name} (default: {flag.default})',
        f'      {flag.help or f"instead: {flag.replaced}"}{choices}',
      ]
  return '\n'.join(lines)


def without_effect(command: Command) -> dict[str, str]:
  """Name of every given flag that has no effect here -> what replaces it."""
  given = (flag for flag in FLAGS if flag.name in command.given)
  return {flag.name: flag.replaced for flag in given if flag.replaced}
