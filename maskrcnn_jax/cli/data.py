"""Verbs for data sets: `prepare` and `check`."""

import argparse
import os

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
  # fmt: off
  for parser in (prepare, check):
    add = parser.add_argument
    add('--images', required=True, help='folder of the images')
    add('--annotations', required=True,
        help='COCO json, or the file or folder of labels in another format')
    add('--format', metavar='NAME',
        help='auto (default): what the labels look like; coco, cvat_coco, '
        'roboflow, labelme, cvat, label_studio, via, supervisely, voc, '
        'cityscapes, yolo; instance_png: one PNG per image whose values number '
        'the objects; object_png: one folder per image with one mask per '
        'object')
    add('--classes', metavar='NAME,NAME,...',
        help='class names, or a file that lists them; for formats other than '
        'coco')
    add('--num_workers', type=command_line.POSITIVE, metavar='N',
        help='number of worker processes')
    add('--allow_outside', action='store_true',
        help='read images that the json names outside of the folder')
    command_line.add_max_pixels(parser)
    command_line.add_image_options(parser)
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
  add('--drop_outside', action='store_true',
      help='skip objects whose box ends outside the image, as the reference '
      'converter does; by default such a box is clipped')
  add = check.add_argument
  add('--val_annotations', metavar='FILE',
      help='labels of the validation set, compared with the training set')
  add('--val_images', metavar='DIR',
      help='folder of the validation images (default: that of --images)')
  add('--html', metavar='FILE',
      help='page to write: findings, statistics, pictures of samples and of '
      'findings; with --config also of the batches that training would see')
  add('--json', metavar='FILE',
      help='file to write: all findings and statistics')
  # fmt: on


def _prepare(args: argparse.Namespace) -> None:
  from maskrcnn_jax.datasets import prepare
  from maskrcnn_jax.datasets.formats import writers

  command_line.set_max_pixels(args)
  paths = args.images, args.annotations, args.output
  options = command_line.given(
    args, 'num_workers', 'classes', data_format='format'
  )
  for_records = command_line.given(
    args,
    *('num_shards', 'image_ids', 'allow_outside', 'drop_outside'),
    *('exif', 'value_range'),
    captions_file='captions',
  )
  if args.to == 'records':
    print(prepare.prepare(*paths, **options, **for_records))
    return
  if any(for_records.values()):
    flag = '--' + next(x for x in for_records if for_records[x])
    raise UserError(f'{flag} is for --to records only.', argument=flag)
  print(writers.write(*paths, args.to, **options))


def _check(args: argparse.Namespace) -> int:
  """Runs `check`; returns 1 if the data has errors."""
  if args.val_images and not args.val_annotations:
    message = '--val_images needs --val_annotations.'
    raise UserError(message, argument='--val_images')
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
  options = command_line.given(
    args,
    *('num_workers', 'allow_outside', 'classes', 'exif', 'value_range'),
    data_format='format',
  )
  found = check.check((args.images, args.annotations), val, config, **options)
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
