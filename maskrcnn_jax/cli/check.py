"""Flags of the verb `check`; what is heavy is imported when it runs."""

import argparse
import os
import pathlib

from maskrcnn_jax.errors import UserError

_READ = 4096  # Bytes at the start of a file that tell who made it.


def add_flags(verb: argparse.ArgumentParser) -> None:
  """Adds the flags of the verb, but for those of the config."""
  verb.add_argument('--images', required=True, help='folder of the images')
  verb.add_argument('--annotations', required=True, help='COCO json')
  verb.add_argument(
    '--val_annotations',
    metavar='FILE',
    help='COCO json to evaluate with: what does not fit the other is found',
  )
  verb.add_argument(
    '--val_images', metavar='DIR', help='its images; default: those of --images'
  )
  verb.add_argument(
    '--html',
    metavar='FILE',
    help='page to write: findings, numbers, pictures of samples and of what '
    'was found; with --config also of what the training step is fed',
  )
  verb.add_argument(
    '--json', metavar='FILE', help='file to write: all findings and numbers'
  )
  verb.add_argument('--num_workers', type=int, help='processes to use')


def run(args: argparse.Namespace) -> int:
  """Runs the verb; 1 if there are errors in the data, else 0."""
  if args.val_images and not args.val_annotations:
    raise UserError('--val_images is nothing without --val_annotations.')
  if args.override and not args.config:
    raise UserError(f'--config.{args.override[0]} needs --config.')
  if args.num_workers is not None and args.num_workers < 1:
    raise UserError(f'--num_workers must be 1 or more, got {args.num_workers}.')
  for flag, path in (('--html', args.html), ('--json', args.json)):
    check_output(flag, path)
  config = None
  if args.config:
    from maskrcnn_jax import config as config_lib

    config = config_lib.load_config(args.config, args.override)
  from maskrcnn_jax.datasets.doctor import check, report

  val = None
  if args.val_annotations:
    val = args.val_images or args.images, args.val_annotations
  found = check.check(
    (args.images, args.annotations), val, config, args.num_workers
  )
  print(report.to_text(found))
  if args.json:
    _write(args.json, report.to_json(found))
  if args.html:
    _write(args.html, _make_page(found, config))
    print(f'open {args.html}')
  elif config is not None:
    print('--html FILE shows what the training step is fed.')
  return int(found.count('error') > 0)


def check_output(flag: str, path: str | None) -> None:
  """Raises if a file to write is there and was not written by `check`."""
  from maskrcnn_jax.datasets.doctor import report

  if path is None or not os.path.exists(path):
    return
  if os.path.isdir(path):
    raise IsADirectoryError(f'{flag} {path} is a folder, wanted a file.')
  with open(path, 'rb') as file:
    if report.MADE_BY.encode() not in file.read(_READ):
      raise FileExistsError(
        f'{flag} {path} is there and was not made by check: move it away or '
        'choose another name.'
      )


def _make_page(found, config) -> str:
  from maskrcnn_jax.datasets.doctor import page, pictures

  drawn = {'What was found': [*pictures.draw_findings(found)]}
  pattern = None if config is None else config.input.get('file_pattern')
  can_be_fed = pattern and not any(
    each.kind == 'no_records' and each.file == str(pattern)
    for each in found.findings
  )
  if can_be_fed:
    names = found.splits[0].dataset.class_names
    drawn['What the training step is fed'] = [*pictures.draw_fed(config, names)]
  for split in found.splits:
    drawn[f'Samples of {split.name}'] = [*pictures.draw_samples(split)]
  return page.make_page(found, drawn)


def _write(path: str, text: str) -> None:
  """Writes a file; a reader never sees half of it."""
  target = pathlib.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  unfinished = target.with_name(f'.{target.name}.unfinished')
  unfinished.write_text(text, encoding='utf-8')
  unfinished.replace(target)
