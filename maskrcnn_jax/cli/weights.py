"""Verbs for weights of other programs: `import_weights`, `export_weights`."""

import argparse

from maskrcnn_jax.cli import command_line


def add_verbs(add_verb) -> None:
  """Adds the verbs, see `main`."""
  # fmt: off
  parser = add_verb('import_weights', _import,
                    'convert weights of other programs to a checkpoint')
  command_line.add_config(
    parser, required=False, note=' (default: chosen from the weights)')
  add = parser.add_argument
  add('--source', required=True, metavar='FILE',
      help='a .pth, .pkl, .npz or .safetensors by torchvision, timm or '
      'Detectron2, or the prefix of a TensorFlow checkpoint')
  add('--output', required=True, metavar='DIR', help='workdir to create')
  parser = add_verb('export_weights', _export,
                    "convert a checkpoint to torchvision's weights")
  add = parser.add_argument
  add('--checkpoint', required=True, metavar='PATH',
      help='a workdir, or one checkpoint of it')
  add('--output', required=True, metavar='FILE',
      help='.pth, .safetensors or .npz to create')
  # fmt: on


def _import(args: argparse.Namespace) -> None:
  from maskrcnn_jax.weights import external

  external.read(args.source)  # Refuses other files before JAX is loaded.
  _use_the_cpu()
  from maskrcnn_jax.training.pretrained import import_weights

  print(import_weights(args.source, args.output, args.config, args.override))


def _export(args: argparse.Namespace) -> None:
  _use_the_cpu()
  from maskrcnn_jax.export import state_dict

  print(state_dict.export_weights(args.checkpoint, args.output))


def _use_the_cpu():
  """Selects the CPU; converting weights needs no accelerator."""
  from maskrcnn_jax.distributed import backends

  backends.pick_backend('cpu')
