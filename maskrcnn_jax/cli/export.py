"""Flags of the verb `export`; what is heavy is imported when it runs."""

import argparse
import re

PLATFORMS = ('cpu', 'cuda', 'tpu')


def add_flags(verb: argparse.ArgumentParser) -> None:
  """Adds the flags to the verb's parser."""
  source = verb.add_mutually_exclusive_group(required=True)
  source.add_argument(
    '--workdir', metavar='DIR', help='of a run: its newest checkpoint is used'
  )
  source.add_argument(
    '--checkpoint',
    metavar='PATH',
    help='one checkpoint, as WORKDIR/checkpoints/STEP',
  )
  verb.add_argument(
    '--output',
    required=True,
    metavar='DIR',
    help='folder to be made, for programs, weights.npz, export.json, detect.py',
  )
  verb.add_argument(
    '--canvas',
    type=_canvases,
    metavar='HEIGHTxWIDTH,...',
    help='sizes of the input in pixels, one program each (those of the run)',
  )
  verb.add_argument(
    '--batch_size',
    type=_batch_size,
    metavar='N',
    help='images of a call, or any (any)',
  )
  verb.add_argument(
    '--platforms',
    type=_words,
    default=PLATFORMS,
    metavar='NAME,...',
    help='where the programs run: cpu, cuda, rocm, tpu '
    f'({",".join(PLATFORMS)})',
  )
  verb.add_argument(
    '--image_dtype',
    metavar='NAME',
    help='of the images: uint8 or float32, 0..255 in both (that of the run)',
  )
  verb.add_argument(
    '--format',
    type=_words,
    default=('stablehlo',),
    metavar='NAME,...',
    help='stablehlo, for jax, saved_model, for TensorFlow, or both (stablehlo)',
  )


def run(args: argparse.Namespace) -> None:
  """Runs the verb."""
  import logging

  from maskrcnn_jax.distributed import backends

  # Nothing is computed, and a program for others is lowered anywhere.
  backends.pick_backend('cpu')
  # It would tell where it writes before the folder has its name.
  logging.getLogger('tensorflow').setLevel(logging.WARNING)
  from maskrcnn_jax.export import exporter, options

  chosen = options.ExportOptions(
    canvases=args.canvas,
    batch_size=args.batch_size,
    platforms=args.platforms,
    image_dtype=args.image_dtype,
    formats=args.format,
  )
  print(exporter.export(args.workdir or args.checkpoint, args.output, chosen))


def _canvases(text: str) -> tuple[tuple[int, int], ...]:
  if not re.fullmatch(r'\d+x\d+(,\d+x\d+)*', text):
    raise argparse.ArgumentTypeError(
      f'must be sizes such as 832x1344,1344x832, got {text!r}.'
    )
  return tuple(
    tuple(int(side) for side in word.split('x')) for word in text.split(',')
  )


def _batch_size(text: str) -> int | None:
  if text == 'any':
    return None
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(
      f'must be a whole number of 1 or more, or any, got {text!r}.'
    )
  return int(text)


def _words(text: str) -> tuple[str, ...]:
  return tuple(text.split(','))
