"""Extracts the ResNet-50 backbone of a TensorFlow Mask R-CNN checkpoint.

  python data/extract_backbone.py --checkpoint PREFIX --save_to PREFIX

Copies every variable whose name contains `resnet50`, without the prefix
`resnet50/`. The variables of a SavedModel are such a checkpoint, with the
PREFIX `.../variables/variables`. TensorFlow compares the stored CRC of every
tensor.
"""

import argparse
import os
import pathlib
import sys
import tempfile

import tensorflow as tf

_SCOPE = 'resnet50'
_NORM = ('gamma', 'beta', 'moving_mean', 'moving_variance')
_NUM_CONVOLUTIONS = 53
_BLOCKS = (3, 4, 6, 3)  # In each of the four groups.


def main(arguments=None):
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--checkpoint', required=True, help='to read')
  parser.add_argument('--save_to', required=True, help='to write')
  options = parser.parse_args(arguments)
  try:
    count = extract(options.checkpoint, options.save_to)
  except (ValueError, FileExistsError) as error:
    print(error, file=sys.stderr)
    return 1
  print(f'Wrote {count} tensors to {options.save_to}.')
  return 0


def extract(source: str | os.PathLike, target: str | os.PathLike) -> int:
  """Writes the backbone of a checkpoint, by prefix; returns its tensor count.

  Raises:
    FileExistsError: the target exists.
    ValueError: the source cannot be read or lacks a tensor of the backbone.
  """
  target = pathlib.Path(target)
  index = target.with_name(f'{target.name}.index')
  if index.exists():
    raise FileExistsError(f'{index} exists and is not overwritten.')
  scoped = read_tensors(
    source, [f'{_SCOPE}/{name}' for name in tpu_names()], contains=_SCOPE
  )
  tensors = {name[len(_SCOPE) + 1 :]: scoped[name] for name in sorted(scoped)}
  target.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=target.parent) as unfinished:
    tf.raw_ops.SaveV2(
      prefix=f'{unfinished}/{target.name}',
      tensor_names=list(tensors),
      shape_and_slices=[''] * len(tensors),
      tensors=list(tensors.values()),
    )
    # A checkpoint exists once its index does, so the index moves last.
    for path in sorted(pathlib.Path(unfinished).iterdir()):
      os.replace(path, target.with_name(path.name))
  # With this file the folder may be given instead of the prefix.
  tf.compat.v1.train.update_checkpoint_state(str(target.parent), target.name)
  return len(tensors)


def read_tensors(
  prefix: str | os.PathLike, wanted: list[str], contains: str | None = None
) -> dict:
  """The `wanted` tensors, and all whose name `contains` a text, by name.

  Raises:
    ValueError: the checkpoint is missing, corrupt or lacks a wanted tensor.
  """
  try:
    reader = tf.train.load_checkpoint(str(prefix))
    there = reader.get_variable_to_shape_map()
    missing = [name for name in wanted if name not in there]
    if missing:
      raise ValueError(
        f'{prefix} lacks {len(missing)} of {len(wanted)} tensors of the '
        f'backbone, such as {missing[0]}.'
      )
    names = {*wanted, *(x for x in there if contains and contains in x)}
    return {name: reader.get_tensor(name) for name in names}
  except (tf.errors.OpError, RuntimeError) as error:
    raise ValueError(f'{prefix} is missing or corrupt: {error}') from error


def tpu_names() -> list[str]:
  """Names of the backbone's 265 tensors in Google's TPU checkpoints."""
  suffixes = ['', *(f'_{k}' for k in range(1, _NUM_CONVOLUTIONS))]
  return [f'conv2d{suffix}/kernel' for suffix in suffixes] + [
    f'batch_normalization{suffix}/{part}'
    for suffix in suffixes
    for part in _NORM
  ]


def nvidia_names() -> list[str]:
  """Names of the same tensors in NVIDIA's checkpoint."""
  layers = [f'{_SCOPE}/conv2d']
  for group, count in enumerate(_BLOCKS):
    layers.append(f'{_SCOPE}/btlnck_block_{group}_0/shortcut/conv2d')
    layers += [
      f'{_SCOPE}/btlnck_block_{group}_{block}/bottleneck_{k}'
      for block in range(count)
      for k in (1, 2, 3)
    ]
  parts = ('conv2d/kernel', *(f'BatchNorm/{part}' for part in _NORM))
  return [f'{layer}/{part}' for layer in layers for part in parts]


if __name__ == '__main__':
  sys.exit(main())
