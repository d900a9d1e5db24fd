"""Command that makes the shapes data set.

  python data/shapes/shapes.py --output DIR

DIR becomes a TFDS directory with the splits `train` and `val`, and holds
`annotations_val.json` for pycocotools. Nothing is downloaded.
"""

import argparse
import json
import os
import pathlib
import shutil
import sys
import tempfile


def main(arguments=None):
  """Runs the command; returns its exit status."""
  options = _parse(arguments)
  # Keep TensorFlow from printing about CPU features and missing GPUs.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  splits = {
    'train': (options.seed, options.train),
    'val': (options.seed + 1, options.val),
  }
  if options.output.exists():
    if _made_splits(options.output) == splits:
      print(f'{options.output} holds these pictures already.')
      return 0
    print(
      f'--output {options.output} exists and is not this data set: name a new '
      'folder or remove it.',
      file=sys.stderr,
    )
    return 1
  _make(options.output, splits, options.workers)
  print(f'Wrote {options.train} + {options.val} pictures to {options.output}.')
  return 0


def _parse(arguments):
  parser = argparse.ArgumentParser(description=__doc__)
  add = parser.add_argument
  add('--output', type=pathlib.Path, required=True, help='folder to make')
  add('--train', type=_positive, default=8000, help='training pictures')
  add('--val', type=_positive, default=500, help='validation pictures')
  add(
    '--seed',
    type=int,
    default=0,
    help='random seed of train; val: + 1',
  )
  add('--workers', type=_positive, default=os.cpu_count(), help='processes')
  return parser.parse_args(arguments)


def _positive(text):
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f'must be 1 or more, got {number}.')
  return number


def _made_splits(folder):
  """(seed, number of pictures) by split of a folder made before, or None."""
  try:
    metadata = json.loads((folder / 'metadata.json').read_text())
    return {name: tuple(made) for name, made in metadata['splits'].items()}
  except (OSError, ValueError, KeyError, AttributeError, TypeError):
    return None


def _make(output, splits, num_workers):
  import examples  # Slow to import: `--help` should not wait for these.
  import shapes_dataset_builder

  output.parent.mkdir(parents=True, exist_ok=True)
  # Built beside the output and renamed, so that the output is whole or absent.
  with tempfile.TemporaryDirectory(dir=output.parent) as unfinished:
    builder = shapes_dataset_builder.Builder(
      splits=splits, num_workers=num_workers, data_dir=unfinished
    )
    builder.download_and_prepare()
    made = pathlib.Path(builder.data_dir)
    annotations = examples.coco_annotations(*splits['val'])
    (made / 'annotations_val.json').write_text(json.dumps(annotations))
    shutil.move(made, output)


if __name__ == '__main__':
  sys.exit(main())
