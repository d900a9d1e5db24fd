"""Flags of the verb `prepare`; what is heavy is imported when it runs."""

import argparse

from maskrcnn_jax.cli import command_line


def add_flags(verb: argparse.ArgumentParser) -> None:
  """Adds the flags of the verb."""
  verb.add_argument('--images', required=True, help='folder of the images')
  verb.add_argument(
    '--annotations',
    required=True,
    help='COCO json; of other formats the folder of PNG or text files',
  )
  verb.add_argument(
    '--format',
    default='coco',
    metavar='NAME',
    help='coco; instance_png: a PNG for every image, of the numbers of its '
    'objects; object_png: a folder for every image, a PNG for every object; '
    'yolo: polygons in text files',
  )
  verb.add_argument(
    '--classes',
    metavar='NAME,NAME,...',
    help='of formats other than coco; or a file that lists them',
  )
  verb.add_argument(
    '--output', required=True, help='such as records/train-*.tfrecord'
  )
  verb.add_argument('--captions', help='COCO json of captions')
  verb.add_argument(
    '--image_ids',
    type=command_line.whole_numbers,
    metavar='ID,ID,...',
    help='take these images only',
  )
  verb.add_argument('--num_shards', type=int, help='record files to write')
  verb.add_argument('--num_workers', type=int, help='processes to use')


def run(args: argparse.Namespace) -> None:
  """Runs the verb."""
  from maskrcnn_jax.datasets import prepare

  summary = prepare.prepare(
    args.images,
    args.annotations,
    args.output,
    args.num_shards,
    args.num_workers,
    args.captions,
    args.image_ids,
    args.format,
    args.classes,
  )
  print(summary)
