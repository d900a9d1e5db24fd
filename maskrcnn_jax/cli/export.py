"""The verb `export`: programs that run without this package."""

import argparse

from maskrcnn_jax.cli import command_line


def add_source(parser: argparse.ArgumentParser) -> None:
  """Adds `--workdir` and `--checkpoint`, one of which must be given."""
  add = parser.add_mutually_exclusive_group(required=True).add_argument
  # fmt: off
  add('--workdir', metavar='DIR', help='run whose newest checkpoint is used')
  add('--checkpoint', metavar='PATH',
      help='one checkpoint: WORKDIR/checkpoints/STEP, or '
      'WORKDIR/checkpoints/best with training.keep_best')
  # fmt: on


def add_verbs(add_verb) -> None:
  """Adds the verb, see `main`."""
  parser = add_verb(
    'export',
    _run,
    'write StableHLO, SavedModel or ONNX that run without this package',
  )
  add_source(parser)
  flag_type = command_line.flag_type
  canvases = flag_type(_canvases, 'sizes such as 832x1344,1344x832')
  count = flag_type(_batch_size, 'a whole number of 1 or more, or any')
  add = parser.add_argument
  # fmt: off
  add('--output', required=True, metavar='DIR',
      help='folder to create, with programs, weights.npz, export.json and '
      'detect.py')
  add('--canvas', type=canvases, metavar='HEIGHTxWIDTH,...',
      help='input sizes in pixels, one program each (default: those of the '
      'run)')
  add('--batch_size', type=count, metavar='N',
      help='images per call, or any (default: any)')
  add('--platforms', type=command_line.NAMES, metavar='NAME,...',
      help='some of cpu, cuda, rocm, tpu (default: cpu,cuda,tpu); not for onnx')
  add('--image_dtype', metavar='NAME',
      help='uint8 or float32; values are 0..255 in both (default: that of the '
      'run)')
  add('--format', type=command_line.NAMES, metavar='NAME,...',
      help='some of stablehlo for JAX, saved_model for TensorFlow and onnx for '
      'ONNX Runtime, OpenVINO and others (default: stablehlo)')
  add('--images', type=command_line.NAMES, metavar='PATH,...',
      help='image files or folders that the programs are checked on before the '
      'folder appears (default: drawn images)')
  # fmt: on


def _run(args: argparse.Namespace) -> None:
  import logging

  from maskrcnn_jax.distributed import backends

  # Nothing is computed here, and lowering works on any machine.
  backends.pick_backend('cpu')
  # It logs the temporary name of the folder it writes.
  logging.getLogger('tensorflow').setLevel(logging.WARNING)
  from maskrcnn_jax.export import exporter

  chosen = command_line.given(
    *(args, 'platforms', 'image_dtype', 'images'),
    canvases='canvas',
    formats='format',
  )
  if args.batch_size != 'any':
    chosen |= command_line.given(args, 'batch_size')
  options = exporter.ExportOptions(**chosen)
  print(exporter.export(args.workdir or args.checkpoint, args.output, options))


def _canvases(text: str) -> tuple[tuple[int, int], ...]:
  sides = [word.split('x') for word in text.split(',')]
  return tuple((int(height), int(width)) for height, width in sides)


def _batch_size(text: str) -> int | str:
  return text if text == 'any' else command_line.number(int, 1)(text)
