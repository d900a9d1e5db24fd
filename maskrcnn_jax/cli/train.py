"""Verbs of a run: `train`, `eval` and `train_and_eval`."""

import argparse

from maskrcnn_jax.cli import command_line


def _add_flags(parser: argparse.ArgumentParser) -> None:
  command_line.add_config(parser)
  parser.add_argument(
    '--workdir',
    required=True,
    help='folder of the run: checkpoints, metrics and pictures',
  )


def _add_eval_flags(parser: argparse.ArgumentParser) -> None:
  _add_flags(parser)
  parser.add_argument(
    '--step',
    type=command_line.flag_type(_step, 'a number of steps or best'),
    metavar='STEP',
    help='checkpoint to evaluate: a step, or best for that of '
    'training.keep_best (default: the newest)',
  )
  parser.add_argument(
    '--checkpoint',
    metavar='PATH',
    help='evaluate this instead: a checkpoint of another run, or weights '
    'of a Mask R-CNN by torchvision, Detectron2 or TensorFlow',
  )


def _train(args: argparse.Namespace) -> None:
  config, loop = _start(args)
  loop.train(config, args.workdir)


def _evaluate(args: argparse.Namespace) -> None:
  config, loop = _start(args)
  loop.evaluate(config, args.workdir, args.step, args.checkpoint)


def _train_and_evaluate(args: argparse.Namespace) -> None:
  config, loop = _start(args)
  loop.train_and_evaluate(config, args.workdir)


def _start(args):
  """The config and the loop module, imported once the backend is chosen."""
  from maskrcnn_jax import config as config_lib
  from maskrcnn_jax.distributed import processes

  config = config_lib.load_config(args.config, args.override)
  processes.start(config.runtime)
  from maskrcnn_jax.training import finetuning, loop

  finetuning.complete(config, args.workdir, args.override)
  return config, loop


def _step(text: str) -> int | str:
  return text if text == 'best' else command_line.number(int, 0)(text)


VERBS = (
  command_line.Verb('train', 'train, or resume a run', _add_flags, _train),
  command_line.Verb(
    'eval', 'evaluate a checkpoint of a run', _add_eval_flags, _evaluate
  ),
  command_line.Verb(
    'train_and_eval',
    'train, with evaluations on the way',
    _add_flags,
    _train_and_evaluate,
  ),
)
