"""The flags of Habana's "Mask R-CNN for TensorFlow", one row each.

Names, types and defaults are those of that system. `seed_command` does what
they say.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags as absl_flags

from maskrcnn_jax.cli import command_line
from maskrcnn_jax.errors import UserError

_PROGRAM = 'mask_rcnn_main.py'
_DATA = '/data/tensorflow/coco2017/tf_records'
_WEIGHTS = 'weights/resnet/resnet-nhwc-2018-02-07/model.ckpt-112603'
_ROI_IMPLEMENTATIONS = ('habana', 'habana_fp32', 'gather')
# Value of --device -> runtime.backend.
BACKENDS = {'CPU': 'cpu', 'HPU': 'hpu', 'GPU': 'gpu', 'TPU': 'tpu'}
_DEFINERS = {
  'string': absl_flags.DEFINE_string,
  'integer': absl_flags.DEFINE_integer,
  'float': absl_flags.DEFINE_float,
  'boolean': absl_flags.DEFINE_boolean,
  'list': absl_flags.DEFINE_list,
}


@dataclasses.dataclass(frozen=True)
class Flag:
  """A flag of the original.

  Attributes:
    name: as there.
    kind: type of the value: string, integer, float, boolean or list.
    default: as there.
    group: heading in `--help`.
    words: what it does.
    field: of the config, where the value goes as it is.
    choices: values that it may have; () for any.
    replaced: what to say if it is given, where it has nothing to do here.
  """

  name: str
  kind: str
  default: Any
  group: str
  words: str
  field: str = ''
  choices: Sequence[str] = ()
  replaced: str = ''


_RUN, _INPUT, _MODEL = 'what to run', 'data', 'model and precision'
_RATE, _EVALUATION = 'schedule', 'evaluation'
_REPORT, _MACHINE = 'reports', 'machine'
_UNUSED = 'accepted, with nothing to do here'

FLAGS = (
  Flag(
    'mode',
    'string',
    'train_and_eval',
    _RUN,
    'train, eval or train_and_eval',
    choices=('train', 'eval', 'train_and_eval'),
  ),
  Flag(
    'model_dir', 'string', 'results/', _RUN, 'folder of the run; it is resumed'
  ),
  Flag(
    'checkpoint',
    'string',
    _WEIGHTS,
    _RUN,
    'TensorFlow checkpoint that a new run starts from; with --mode=eval, if '
    'given, a checkpoint of a Mask R-CNN to evaluate',
  ),
  Flag(
    'total_steps',
    'integer',
    360000,
    _RUN,
    'last step, counted from the start of the run',
    'training.num_steps',
  ),
  Flag(
    'train_batch_size', 'integer', 4, _RUN, 'images per step and per device'
  ),
  Flag(
    'save_checkpoints_steps',
    'integer',
    2500,
    _RUN,
    'checkpoints are written this often',
    'training.checkpoint_every_steps',
  ),
  Flag('seed', 'integer', None, _RUN, 'of all random numbers; none: 0'),
  Flag(
    'deterministic',
    'boolean',
    False,
    _RUN,
    'the same bits in every run with the same --seed',
    'runtime.deterministic',
  ),
  Flag(
    'training_file_pattern',
    'string',
    f'{_DATA}/train-*.tfrecord',
    _INPUT,
    'records to train on',
    'input.file_pattern',
  ),
  Flag(
    'validation_file_pattern',
    'string',
    f'{_DATA}/val-*.tfrecord',
    _INPUT,
    'records to evaluate on',
    'evaluation.file_pattern',
  ),
  Flag(
    'val_json_file',
    'string',
    f'{_DATA}/annotations/instances_val2017.json',
    _INPUT,
    'COCO json of the records to evaluate on',
    'evaluation.annotations_file',
  ),
  Flag(
    'include_groundtruth_in_features',
    'boolean',
    False,
    _INPUT,
    'take the ground truth from the records, not from --val_json_file',
  ),
  Flag(
    'use_fake_data',
    'boolean',
    False,
    _INPUT,
    'train on the first batch again and again',
    'input.repeat_first',
  ),
  Flag(
    'max_cpus',
    'integer',
    16,
    _INPUT,
    'threads that read and prepare images, at most one per CPU',
  ),
  Flag(
    'pyramid_roi_impl',
    'string',
    'habana',
    _MODEL,
    'one RoIAlign by three names: habana and gather resample in the type of '
    'the features, habana_fp32 in float32',
    choices=_ROI_IMPLEMENTATIONS,
  ),
  Flag(
    'finetune_bn',
    'boolean',
    False,
    _MODEL,
    'train the batch norms of stages 3 to 5 of the backbone',
  ),
  Flag(
    'topk_before_nms',
    'boolean',
    True,
    _MODEL,
    'cut each level to its best anchors before NMS; without, as NVIDIA',
  ),
  Flag(
    'amp',
    'boolean',
    False,
    _MODEL,
    'mixed precision, as TF_BF16_CONVERSION=full; bfloat16 needs no loss scale',
  ),
  Flag(
    'init_learning_rate',
    'float',
    0.005,
    _RATE,
    'learning rate after the warm-up',
    'optimizer.learning_rate',
  ),
  Flag(
    'learning_rate_steps',
    'list',
    '240000,320000',
    _RATE,
    'last steps before the rate falls',
  ),
  Flag(
    'learning_rate_decay_levels',
    'list',
    '0.1,0.01',
    _RATE,
    'share of the rate after each of these',
  ),
  Flag(
    'warmup_learning_rate',
    'float',
    0.0,
    _RATE,
    'learning rate of the first step',
    'optimizer.warmup_learning_rate',
  ),
  Flag(
    'warmup_steps',
    'integer',
    1000,
    _RATE,
    'the rate rises over this many steps',
    'optimizer.warmup_steps',
  ),
  Flag('momentum', 'float', 0.9, _RATE, 'of SGD', 'optimizer.momentum'),
  Flag(
    'l2_weight_decay',
    'float',
    1e-4,
    _RATE,
    'times half the squared kernels, part of the loss',
    'optimizer.weight_decay',
  ),
  Flag(
    'global_gradient_clip_ratio',
    'float',
    -1.0,
    _RATE,
    'gradients are scaled down to this norm; not positive: never',
  ),
  Flag(
    'num_steps_per_eval',
    'integer',
    29568,
    _EVALUATION,
    'train_and_eval evaluates this often, and at the end',
  ),
  Flag(
    'skip_cycles',
    'integer',
    0,
    _EVALUATION,
    'train_and_eval leaves out this many evaluations, the first ones',
  ),
  Flag(
    'eval_after_training',
    'boolean',
    True,
    _EVALUATION,
    '--mode=train evaluates at its end',
  ),
  Flag(
    'eval_samples',
    'integer',
    5000,
    _EVALUATION,
    'images to evaluate, the first ones',
    'evaluation.max_images',
  ),
  Flag(
    'eval_batch_size',
    'integer',
    4,
    _EVALUATION,
    'images per batch and per device; the accuracy does not depend on it',
  ),
  Flag(
    'report_frequency',
    'integer',
    None,
    _EVALUATION,
    'score what is there after so many batches',
  ),
  Flag(
    'save_summary_steps',
    'integer',
    None,
    _REPORT,
    "TensorBoard shows metrics under the original's names, this often",
    'training.summary_every_steps',
  ),
  Flag(
    'log_path',
    'string',
    './mrcnn.json',
    _REPORT,
    'JSON lines that sum up the run',
    'training.log_file',
  ),
  Flag(
    'profile',
    'string',
    '',
    _REPORT,
    "first,last step to trace for TensorBoard's profiler, or one step",
  ),
  Flag(
    'device',
    'string',
    'HPU',
    _MACHINE,
    'CPU, HPU, GPU or TPU; if not given, what JAX finds',
    choices=tuple(BACKENDS),
  ),
  Flag(
    'use_tf_distributed',
    'boolean',
    False,
    _MACHINE,
    'one process drives all devices of this machine, not only the first',
  ),
  Flag(
    'xla',
    'boolean',
    False,
    _UNUSED,
    '',
    replaced='every step is compiled by XLA.',
  ),
  Flag(
    'allow_xla_at_inference',
    'boolean',
    False,
    _UNUSED,
    '',
    replaced='detection is compiled by XLA.',
  ),
  Flag(
    'use_batched_nms',
    'boolean',
    False,
    _UNUSED,
    '',
    replaced='NMS is batched, and indices are whole numbers everywhere.',
  ),
  Flag(
    'nms_on_hpu',
    'boolean',
    True,
    _UNUSED,
    '',
    replaced='NMS runs where the model runs.',
  ),
  Flag(
    'offload_maskhead_postproc',
    'boolean',
    False,
    _UNUSED,
    '',
    replaced='the mask head computes the channel of the class alone.',
  ),
  Flag(
    'use_habana_get_mask_targets',
    'boolean',
    True,
    _UNUSED,
    '',
    replaced='mask targets are made on the device, by one function.',
  ),
  Flag(
    'use_custom_box_proposals_op',
    'boolean',
    False,
    _UNUSED,
    '',
    replaced='proposals are made by models/proposals.py on every device.',
  ),
  Flag(
    'recipe_cache',
    'string',
    '/tmp/maskrcnn_recipe_cache/',
    _UNUSED,
    '',
    replaced='compiled programs are kept in the folder of '
    '--config.runtime.compilation_cache, and nothing is deleted.',
  ),
  Flag(
    'dump_config',
    'string',
    None,
    _UNUSED,
    '',
    replaced='tensors can be looked at with jax.debug.print; --profile traces '
    'the device.',
  ),
)


@dataclasses.dataclass(frozen=True)
class Command:
  """A parsed command line.

  Attributes:
    values: of every flag.
    given: names of the flags that were on the command line.
    overrides: texts `section.field=value`.
    wants_help: print the flags and do nothing.
    debug: show the traceback of an error.
  """

  values: Mapping[str, Any]
  given: frozenset[str]
  overrides: Sequence[str]
  wants_help: bool
  debug: bool


def main(argv: Sequence[str]) -> int:
  """Runs a command line and returns its exit code; `--help` is instant.

  Args:
    argv: without the name of the program.
  """
  try:
    command = parse(argv)
  except ValueError as error:
    print(f'{_PROGRAM}: {error}', file=sys.stderr)
    return 2
  if command.wants_help:
    print(help_text())
    return 0
  from maskrcnn_jax.habana import command as seed_command

  return command_line.run(
    _PROGRAM, lambda: seed_command.run(command), command.debug
  )


def parse(argv: Sequence[str]) -> Command:
  """Reads a command line.

  Args:
    argv: without the name of the program.

  Raises:
    ValueError: a flag or a value is unknown; says what was meant.
  """
  rows = absl_flags.FlagValues()
  for flag in FLAGS:
    if flag.choices:
      absl_flags.DEFINE_enum(
        flag.name, flag.default, flag.choices, flag.words, flag_values=rows
      )
    else:
      define = _DEFINERS[flag.kind]
      define(flag.name, flag.default, flag.words, flag_values=rows)
  absl_flags.DEFINE_boolean('help', False, '', flag_values=rows)
  absl_flags.DEFINE_boolean('debug', False, '', flag_values=rows)
  overrides, rest = command_line.split_overrides(argv)
  try:
    positional = rows([_PROGRAM, *rest])[1:]
  except absl_flags.Error as error:
    raise UserError(f'{error} --help lists the flags.') from error
  if positional:
    raise UserError(
      f'{positional[0]!r} is no flag; flags have the form --name=value.'
    )
  return Command(
    values={flag.name: rows[flag.name].value for flag in FLAGS},
    given=frozenset(flag.name for flag in FLAGS if rows[flag.name].present),
    overrides=overrides,
    wants_help=rows.help,
    debug=rows.debug,
  )


def help_text() -> str:
  """The flags by group, with their defaults."""
  lines = [
    "The command line of Habana's Mask R-CNN for TensorFlow.",
    'Boolean flags are given as --name or --noname, others as --name=value;',
    '--config.section.field=value changes any field of configs/coco.py.',
    'TF_BF16_CONVERSION=full, basic or 0 in the environment is the precision.',
  ]
  for group in dict.fromkeys(flag.group for flag in FLAGS):
    lines += ['', f'{group}:']
    for flag in FLAGS:
      if flag.group == group:
        words = flag.words or f'instead: {flag.replaced}'
        lines += [
          f'  --{flag.name} (default: {flag.default})',
          f'      {words}',
        ]
  return '\n'.join(lines)


def answers(command: Command) -> list[str]:
  """A line for every given flag that has nothing to do here."""
  return [
    f'--{flag.name} has nothing to do here: {flag.replaced}'
    for flag in FLAGS
    if flag.replaced and flag.name in command.given
  ]
