"""Flags of the verbs that train, score, and convert checkpoints.

What is heavy is imported when they run.
"""

import argparse


def add_flags(verb: argparse.ArgumentParser) -> None:
  """Adds the flags of `train` and `train_and_eval`, but for the config's."""
  verb.add_argument(
    '--workdir', required=True, help='checkpoints, metrics and pictures'
  )


def add_eval_flags(verb: argparse.ArgumentParser) -> None:
  """Adds the flags of `eval`, but for those of the config."""
  add_flags(verb)
  verb.add_argument(
    '--step',
    type=_step,
    metavar='STEP',
    help='checkpoint; best: by training.keep_best; default: newest',
  )
  verb.add_argument(
    '--checkpoint',
    metavar='PATH',
    help='evaluate this instead: a checkpoint of another run, or weights '
    'of a Mask R-CNN by torchvision, Detectron2 or TensorFlow',
  )


def add_import_flags(verb: argparse.ArgumentParser) -> None:
  """Adds the flags of `import_weights`, but for those of the config."""
  verb.add_argument(
    '--source',
    required=True,
    metavar='FILE',
    help='a .pth, .pkl, .npz or .safetensors by torchvision, timm or '
    'Detectron2, or the prefix of a TensorFlow checkpoint',
  )
  verb.add_argument(
    '--output', required=True, metavar='DIR', help='workdir to be made'
  )


def add_export_flags(verb: argparse.ArgumentParser) -> None:
  """Adds the flags of `export_weights`."""
  verb.add_argument(
    '--checkpoint',
    required=True,
    metavar='PATH',
    help='a workdir, or one checkpoint of it',
  )
  verb.add_argument(
    '--output',
    required=True,
    metavar='FILE',
    help='to be made: .pth, .safetensors or .npz',
  )


def train(args: argparse.Namespace) -> None:
  """Runs `train`."""
  config, loop = _start(args)
  loop.train(config, args.workdir)


def evaluate(args: argparse.Namespace) -> None:
  """Runs `eval`."""
  config, loop = _start(args)
  loop.evaluate(config, args.workdir, args.step, args.checkpoint)


def train_and_evaluate(args: argparse.Namespace) -> None:
  """Runs `train_and_eval`."""
  config, loop = _start(args)
  loop.train_and_evaluate(config, args.workdir)


def import_weights(args: argparse.Namespace) -> None:
  """Runs `import_weights`."""
  conversion = _on_the_cpu()
  print(
    conversion.import_weights(
      args.source, args.output, args.config, args.override
    )
  )


def export_weights(args: argparse.Namespace) -> None:
  """Runs `export_weights`."""
  print(_on_the_cpu().export_weights(args.checkpoint, args.output))


def _start(args):
  """The config and the loop, once the backend is chosen."""
  from maskrcnn_jax import config as config_lib

  config = config_lib.load_config(args.config, args.override)
  from maskrcnn_jax.distributed import processes as runtime

  runtime.start(config.runtime)
  from maskrcnn_jax.training import finetuning, loop

  finetuning.complete(config, args.workdir, args.override)
  return config, loop


def _on_the_cpu():
  """The module that converts weights, which needs no accelerator."""
  from maskrcnn_jax.distributed import backends

  backends.pick_backend('cpu')
  from maskrcnn_jax.training import conversion

  return conversion


def _step(text: str) -> int | str:
  if text != 'best' and not text.isdecimal():
    raise argparse.ArgumentTypeError(
      f'must be a number of steps or best, got {text!r}.'
    )
  return text if text == 'best' else int(text)
