"""The verb `score`: COCO's numbers of a result file of any program."""

import argparse
import json
import os
import sys

from maskrcnn_jax import files
from maskrcnn_jax.cli import command_line
from maskrcnn_jax.errors import require


def add_verbs(add_verb) -> None:
  """Adds the verb, see `main`."""
  parser = add_verb(
    'score', _run, 'score COCO results of any program against a COCO json'
  )
  # COCO's other limits are 1 and 10.
  limit = command_line.flag_type(
    command_line.number(int, 11), 'a whole number of 11 or more'
  )
  add = parser.add_argument
  # fmt: off
  add('--annotations', required=True, metavar='FILE',
      help='COCO json of the ground truth')
  add('--results', required=True, metavar='FILE',
      help='COCO results: a json list with image_id, category_id, score, and '
      'bbox or segmentation (run lengths or polygons) or both')
  add('--output', metavar='DIR',
      help='folder to make, for metrics.json, classes.md, classes.json and '
      'precision-recall.png')
  add('--max_detections', type=limit, default=100, metavar='N',
      help='the best ones of an image and class that count (default: 100)')
  add('--min_score', type=command_line.FRACTION, default=0.5, metavar='SCORE',
      help='smallest score in the table of confusions (default: 0.5)')
  add('--scorer', metavar='NAME',
      help='pycocotools (default), or hotcoco, which is faster')
  add('--num_workers', type=command_line.COUNT, metavar='N',
      help='number of worker processes (default: one per core up to 8; none '
      'for fewer than 100 images)')
  # fmt: on


def _run(args: argparse.Namespace) -> None:
  from maskrcnn_jax import charts
  from maskrcnn_jax.evaluation import (
    class_report,
    coco_metrics,
    precision_recall,
    result_files,
    scoring,
    workers,
  )

  if args.output and os.path.exists(args.output):
    message = f'--output {args.output} exists: choose another folder.'
    raise FileExistsError(message)
  if args.output:
    require('train', 'matplotlib', purpose='--output', argument='--output')
  options = command_line.given(args, 'scorer')
  scoring.check_scorer(options.get('scorer', scoring.SCORERS[0]))
  found = result_files.read(args.results, args.annotations)
  for note in found.notes:
    print(note, file=sys.stderr)
  num_images = len(found.truth['images'])
  count = args.num_workers
  count = workers.default_count(num_images) if count is None else count
  with workers.Workers(count) as pool:
    metrics, report = coco_metrics.evaluate_classes(
      found.results,
      args.annotations,
      truth=found.truth,
      kinds=found.kinds,
      min_score=args.min_score,
      max_detections=args.max_detections,
      workers=pool,
      **options,
    )
  with_results = len({result['image_id'] for result in found.results})
  print(
    f'{len(found.results)} results in {with_results} of {num_images} images, '
    f'{sum(report.num_objects)} objects'
  )
  if 'segm' not in found.kinds:
    print('Boxes only: the results or the annotations have no masks.')
  print(coco_metrics.format_table(metrics))
  print(class_report.format_classes(report))
  if args.output:
    with files.new_folder(args.output) as folder:
      files.write_text(folder / 'metrics.json', json.dumps(metrics, indent=1))
      title = f'{args.results}, class by class'
      document = class_report.document(report, title)
      files.write_text(folder / 'classes.md', document)
      content = class_report.to_json(report)
      files.write_text(folder / 'classes.json', content)
      figure = precision_recall.chart(report)
      charts.save(figure, folder / 'precision-recall.png')
