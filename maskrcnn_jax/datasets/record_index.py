"""Index of record files: location, image id and size of every record.

Needs no TensorFlow.
"""

import contextlib
import dataclasses
import glob
import hashlib
import json
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

from maskrcnn_jax import files as files_lib
from maskrcnn_jax.datasets import images, record_file
from maskrcnn_jax.errors import UserError, brief

# Smaller sets are indexed faster than a cache would be worth.
_CACHED_FROM_RECORDS = 5000
_VERSION = 2  # Of the columns below; part of the cache's name.
_COLUMNS = {
  'file_indices': np.int32,
  'offsets': np.int64,
  'lengths': np.int64,
  'image_ids': np.int64,
  'heights': np.int32,
  'widths': np.int32,
}


@dataclasses.dataclass(frozen=True)
class RecordIndex:
  """Location and image size of every record of a set.

  Attributes:
    files: paths; `file_indices` points into them.
    file_indices: `[n]` int32.
    offsets: `[n]` int64, byte of the file where the record's frame begins.
    lengths: `[n]` int64, bytes of the record without its frame.
    image_ids: `[n]` int64.
    heights: `[n]` int32, of the image as stored.
    widths: `[n]` int32.
  """

  files: tuple[str, ...]
  file_indices: np.ndarray
  offsets: np.ndarray
  lengths: np.ndarray
  image_ids: np.ndarray
  heights: np.ndarray
  widths: np.ndarray

  def __len__(self) -> int:
    return len(self.offsets)

  def place(self, row: int) -> str:
    """File, byte and image id of a record, for messages."""
    path = self.files[self.file_indices[row]]
    return f'{path} at byte {self.offsets[row]}, image {self.image_ids[row]}'

  def error(self, row: int, reason: str) -> UserError:
    """The error on a record."""
    return UserError(
      f'{self.place(row)} {reason}.',
      path=self.files[self.file_indices[row]],
      item=int(self.image_ids[row]),
      given=int(self.offsets[row]),
    )


def index_records(
  file_pattern: str | Sequence[str], split: str | None = None
) -> RecordIndex:
  """Indexes every record of a set.

  The index of a large set is cached in the user's cache folder, by the names,
  sizes and times of its files.

  Args:
    file_pattern: a glob, a path, a TFDS directory (`DIR` or `DIR:SPLIT`), or
      several of these, in a list or joined by commas.
    split: split of a TFDS directory, where the pattern names none.

  Raises:
    UserError: no file matches the pattern, one is truncated or corrupt, or a
      record lacks its size, its id or the masks of its objects, or states a
      size over the budget of `images.check_size`.
  """
  index = _index(find_files(file_pattern, split))
  pixels = index.heights.astype(np.int64) * index.widths
  row = int(np.argmax(pixels))
  try:
    images.check_size(int(index.heights[row]), int(index.widths[row]))
  except UserError as error:
    raise index.error(row, str(error)) from error
  return index


def _index(files) -> RecordIndex:
  cache = _cache_path(files)
  # Without a cache that can be read, the files are.
  unreadable = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
  with (
    contextlib.suppress(*unreadable, zlib.error),
    np.load(cache, allow_pickle=False) as columns,
  ):
    return RecordIndex(files, **{name: columns[name] for name in _COLUMNS})
  rows = [
    (file_index, *row)
    for file_index, path in enumerate(files)
    for row in record_file.scan(path)
  ]
  if not rows:
    raise UserError(f'There is no record in {", ".join(files)}.', path=files[0])
  columns = {
    name: np.array(column, dtype)
    for (name, dtype), column in zip(_COLUMNS.items(), zip(*rows))
  }
  if len(rows) >= _CACHED_FROM_RECORDS:
    # A folder that cannot be written gets no cache.
    with (
      contextlib.suppress(OSError),
      files_lib.replaced(cache) as path,
      path.open('wb') as stream,
    ):
      np.savez_compressed(stream, **columns)
  return RecordIndex(files, **columns)


def find_files(
  file_pattern: str | Sequence[str], split: str | None = None
) -> tuple[str, ...]:
  """Record files of a pattern in lexicographic order, as `index_records`."""
  if isinstance(file_pattern, (str, os.PathLike)):
    file_pattern = os.fspath(file_pattern).split(',')
  files = []
  for pattern in (os.fspath(piece).strip() for piece in file_pattern):
    folder, _, named_split = pattern.rpartition(':')
    if os.path.isdir(pattern):
      found = _tfds_files(pathlib.Path(pattern), split)
    elif os.path.isdir(folder):
      found = _tfds_files(pathlib.Path(folder), named_split)
    elif os.path.exists(pattern):
      found = [pattern]
    else:
      found = glob.glob(pattern)
    if not found:
      raise UserError(
        f'file_pattern {pattern!r} matches no file (working folder '
        f'{os.getcwd()}).',
        argument='file_pattern',
        given=pattern,
      )
    files += found
  return tuple(sorted(set(files)))


def _tfds_files(folder, split):
  """Files of one split of a prepared TFDS directory."""
  description = folder / 'dataset_info.json'
  if not description.exists():
    raise UserError(
      f'file_pattern {str(folder)!r} is a folder without dataset_info.json: '
      f'name its record files ({folder}/*.tfrecord) or a TFDS directory.',
      argument='file_pattern',
      path=folder,
    )
  described = files_lib.read_json(description)
  try:
    kind = described.get('fileFormat', 'tfrecord')
    entries = {str(x['name']): x for x in described.get('splits', ())}
    names = {k: _shards(described['name'], k, x) for k, x in entries.items()}
    if split is None and len(names) == 1:
      (split,) = names
    found = [files_lib.inside(folder, name) for name in names.get(split, ())]
  except (AttributeError, LookupError, TypeError, UserError) as error:
    raise UserError(
      f'{description} describes no TFDS data set: {brief(error)}.',
      path=description,
    ) from error
  if kind != 'tfrecord':
    raise UserError(
      f'{description}: the file format must be tfrecord, got {brief(kind)}.',
      path=description,
      given=kind,
      wanted='tfrecord',
    )
  if split not in names:
    raise UserError(
      f'{folder} has the splits {brief(sorted(names))}, got {split}: name one '
      f'as {folder}:SPLIT.',
      argument='file_pattern',
      path=folder,
      given=split,
      wanted=sorted(names),
    )
  return [str(path) for path in found]


def _shards(dataset, split, entry) -> list[str]:
  """File names of a split, by the template in the description."""
  template = entry.get(
    'filepathTemplate', '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
  )
  total = f'{len(entry["shardLengths"]):05d}'

  def name(shard):
    values = {
      'DATASET': str(dataset),
      'SPLIT': split,
      'FILEFORMAT': 'tfrecord',
      'SHARD_INDEX': shard,
      'NUM_SHARDS': total,
      'SHARD_X_OF_Y': f'{shard}-of-{total}',
    }
    # Not `str.format`, whose widths and attributes the file would choose.
    return re.sub(r'\{(\w+)\}', lambda x: values.get(x[1], x[0]), template)

  if len(total) > 5 or len(name(total)) > 255:
    raise UserError('file names are too long or too many')
  return [name(f'{shard:05d}') for shard in range(int(total))]


def _cache_path(files):
  """Path of the cached index of these files; never beside them."""
  stats = [(os.path.abspath(path), os.stat(path)) for path in files]
  key = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]
  digest = hashlib.sha256(json.dumps([_VERSION, key]).encode()).hexdigest()
  return files_lib.cache_folder() / f'index-{digest[:32]}.npz'
