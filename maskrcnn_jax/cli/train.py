"""Verbs of a run: `train`, `eval` and `train_and_eval`."""

import argparse
import contextlib
from collections.abc import Iterator

from maskrcnn_jax.cli import command_line, data
from maskrcnn_jax.errors import UserError

# Flags that say nothing without --images.
_OF_IMAGES = (
  *('annotations', 'val_annotations', 'val_images', 'val_share', 'val_seed'),
  *('format', 'classes', 'num_workers', 'allow_outside', 'drop_outside'),
  *('exif', 'value_range', 'allow_empty_classes'),
)

_NO_VALIDATION = (
  'There are no images to evaluate: name some by --val_annotations, hold some '
  'out by --val_share, or train without evaluations by the verb train.'
)


def add_verbs(add_verb) -> None:
  """Adds the verbs, see `main`."""
  for name, words in (
    ('train', 'train, or resume a run'),
    ('eval', 'evaluate a checkpoint of a run'),
    ('train_and_eval', 'train, with evaluations on the way'),
  ):
    parser = add_verb(name, _run, words)
    command_line.add_config(parser)
    words = 'folder of the run: checkpoints, metrics and pictures'
    parser.add_argument('--workdir', required=True, help=words)
    if name == 'eval':
      _add_checkpoint(parser.add_argument)
    else:
      _add_data(parser)


def _add_data(parser) -> None:
  group = parser.add_argument_group(
    'images and labels',
    'Instead of record files: they are prepared once, in WORKDIR/records.',
  )
  data.add_labels(group, required=False)
  data.add_drop_outside(group)
  data.add_validation(group)
  share = command_line.flag_type(
    command_line.number(float, 0, 0.99), 'a number from 0 to 0.99'
  )
  # fmt: off
  group.add_argument(
    '--val_share', type=share, metavar='SHARE',
    help='share of the images to hold out for validation where there is no '
    '--val_annotations (default: 0.2)')
  group.add_argument(
    '--val_seed', type=command_line.COUNT, metavar='N',
    help='seed of the images that are held out (default: 0)')
  # fmt: on


def _add_checkpoint(add) -> None:
  step = command_line.flag_type(_step, 'a number of steps or best')
  # fmt: off
  add('--step', type=step, metavar='STEP',
      help='checkpoint to evaluate: a step, or best for that of '
      'training.keep_best (default: the newest)')
  add('--checkpoint', metavar='PATH',
      help='evaluate this instead: a checkpoint of another run, or weights '
      'of a Mask R-CNN by torchvision, Detectron2 or TensorFlow')
  # fmt: on


def _step(text: str) -> int | str:
  return text if text == 'best' else command_line.number(int, 0)(text)


def _run(args: argparse.Namespace) -> None:
  command_line.require_training(args)
  run_data = None if args.verb == 'eval' else _run_data(args)
  from maskrcnn_jax import config as config_lib
  from maskrcnn_jax.distributed import processes

  config = config_lib.load_config(args.config, args.override)
  if run_data:
    _share_options(config, args)
  # Before the loop is imported: it chooses the backend.
  processes.start(config.runtime)
  from maskrcnn_jax.training import finetuning, loop

  with _offering_images(args):
    finetuning.complete(config, args.workdir, args.override, run_data)
    if args.verb != 'train' and not config.get('evaluation', {}).get(
      'file_pattern', True
    ):
      raise UserError(_NO_VALIDATION, argument='evaluation.file_pattern')
    if args.verb == 'eval':
      loop.evaluate(config, args.workdir, args.step, args.checkpoint)
    elif args.verb == 'train':
      loop.train(config, args.workdir)
    else:
      loop.train_and_evaluate(config, args.workdir)


@contextlib.contextmanager
def _offering_images(args: argparse.Namespace) -> Iterator[None]:
  """Adds to the error of missing record files that images will do."""
  try:
    yield
  except UserError as error:
    if error.argument != 'file_pattern' or args.verb == 'eval' or args.images:
      raise
    raise UserError(
      f'{error} Name record files by --config.input.file_pattern, or images '
      'and labels by --images and --annotations.',
      argument=error.argument,
      given=error.given,
    ) from error


def _run_data(args: argparse.Namespace):
  """The `RunData` that the flags name, or None."""
  if not args.images:
    for name in (*_OF_IMAGES, 'max_pixels'):
      if getattr(args, name) not in (None, False):
        message = f'--{name} is for --images only.'
        raise UserError(message, argument=f'--{name}')
    return None
  if not args.annotations:
    message = '--images needs --annotations, the file or folder of the labels.'
    raise UserError(message, argument='--annotations')
  data.check_validation(args)
  for name in ('val_share', 'val_seed') if args.val_annotations else ():
    if getattr(args, name) is not None:
      message = f'--{name} holds out images only without --val_annotations.'
      raise UserError(message, argument=f'--{name}')
  options = data.label_options(args) | command_line.given(
    args,
    *('drop_outside', 'val_images', 'val_annotations', 'val_share', 'val_seed'),
  )
  if 'evaluation.file_pattern' in command_line.overridden(args):
    options.setdefault('val_share', 0)
  elif args.verb == 'train_and_eval' and args.val_share == 0:
    raise UserError(_NO_VALIDATION, argument='--val_share')
  from maskrcnn_jax.datasets.run_data import RunData

  return RunData(args.images, args.annotations, **options)


def _share_options(config, args) -> None:
  """Sets what holds for `prepare` and for training alike."""
  args.max_pixels = args.max_pixels or config.input.get('max_pixels')
  command_line.set_max_pixels(args)
  with config.unlocked():
    config.input.max_pixels = args.max_pixels
    if args.allow_empty_classes:
      config.training.allow_empty_classes = True
