"""First look at the images of a set, for what only all of them together tell.

* EXIF rotations: after a flip, or of a square photo, the size in the
  annotations does not tell if they mean the stored or the upright picture. Then
  the images decide whose size does tell.
* The value ranges of images of more than 8 bits, see `value_range`.

Only the beginning of most files is read.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from maskrcnn_jax.datasets import (
  coco_files,
  images,
  stored_images,
  value_range,
)
from maskrcnn_jax.datasets.coco_json import CocoDataset
from maskrcnn_jax.datasets.findings import Finding, InvalidEntryError
from maskrcnn_jax.errors import UserError, invalid

UPRIGHT, STORED = 'upright', 'stored'
EXIF = (UPRIGHT, STORED)
_UNCLEAR = 'unclear'
_HEAD = 2**16  # Bytes in which EXIF data begins.
_JPEG, _PNG = b'\xff\xd8', b'\x89PNG'
_WIDE_HEADS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+', b'P5', b'P2', b'Pf')
# Images whose values are read, evenly spaced, to find the value range.
_SAMPLED = 1000
_THREADS = 8
_PART = 64  # Rows that a thread takes at a time.

Row = tuple[str | os.PathLike, tuple[int, int] | None]


@dataclasses.dataclass(frozen=True)
class Survey:
  """Decisions for a set."""

  upright: bool  # Annotations mean the upright image where the size is no help.
  ranges: Mapping[str, value_range.Range]  # By kind, see `value_range`.
  findings: Sequence[Finding]

  def decide(self, images: Iterable[Any], exif: str | None) -> list[Any]:
    """Dataclasses with an `upright`, which is set where it is None.

    Where `exif` is given, it is set in all.
    """
    return [
      dataclasses.replace(image, upright=self.upright)
      if exif or image.upright is None
      else image
      for image in images
    ]


def read(
  rows: Iterable[Row],
  file: str,
  exif: str | None = None,
  wanted: value_range.Range | None = None,
  known: Mapping[str, value_range.Range] | None = None,
) -> Survey:
  """Looks at image files; those that cannot be read are skipped.

  Args:
    rows: path of each image, and (height, width) by the annotations; None if
      its orientation is known.
    file: the annotations, for the findings.
    exif: one of `EXIF`, which decides; None: the set does.
    wanted: value range of all kinds; None: by `value_range.find`.
    known: value ranges of the training set by kind, to use without `wanted`.

  Raises:
    UserError: an argument is wrong.
  """
  check_options(exif, wanted)
  rows = list(rows)
  parts = [rows[i : i + _PART] for i in range(0, len(rows), _PART)]
  # Most of the time is spent waiting.
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    looks = pool.map(lambda part: [_look(row) for row in part], parts)
    looks = list(itertools.chain.from_iterable(looks))
  paths = collections.defaultdict(list)
  for (path, _), (_, kind) in zip(rows, looks):
    paths[kind].append(path)
  paths.pop(None, None)
  ranges = dict(known or {})
  if wanted:
    ranges = dict.fromkeys(value_range.KINDS, wanted)
  for kind in [kind for kind in paths if kind not in ranges]:
    step = -(-len(paths[kind]) // _SAMPLED)
    samples = [_sample(path) for path in paths[kind][::step]]
    ranges[kind] = value_range.find(kind, np.concatenate(samples))
  findings = [
    _range_finding(kind, ranges[kind], some, file, wanted, known)
    for kind, some in paths.items()
  ]
  told = collections.defaultdict(list)
  for (path, _), (rotation, _) in zip(rows, looks):
    told[rotation].append(path)
  upright = exif == UPRIGHT if exif else bool(told[UPRIGHT])
  if told[_UNCLEAR] and not exif:
    if told[UPRIGHT] and told[STORED]:
      upright = False
    findings.append(_rotation_finding(told, upright, file))
  return Survey(upright, ranges, findings)


def check_options(exif: str | None, wanted: value_range.Range | None) -> None:
  """Raises a `UserError` if an argument of `read` is wrong."""
  if exif not in (None, *EXIF):
    raise invalid('exif', exif, ' or '.join(EXIF))
  if wanted is not None and not -np.inf < wanted[0] < wanted[1] < np.inf:
    raise invalid('value_range', wanted, 'two numbers, the lower one first')


def of_dataset(
  dataset: CocoDataset,
  images_dir: str | os.PathLike,
  exif: str | None = None,
  wanted: value_range.Range | None = None,
  allow_outside: bool = False,
  known: Mapping[str, value_range.Range] | None = None,
) -> tuple[CocoDataset, Survey]:
  """The survey of a data set, and the set with `upright` of every image.

  Args:
    dataset: images of which the format says `upright` keep it, unless `exif`
      is given.
    images_dir: folder of the images.
    exif, wanted: see `read`.
    allow_outside: see `coco_files.check_file`.
    known: see `read`.
  """
  rows = []
  for image in dataset.images:
    with contextlib.suppress(InvalidEntryError):
      coco_files.check_file(image, images_dir, allow_outside)
      path = os.path.join(images_dir, image.file_name)
      size = image.height, image.width
      rows.append((path, size if image.upright is None else None))
  survey = read(rows, dataset.annotations_file, exif, wanted, known)
  decided = survey.decide(dataset.images, exif)
  return dataclasses.replace(dataset, images=tuple(decided)), survey


def _look(row) -> tuple[str | None, str | None]:
  """What the size of an image tells of its rotation, and its kind of values."""
  path, size = row
  with contextlib.suppress(UserError, OSError, ValueError):
    if not os.path.isfile(path):  # A pipe would wait.
      return None, None
    with pathlib.Path(path).open('rb') as file:
      head, tail = file.read(_HEAD), b''
      if head.startswith(_PNG):  # Its EXIF data may be at its end.
        file.seek(max(len(head), os.path.getsize(path) - _HEAD))
        tail = file.read(_HEAD)
    kind = None
    is_wide = head.startswith(_PNG) and head[24:26] == b'\x10\0'  # Grey of 16.
    if head.startswith(_WIDE_HEADS) or is_wide:
      kind = value_range.kind(_open(path, head))
    in_head = stored_images.mentions_exif(head)
    is_plain = head.startswith((_JPEG, _PNG)) and not in_head
    if size is None or (is_plain and not stored_images.mentions_exif(tail)):
      return None, kind
    # Other formats may have it anywhere.
    is_short = in_head and head.startswith((_JPEG, _PNG))
    return _rotation(_open(path, head if is_short else b''), size), kind
  return None, None


def _open(path, head):
  try:
    return images.open_image(head)
  except UserError:  # The header is longer, or elsewhere.
    return images.open_image(images.read_bytes(path))


def _rotation(image, size):
  if image.format == 'TIFF':  # Which Pillow always turns.
    return None
  turn, stored = images.orientation(image), image.size[::-1]
  turned = stored[::-1] if turn in images.TRANSPOSED else stored
  if turn not in range(2, 9) or size not in (stored, turned):
    return None
  if stored == turned:
    return _UNCLEAR
  return UPRIGHT if size == turned else STORED


def _sample(path):
  with contextlib.suppress(UserError, OSError, ValueError):
    return value_range.sample(
      np.asarray(images.decode(images.read_bytes(path)))
    )
  return np.zeros(0)


def _range_finding(kind, found, paths, file, wanted, known) -> Finding:
  low, high = found
  shares = ' and '.join(f'{x:g}' for x in value_range.PERCENTILES)
  rule = f'the {shares} percentiles of the set'
  if wanted:
    rule = 'by --value_range'
  elif kind in (known or {}):
    rule = 'as in the training set'
  elif found == value_range.OF_TYPE.get(kind):
    rule = 'the range of the type'
  message = (
    f'{len(paths)} images, such as {os.fspath(paths[0])}, have {kind} values: '
    f'{low:.8g} to {high:.8g} become 0 to 255 ({rule}). For the same scaling '
    f'elsewhere give --value_range={low:.8g},{high:.8g} to prepare, check and '
    'predict.'
  )
  return Finding('value_range', file, message, 'note')


def _rotation_finding(told, upright, file) -> Finding:
  some = told[_UNCLEAR]
  message = (
    f'{len(some)} images, such as {os.fspath(some[0])}, have an EXIF rotation, '
    'and their size does not tell if the annotations mean the stored or the '
    f'upright picture. They are taken as {UPRIGHT if upright else STORED}'
  )
  if bool(told[UPRIGHT]) == bool(told[STORED]):
    message += (
      ', since no other tells, or others contradict each other: look at '
      'pictures (check --html), and give --exif upright or --exif stored.'
    )
    return Finding('rotation_unclear', file, message, 'warning')
  others = len(told[UPRIGHT if upright else STORED])
  message += (
    f', like {others} others whose size tells. --exif decides otherwise.'
  )
  return Finding('rotation_decided', file, message, 'note')
