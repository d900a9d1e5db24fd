"""Finds and reads the recorded numbers of trusted implementations."""

import json
import os
import pathlib
import re

import numpy as np
import pytest
from PIL import Image


def folder():
  """The folder of recordings: `MASKRCNN_GOLDEN`, or `tests/golden`."""
  default = pathlib.Path(__file__).parents[1] / 'golden'
  return pathlib.Path(os.environ.get('MASKRCNN_GOLDEN') or default)


def files(pattern, source='nvidia_tf2'):
  """Paths of the recordings that fit a pattern, in a stable order.

  Args:
    pattern: a glob such as `06_roialign*.npz`.
    source: the subfolder, `nvidia_tf2` or `torchvision`.
  """
  return sorted((folder() / source).glob(pattern))


def load(path, group=None):
  """Arrays of a recording by name; never unpickles.

  Args:
    path: of the recording.
    group: loads only arrays with a name such as `GROUP/boxes`, as `boxes`.
  """
  start = f'{group}/' if group else ''
  with np.load(path, allow_pickle=False) as archive:
    names = [name for name in archive.files if name.startswith(start)]
    return {name.removeprefix(start): archive[name] for name in names}


def photograph(number):
  """A photograph of COCO; skips the test if `MASKRCNN_TEST_DATA` lacks it."""
  photos = pathlib.Path(os.environ.get('MASKRCNN_TEST_DATA', 'missing'))
  found = sorted(photos.glob(f'coco-mini/*2017/{number:012d}.jpg'))
  if not found:
    pytest.skip(f'MASKRCNN_TEST_DATA has no photograph {number}.')
  return Image.open(found[0]).convert('RGB')


def each(pattern, source='nvidia_tf2', group=None, having=''):
  """Mark: runs a test on every recording, as its argument `recorded`.

  Args:
    pattern: see `files`.
    source: see `files`.
    group: regular expression; runs the test on every group of arrays whose name
      it matches instead, see `load`.
    having: array without which a recording is skipped.
  """
  params = []
  for path in files(pattern, source):
    with np.load(path, allow_pickle=False) as archive:
      names = archive.files
    if group is None:
      if having in ('', *names):
        params.append(pytest.param((path,), id=path.stem))
      continue
    for name in sorted({name.split('/')[0] for name in names}):
      if re.fullmatch(group, name):
        params.append(pytest.param((path, name), id=f'{path.stem}-{name}'))
  return pytest.mark.parametrize('recorded', params, indirect=True)


def params(recorded):
  """The parameters of a recording, from its description."""
  return json.loads(str(recorded['meta']))['params']


def numbers(recorded, pattern):
  """The numbers N of arrays with a name such as `feat_N`, in order.

  Args:
    recorded: arrays by name.
    pattern: a regular expression with one group, of the whole name.
  """
  matches = (re.fullmatch(pattern, name) for name in recorded)
  return sorted({int(match[1]) for match in matches if match})


def levels(recorded):
  """The pyramid levels of a recording, from its description."""
  given = params(recorded)
  if 'min_level' in given:
    return range(given['min_level'], given['max_level'] + 1)
  for text in given.values():
    match = re.search(r'\b(\d)-(\d)$', text) if isinstance(text, str) else None
    if match:
      return range(int(match[1]), int(match[2]) + 1)
  return range(2, 7)


def relative_error(actual, expected):
  """Largest difference, as a share of the largest expected magnitude."""
  actual = np.asarray(actual, np.float64)
  expected = np.asarray(expected, np.float64)
  if actual.shape != expected.shape:
    raise ValueError(f'Shapes differ: {actual.shape} and {expected.shape}.')
  largest = max(float(np.max(np.abs(expected), initial=0.0)), 1e-30)
  return float(np.max(np.abs(actual - expected), initial=0.0)) / largest


def assert_near(actual, expected, tolerance, name=''):
  """Fails where `relative_error` is above the tolerance."""
  error = relative_error(actual, expected)
  assert error <= tolerance, f'{name} is off by {error:.2g}'


def swap_axes(boxes):
  """Boxes or deltas (x, y, x, y) as (y, x, y, x), or back."""
  return boxes[..., [1, 0, 3, 2]]
