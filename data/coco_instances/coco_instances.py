"""Command that makes a TFDS directory of COCO 2017 with instance masks.

  python data/coco_instances/coco_instances.py --coco DIR --output DIR

The first DIR is the output of data/download_and_preprocess_coco.sh (stages
download and extract); the second becomes a TFDS directory with the splits
`train` and `val`. `maskrcnn-jax prepare` makes the same records without TFDS.
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
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--coco', type=pathlib.Path, required=True, help='folder of COCO')
  add('--output', type=pathlib.Path, required=True, help='folder to make')
  add('--workers', type=int, help='processes; by default one per core')
  options = parser.parse_args(arguments)
  if options.output.exists():
    if _is_made(options.output):
      print(f'{options.output} holds this data set already.')
      return 0
    print(
      f'--output {options.output} exists and is not this data set: name a new '
      'folder or remove it.',
      file=sys.stderr,
    )
    return 1
  try:
    _make(options)
  except ValueError as error:
    print(error, file=sys.stderr)
    return 1
  return 0


def _is_made(folder):
  """Whether a folder is a finished data set of this name."""
  try:
    info = json.loads((folder / 'dataset_info.json').read_text())
    return info['name'] == 'coco_instances'
  except (OSError, ValueError, KeyError, TypeError):
    return False


def _make(options):
  # Keep TensorFlow from printing about CPU features and missing GPUs.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  import coco_instances_dataset_builder  # Slow to import, unlike `--help`.

  options.output.parent.mkdir(parents=True, exist_ok=True)
  # Built beside the output and renamed, so that the output is whole or absent.
  with tempfile.TemporaryDirectory(dir=options.output.parent) as unfinished:
    builder = coco_instances_dataset_builder.Builder(
      coco=options.coco, num_workers=options.workers, data_dir=unfinished
    )
    builder.download_and_prepare()
    shutil.move(builder.data_dir, options.output)
  counts = ' + '.join(
    str(builder.info.splits[split].num_examples) for split in ('train', 'val')
  )
  print(f'Wrote {counts} pictures to {options.output}.')


if __name__ == '__main__':
  sys.exit(main())
