"""Flags of the verb `predict`; what is heavy is imported when it runs."""

import argparse

from maskrcnn_jax.errors import UserError

# What --tta means by itself: a quarter larger and as much smaller.
TTA_SCALES = (0.8, 1.0, 1.25)


def add_flags(verb: argparse.ArgumentParser) -> None:
  """Adds the flags to the verb's parser."""
  source = verb.add_mutually_exclusive_group(required=True)
  source.add_argument(
    '--workdir', metavar='DIR', help='of a run: its newest checkpoint is used'
  )
  source.add_argument(
    '--checkpoint',
    metavar='PATH',
    help='one checkpoint, as WORKDIR/checkpoints/STEP, or '
    'WORKDIR/checkpoints/best by training.keep_best',
  )
  verb.add_argument(
    '--images',
    required=True,
    nargs='+',
    metavar='PATH',
    help="files, folders with all below them, patterns such as 'photos/*.jpg'",
  )
  verb.add_argument(
    '--output',
    required=True,
    metavar='DIR',
    help='detections.json (COCO results), images.json (what the ids are), '
    'pictures/NAME.png and index.html to browse them',
  )
  verb.add_argument(
    '--annotations',
    metavar='FILE',
    help='COCO json whose image ids the results get, by file name; by default '
    'images are numbered from 1',
  )
  verb.add_argument(
    '--min_score',
    type=_share,
    default=0.5,
    metavar='SCORE',
    help='detections below are not drawn (%(default)s); detections.json has '
    'all, of tiles those from 0.05',
  )
  verb.add_argument(
    '--batch_size',
    type=_positive,
    default=4,
    metavar='N',
    help='images that are detected together (%(default)s)',
  )
  verb.add_argument(
    '--tile',
    nargs='?',
    type=_positive,
    const=0,
    metavar='SIDE',
    help='cut large images into overlapping tiles of so many pixels; without '
    'SIDE: of as many as the model takes',
  )
  verb.add_argument(
    '--tile_overlap',
    type=_share,
    metavar='SHARE',
    help='of neighbouring tiles (0.25): an object is seen whole up to a little '
    'less, longer ones in the image halved, quartered and so on',
  )
  verb.add_argument(
    '--tile_levels',
    type=_number,
    metavar='N',
    help='halve the image at most so often, not until it fits into one tile',
  )
  verb.add_argument(
    '--tta',
    nargs='?',
    type=_scales,
    const=TTA_SCALES,
    metavar='SCALE,...',
    help='see every image also mirrored and at other sizes, by default '
    f'{",".join(f"{scale:g}" for scale in TTA_SCALES)}',
  )
  verb.add_argument(
    '--strict',
    action='store_true',
    help='fail in the end if a file could not be read',
  )
  verb.add_argument(
    '--compilation_cache',
    metavar='DIR',
    help='where compiled programs are kept, for a faster next start; none for '
    'an empty text (~/.cache/maskrcnn_jax/xla)',
  )


def run(args: argparse.Namespace) -> None:
  """Runs the verb."""
  import warnings

  from PIL import Image

  from maskrcnn_jax.distributed import backends, processes
  from maskrcnn_jax.inference import image_files, predict, tiling

  # Pillow takes the images that --tile is for to be an attack, and complains
  # about odd EXIF blocks.
  Image.MAX_IMAGE_PIXELS = image_files.MOST_PIXELS
  warnings.filterwarnings('ignore', module='PIL')
  backends.pick_backend('auto')
  tile = None
  given = {'overlap': args.tile_overlap, 'levels': args.tile_levels}
  given = {name: value for name, value in given.items() if value is not None}
  if args.tile is not None:
    tile = tiling.TileOptions(size=args.tile or None, **given)
  elif given:
    raise UserError(f'--tile_{next(iter(given))} is nothing without --tile.')
  if args.compilation_cache is None:
    args.compilation_cache = processes.COMPILATION_CACHE
  predict.predict(
    args.workdir or args.checkpoint,
    args.images,
    args.output,
    annotations=args.annotations,
    min_score=args.min_score,
    strict=args.strict,
    compilation_cache=args.compilation_cache,
    batch_size=args.batch_size,
    tile=tile,
    scales=args.tta or (1.0,),
    mirror=args.tta is not None,
  )


def _share(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = -1.0
  if not 0 <= value <= 1:
    raise argparse.ArgumentTypeError(f'must be 0 to 1, got {text!r}.')
  return value


def _number(text: str, least: int = 0) -> int:
  if not text.isdecimal() or int(text) < least:
    raise argparse.ArgumentTypeError(
      f'must be a whole number of {least} or more, got {text!r}.'
    )
  return int(text)


def _positive(text: str) -> int:
  return _number(text, least=1)


def _scales(text: str) -> tuple[float, ...]:
  try:
    scales = tuple(float(word) for word in text.split(','))
  except ValueError:
    scales = ()
  if not scales or not all(0.1 <= scale <= 4 for scale in scales):
    raise argparse.ArgumentTypeError(
      f'must be numbers from 0.1 to 4 such as 0.8,1,1.25, got {text!r}.'
    )
  return scales
