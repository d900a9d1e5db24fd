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
from collections.abc import Sequence

import numpy as np

from maskrcnn_jax import files as files_lib
from maskrcnn_jax.datasets import record_file
from maskrcnn_jax.errors import UserError

# Smaller sets are indexed faster than a cache would be worth.
_CACHED_FROM_RECORDS = 5000
_VERSION = 1  # Of the columns below; part of the cache's name.
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
    """File and byte of a record, for messages."""
    path = self.files[self.file_indices[row]]
    return f'{path} at byte {self.offsets[row]}'


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
      record lacks its size, its id or the masks of its objects.
  """
  files = find_files(file_pattern, split)
  cache = _cache_path(files)
  # Without a cache that can be read, the files are.
  with (
    contextlib.suppress(OSError, ValueError, KeyError, EOFError),
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
  described = json.loads(description.read_text())
  if described.get('fileFormat', 'tfrecord') != 'tfrecord':
    raise UserError(
      f'{description}: the file format must be tfrecord, got '
      f'{described["fileFormat"]}.',
      path=description,
      given=described['fileFormat'],
      wanted='tfrecord',
    )
  splits = {entry['name']: entry for entry in described.get('splits', ())}
  if split is None and len(splits) == 1:
    (split,) = splits
  if split not in splits:
    raise UserError(
      f'{folder} has the splits {", ".join(sorted(splits))}, got {split}: '
      f'name one as {folder}:SPLIT.',
      argument='file_pattern',
      path=folder,
      given=split,
      wanted=sorted(splits),
    )
  entry = splits[split]
  template = entry.get(
    'filepathTemplate', '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
  )
  total = f'{len(entry["shardLengths"]):05d}'
  names = [
    template.format(
      DATASET=described['name'],
      SPLIT=split,
      FILEFORMAT='tfrecord',
      SHARD_INDEX=f'{shard:05d}',
      NUM_SHARDS=total,
      SHARD_X_OF_Y=f'{shard:05d}-of-{total}',
    )
    for shard in range(int(total))
  ]
  return [str(folder / name) for name in names]


def _cache_path(files):
  """Path of the cached index of these files; never beside them."""
  root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  stats = [(os.path.abspath(path), os.stat(path)) for path in files]
  key = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]
  digest = hashlib.sha256(json.dumps([_VERSION, key]).encode()).hexdigest()
  return pathlib.Path(root) / 'maskrcnn_jax' / f'index-{digest[:32]}.npz'
