"""The verb `predict`: detections in image files."""

import argparse
import contextlib

from maskrcnn_jax.cli import command_line, export
from maskrcnn_jax.errors import UserError

_M_ARENA_MAX = -8  # Of glibc's malloc.h.
# Scales of --tta without a value.
TTA_SCALES = (0.8, 1.0, 1.25)


def add_verbs(add_verb) -> None:
  """Adds the verb, see `main`."""
  parser = add_verb('predict', _run, 'detect objects in image files')
  export.add_source(parser)
  scales = command_line.flag_type(
    command_line.list_of(command_line.number(float, 0.1, 4)),
    'numbers from 0.1 to 4 such as 0.8,1,1.25',
  )
  score = command_line.flag_type(_score, 'a number from 0 to 1, or auto')
  add = parser.add_argument
  # fmt: off
  add('--images', required=True, nargs='+', metavar='PATH',
      help='files, folders (searched recursively), patterns like '
      "'photos/*.jpg'; or videos")
  add('--output', required=True, metavar='DIR',
      help='folder for detections.json (COCO results), images.json (their '
      'image ids), pictures/NAME.png and index.html')
  add('--annotations', metavar='FILE',
      help='COCO json with the image ids, by file name (default: images are '
      'numbered from 1)')
  add('--min_score', type=score, metavar='SCORE',
      help='smallest score of a drawn detection (default: 0.5); auto: the '
      'recommended one of its class, of the evaluation of this checkpoint; '
      'detections.json has all, with --tile those from 0.05')
  add('--save', type=command_line.NAMES, metavar='KIND,...',
      help='further files of the drawn detections: crops and masks, as PNG; '
      'coco (labels.json), labelme and yolo, to correct and to train on; of '
      'a video: mots and youtube_vis, with --track')
  add('--every', type=command_line.POSITIVE, metavar='N',
      help='of a video, or of images as its frames, detect in every Nth')
  add('--track', nargs='?', const='boxes', metavar='OVERLAP',
      choices=['boxes', 'masks'],
      help='follow the objects of a video, or of images as its frames, by the '
      'overlap of their boxes (default) or masks: tracks.json and colors that '
      'stay; --min_score (default: 0.6) is the high score of ByteTrack')
  add('--nms', metavar='KIND',
      help='of overlapping detections the best one is kept: class, by boxes '
      'within each class; all, by boxes whatever the class; mask, by masks '
      'within each class (default: that of the run)')
  add('--iou_threshold', type=command_line.FRACTION, metavar='IOU',
      help='of boxes, or masks, that count as overlapping (default: that of '
      'the run)')
  add('--max_detections', type=command_line.POSITIVE, metavar='N',
      help='detections per image, or tile (default: that of the run)')
  add('--score_threshold', type=command_line.FRACTION, metavar='SCORE',
      help='score that any detection must exceed, in detections.json too '
      '(default: that of the run)')
  add('--batch_size', type=command_line.POSITIVE, default=4, metavar='N',
      help='images per batch (default: %(default)s)')
  add('--tile', nargs='?', type=command_line.POSITIVE, const=0, metavar='SIDE',
      help='cut large images into overlapping tiles of SIDE pixels (without '
      'SIDE: as large as the input of the model)')
  add('--tile_overlap', type=command_line.FRACTION, metavar='FRACTION',
      help='overlap of neighbouring tiles (default: 0.25); larger objects are '
      'found in the image at half, a quarter, ... of its size')
  add('--tile_levels', type=command_line.COUNT, metavar='N',
      help='halve the image at most N times (default: until it fits one tile)')
  command_line.add_max_pixels(parser)
  command_line.add_image_options(parser)
  add('--tta', nargs='?', type=scales, const=TTA_SCALES, metavar='SCALE,...',
      help='test-time augmentation: mirrored, and at these scales (without '
      f'SCALE: {",".join(f"{scale:g}" for scale in TTA_SCALES)})')
  add('--strict', action='store_true',
      help='exit with an error if any file could not be read')
  add('--compilation_cache', metavar='DIR',
      help="folder of compiled programs, '' for none (default: "
      '~/.cache/maskrcnn_jax/xla)')
  # fmt: on


def _score(text: str) -> float | str:
  return text if text == 'auto' else command_line.number(float, 0, 1)(text)


def _run(args: argparse.Namespace) -> None:
  import ctypes

  from maskrcnn_jax.distributed import backends
  from maskrcnn_jax.inference import clips, predict, predict_video

  with contextlib.suppress(AttributeError, OSError):
    # One heap of glibc for all threads, which start later: in a heap for each,
    # freed memory is lost in pieces, 30 kB an image.
    ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
  command_line.set_max_pixels(args)
  backends.pick_backend('auto')
  options = command_line.given(
    args, 'min_score', 'compilation_cache', 'exif', 'value_range', 'save'
  )
  options['detections'] = command_line.given(
    args, 'nms', 'iou_threshold', 'max_detections', 'score_threshold'
  )
  of_video = command_line.given(args, 'every', 'track')
  is_video = of_video or any(map(clips.is_video, args.images))
  if is_video and args.annotations is not None:
    raise UserError(
      '--annotations are of images, not of the frames of a video.',
      argument='--annotations',
    )
  if is_video:
    verb, options = predict_video.predict, options | of_video
  else:
    verb = predict.predict
    options |= command_line.given(args, 'annotations')
    options['strict'] = args.strict
  verb(
    args.workdir or args.checkpoint,
    args.images,
    args.output,
    batch_size=args.batch_size,
    tile=_tile(args),
    scales=args.tta or (1.0,),
    mirror=args.tta is not None,
    **options,
  )


def _tile(args):
  """The `TileOptions`, or None."""
  from maskrcnn_jax.inference import views

  options = command_line.given(
    args, overlap='tile_overlap', levels='tile_levels'
  )
  if args.tile is not None:
    return views.TileOptions(size=args.tile or None, **options)
  if options:
    flag = f'--tile_{next(iter(options))}'
    raise UserError(f'{flag} needs --tile.', argument=flag)
  return None
