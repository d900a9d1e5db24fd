"""Verbs for weights: `weights`, `import_weights`, `export_weights`."""

import argparse

from maskrcnn_jax.cli import command_line


def add_verbs(add_verb) -> None:
  """Adds the verbs, see `main`."""
  # fmt: off
  parser = add_verb('weights', _weights, 'list public weights, download some')
  parser.add_argument(
    '--download', metavar='NAME',
    help='download these into the cache and print the path of the file')
  parser = add_verb('import_weights', _import,
                    'convert weights of other programs to a checkpoint')
  command_line.add_config(
    parser, required=False, note=' (default: chosen from the weights)')
  add = parser.add_argument
  add('--source', required=True, metavar='FILE',
      help='a .pth, .pkl, .npz or .safetensors by torchvision, timm or '
      'Detectron2, a name such as torchvision/maskrcnn_resnet50_fpn_coco, or '
      'the prefix of a TensorFlow checkpoint')
  add('--output', required=True, metavar='DIR', help='workdir to create')
  parser = add_verb('export_weights', _export,
                    "convert a checkpoint to torchvision's weights")
  add = parser.add_argument
  add('--checkpoint', required=True, metavar='PATH',
      help='a workdir, or one checkpoint of it')
  add('--output', required=True, metavar='FILE',
      help='.pth, .safetensors or .npz to create')
  # fmt: on


def _weights(args: argparse.Namespace) -> None:
  from maskrcnn_jax import tables
  from maskrcnn_jax.weights import download, published

  if args.download:
    print(download.local(args.download))
    return
  print(
    tables.table(
      [
        {
          'name': weights.name,
          'MB': tables.number(weights.megabytes),
          'box / mask AP': weights.score or '-',
          'licence': weights.licence or 'not stated',
          'checksum': _checksum(weights),
          'cached': 'yes' if download.cached(weights).is_file() else '',
        }
        for weights in published.TABLE.values()
      ]
    )
  )
  print(
    'AP on COCO val2017 and top-1 on ImageNet as published. The first digits '
    'of a checksum are compared where they are published. (1): bash '
    f'{published.SCRIPT} downloads these.'
  )


def _checksum(weights) -> str:
  if weights.by_script:
    return '(1)'
  return weights.checksum or 'not known'


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
