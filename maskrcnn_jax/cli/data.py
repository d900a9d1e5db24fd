"""Verbs for data sets: `prepare` and `check`."""

import argparse
import os
from typing import Any

from maskrcnn_jax import files
from maskrcnn_jax.cli import command_line
from maskrcnn_jax.errors import UserError

_HEAD_BYTES = 4096  # Start of a file in which `check` leaves its mark.


def add_verbs(add_verb) -> None:
  """Adds the verbs, see `main`."""
  prepare = add_verb(
    'prepare', _prepare, 'convert images and annotations to record files'
  )
  check = add_verb('check', _check, 'find errors in a data set')
  command_line.add_config(check, required=False)
  for parser in (prepare, check):
    add_labels(parser)
  add_drop_outside(prepare)
  add_validation(check)
  # fmt: off
  add = prepare.add_argument
  add('--to', metavar='NAME', default='records',
      help='records (default); or labels of another format: coco, a json; '
      'labelme or yolo, a folder')
  add('--output', required=True,
      help='record files to write, such as records/train-*.tfrecord; the json '
      'or the folder for --to')
  add('--captions', help='COCO json of captions')
  add('--image_ids', type=command_line.COUNTS, metavar='ID,ID,...',
      help='convert only these images')
  add('--num_shards', type=int, help='number of record files')
  add = check.add_argument
  add('--html', metavar='FILE',
      help='page to write: findings, statistics, pictures of samples and of '
      'findings; with --config also of the batches that training would see')
  add('--json', metavar='FILE',
      help='file to write: all findings and statistics')
  # fmt: on


def add_labels(parser: argparse.ArgumentParser, required: bool = True) -> None:
  """Adds the flags of images and their labels; see `label_options`.

  Args:
    parser: of the verb.
    required: False if the verb does without them.
  """
  add = parser.add_argument
  # fmt: off
  add('--images', required=required, metavar='DIR',
      help='folder of the images')
  add('--annotations', required=required, metavar='PATH',
      help='COCO json, or the file or folder of labels in another format')
  add('--format', metavar='NAME',
      help='auto (default): what the labels look like; coco, cvat_coco, '
      'roboflow, labelme, cvat, label_studio, via, supervisely, voc, '
      'cityscapes, yolo; instance_png: one PNG per image whose values number '
      'the objects; object_png: one folder per image with one mask per object')
  add('--classes', metavar='NAME,NAME,...',
      help='class names, or a file that lists them; for formats other than '
      'coco')
  add('--num_workers', type=command_line.POSITIVE, metavar='N',
      help='number of worker processes')
  add('--allow_outside', action='store_true',
      help='read images that the json names outside of the folder')
  add('--allow_empty_classes', action='store_true',
      help='a category of a COCO json may have no object to learn from, as in '
      'a part of a larger set; prepare also allows it where --output is called '
      'val or test')
  # fmt: on
  command_line.add_max_pixels(parser)
  command_line.add_image_options(parser)


def add_drop_outside(parser: argparse.ArgumentParser) -> None:
  """Adds `--drop_outside`, see `prepare.prepare`."""
  words = (
    'skip objects whose box ends outside the image, as the reference converter '
    'does; by default such a box is clipped'
  )
  parser.add_argument('--drop_outside', action='store_true', help=words)


def add_validation(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of validation images and their labels."""
  add = parser.add_argument
  # fmt: off
  add('--val_annotations', metavar='PATH',
      help='labels of the validation set, like --annotations')
  add('--val_images', metavar='DIR',
      help='folder of the validation images (default: that of --images)')
  # fmt: on


def check_validation(args: argparse.Namespace) -> None:
  """Raises if validation images are given without labels."""
  if args.val_images and not args.val_annotations:
    message = '--val_images needs --val_annotations.'
    raise UserError(message, argument='--val_images')


def label_options(args: argparse.Namespace) -> dict[str, Any]:
  """Keyword arguments for the flags of `add_labels`, but the paths."""
  return command_line.given(
    args,
    *('num_workers', 'classes', 'allow_outside', 'exif', 'value_range'),
    'allow_empty_classes',
    data_format='format',
  )


def _prepare(args: argparse.Namespace) -> None:
  from maskrcnn_jax.datasets import prepare
  from maskrcnn_jax.datasets.formats import writers

  command_line.set_max_pixels(args)
  paths = args.images, args.annotations, args.output
  options = label_options(args) | command_line.given(
    *(args, 'num_shards', 'image_ids', 'drop_outside'), captions_file='captions'
  )
  if args.to == 'records':
    command_line.require_training(args)
    print(prepare.prepare(*paths, **options))
    return
  shared = {'num_workers', 'classes', 'data_format'}
  for name in options.keys() - shared:
    if options[name]:
      flag = f'--{name.removesuffix("_file")}'
      raise UserError(f'{flag} is for --to records only.', argument=flag)
  options = {name: options[name] for name in options.keys() & shared}
  print(writers.write(*paths, args.to, **options))


def _check(args: argparse.Namespace) -> int:
  """Runs `check`; returns 1 if the data has errors."""
  command_line.require_training(args)
  check_validation(args)
  if args.override and not args.config:
    message = f'--config.{args.override[0]} needs --config.'
    raise UserError(message, argument='--config')
  _check_output('--html', args.html)
  _check_output('--json', args.json)
  config = None
  if args.config:
    from maskrcnn_jax import config as config_lib

    config = config_lib.load_config(args.config, args.override)
    args.max_pixels = args.max_pixels or config.input.get('max_pixels')
  command_line.set_max_pixels(args)
  from maskrcnn_jax.datasets.doctor import check, report

  val = None
  if args.val_annotations:
    val = args.val_images or args.images, args.val_annotations
  data = args.images, args.annotations
  found = check.check(data, val, config, **label_options(args))
  print(report.to_text(found))
  if args.json:
    files.write_text(args.json, report.to_json(found))
  if args.html:
    files.write_text(args.html, _page(found, config))
    print(f'open {args.html}')
  elif config is not None:
    print('--html FILE shows the batches that training would see.')
  return int(found.count('error') > 0)


def _check_output(flag: str, path: str | None) -> None:
  """Refuses to replace a file that `check` did not write."""
  from maskrcnn_jax.datasets.doctor import report

  if path is None or not os.path.exists(path):
    return
  if os.path.isdir(path):
    raise UserError(
      f'{flag} {path} is a folder; name a file.', argument=flag, path=path
    )
  with open(path, 'rb') as file:
    if report.MADE_BY.encode() not in file.read(_HEAD_BYTES):
      raise UserError(
        f'{flag} {path} exists and was not written by check; move it away or '
        'name another file.',
        argument=flag,
        path=path,
      )


def _page(found, config) -> str:
  from maskrcnn_jax.datasets.doctor import page

  drawn = {'Findings': [*page.draw_findings(found)]}
  pattern = None if config is None else config.input.get('file_pattern')
  has_records = pattern and not any(
    each.kind == 'no_records' and each.file == str(pattern)
    for each in found.findings
  )
  if has_records:
    names = found.splits[0].dataset.class_names
    drawn['Training batches'] = [*page.draw_batches(config, names)]
  for split in found.splits:
    drawn[f'Samples of {split.name}'] = [*page.draw_samples(split)]
  return page.make_page(found, drawn)
