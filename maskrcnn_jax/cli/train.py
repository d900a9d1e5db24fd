"""Verbs of a run: `train`, `eval` and `train_and_eval`."""

import argparse

from maskrcnn_jax.cli import command_line


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
  from maskrcnn_jax import config as config_lib
  from maskrcnn_jax.distributed import processes

  config = config_lib.load_config(args.config, args.override)
  # Before the loop is imported: it chooses the backend.
  processes.start(config.runtime)
  from maskrcnn_jax.training import finetuning, loop

  finetuning.complete(config, args.workdir, args.override)
  if args.verb == 'eval':
    loop.evaluate(config, args.workdir, args.step, args.checkpoint)
  elif args.verb == 'train':
    loop.train(config, args.workdir)
  else:
    loop.train_and_evaluate(config, args.workdir)
