"""TensorFlow checkpoints, read without TensorFlow.

A checkpoint is named by its prefix: `model.ckpt-112603` for the files
`model.ckpt-112603.index`, a table of sorted keys in the format of LevelDB, and
`model.ckpt-112603.data-00000-of-00001`, the bytes of the tensors. Both forms
are read: named tensors (TensorFlow 1, also in a SavedModel) and Keras
checkpoints, whose object graph has the names.

Its own reader because TensorFlow ends the process on some corrupt files.
"""

import dataclasses
import math
import os
import pathlib
import re
import struct
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from maskrcnn_jax import files, wire_format
from maskrcnn_jax.errors import UserError, brief, did_you_mean
from maskrcnn_jax.weights.budget import STEP, Budget
from maskrcnn_jax.weights.safe_pickle import MAX_RANK
from maskrcnn_jax.weights.tensor_files import Tensors, naming

_SUFFIX = re.compile(r'\.(index|meta|data-\d{5}-of-\d{5})$')
# Last bytes of an index.
_MAGIC = 0xDB4775248B80FB57.to_bytes(8, 'little')
_FOOTER_BYTES = 48
# Types by their numbers in TensorFlow.
_DTYPES = {
  1: np.float32,
  2: np.float64,
  3: np.int32,
  4: np.uint8,
  5: np.int16,
  6: np.int8,
  9: np.int64,
  10: np.bool_,
  14: ml_dtypes.bfloat16,
  17: np.uint16,
  19: np.float16,
  22: np.uint32,
  23: np.uint64,
}
# Key of the object graph of Keras and tf.train.Checkpoint.
_OBJECT_GRAPH = '_CHECKPOINTABLE_OBJECT_GRAPH'
_VALUE = '/.ATTRIBUTES/VARIABLE_VALUE'
# Keys of an optimizer's arrays; their names do not tell.
_OPTIMIZER = re.compile(r'optimizer/.*|.*\.OPTIMIZER_SLOT.*')
# Names that an error lists.
_NUM_MENTIONED = 5
_MAX_KEY = 2000
# Characters of the file `checkpoint`, which may name many checkpoints.
_MAX_STATE = 2**20


def is_part(path: str | os.PathLike) -> bool:
  """True for the name of a file that is part of a TensorFlow checkpoint."""
  return _SUFFIX.search(os.fspath(path)) is not None


def read(given: str | os.PathLike) -> Tensors:
  """The tensors of a TensorFlow checkpoint; each is read by `np.asarray`.

  Args:
    given: prefix of the checkpoint, such as `resnet/model.ckpt-112603`; or a
      folder whose file `checkpoint` names it.

  Raises:
    UserError: there is no such checkpoint, or it is corrupt; so does the
      reading of a tensor.
  """
  prefix = _find(os.fspath(given))
  index = pathlib.Path(f'{prefix}.index')
  shards = [*index.parent.glob(f'{index.stem}.data-*')]
  budget = Budget(sum(x.stat().st_size for x in (index, *shards)))
  with naming(index):
    rows = dict(_rows(index.read_bytes(), budget))
    num_shards = dict(_fields(rows.pop(b''))).get(1, 1)
    tensors = {
      key.decode(): _tensor(key.decode(), row, prefix, num_shards, budget)
      for key, row in rows.items()
    }
    return Tensors(prefix, _named(tensors, budget))


def _find(given) -> str:
  """Prefix of an existing checkpoint, or of the one that a folder names."""
  path = pathlib.Path(_SUFFIX.sub('', given))
  why = f'{path}.index does not exist'
  if path.is_dir():
    state = path / 'checkpoint'
    text = _start(state) if state.is_file() else ''
    named = re.search(r'^model_checkpoint_path:\s*"(.*)"', text, re.MULTILINE)
    # An absolute path belongs to the machine that wrote it.
    name = named[1].rpartition('/')[2] if named else 'checkpoint'
    path = files.inside(path, name)
    why = f'{state} {"names it" if named else "is missing; give a prefix"}'
  if pathlib.Path(f'{path}.index').is_file():
    return str(path)
  if not path.parent.is_dir():
    why = f'{path.parent} is not a folder'
  there = sorted(x.stem for x in path.parent.glob('*.index'))
  listed = ', '.join(there[:_NUM_MENTIONED]) or 'no checkpoint'
  more = ', ...' if len(there) > _NUM_MENTIONED else ''
  raise UserError(
    f'There is no checkpoint {path}: {why}{did_you_mean(path.name, there)} '
    f'{path.parent} has {listed}{more}.',
    path=path,
    wanted=there,
  )


def _start(path) -> str:
  with path.open(encoding='utf-8', errors='replace') as file:
    return file.read(_MAX_STATE)


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """Tensor that is read by `np.asarray`; `dtype` is None for texts."""

  key: str
  shape: tuple[int, ...]
  dtype: np.dtype | None
  path: str
  offset: int
  size: int
  checksum: int
  budget: Budget

  def data(self) -> bytes:
    if not os.path.exists(self.path):
      raise UserError(f'{self.path} does not exist.', path=self.path)
    with naming(self.path):
      if self.offset + self.size > os.path.getsize(self.path):
        raise UserError(
          f'it is truncated: {self.key} ends after it', item=self.key
        )
      self.budget.pay(self.size)
      with open(self.path, 'rb') as file:
        file.seek(self.offset)
        return file.read(self.size)

  def __array__(self, dtype=None, copy=None):
    if self.dtype is None:
      raise UserError(f'{self.path}: {self.key} is not of numbers.')
    data = self.data()
    if wire_format.masked_crc32c(data) != self.checksum:
      raise UserError(
        f'{self.path} is corrupt: the checksum of {self.key} is wrong.',
        path=self.path,
        item=self.key,
      )
    return np.frombuffer(data, self.dtype).reshape(self.shape)


def _tensor(key, row, prefix, num_shards, budget) -> _Tensor:
  """The tensor of a row of the index, a BundleEntryProto."""
  fields = dict(_fields(row))
  number, size = fields.get(1, 0), fields.get(5, 0)
  shape = tuple(
    dict(_fields(side)).get(1, 0)
    for field, side in _fields(fields.get(2, b''))
    if field == 2
  )
  if len(shape) > MAX_RANK or 7 in fields:
    raise UserError(
      f'{brief(key)} is stored in slices or has too many axes', item=key
    )
  dtype = np.dtype(_DTYPES[number]) if number in _DTYPES else None
  if dtype is not None and math.prod(shape) * dtype.itemsize != size:
    raise UserError(
      f'{brief(key)} has {size} bytes and the shape {brief(shape)}', item=key
    )
  shard = f'{prefix}.data-{fields.get(3, 0):05}-of-{num_shards:05}'
  checksum = fields.get(6, 0)
  return _Tensor(
    key, shape, dtype, shard, fields.get(4, 0), size, checksum, budget
  )


def _named(tensors, budget) -> dict[str, _Tensor]:
  """Tensors by the names of their variables, by the object graph if any."""
  full_names = {}
  if graph := tensors.get(_OBJECT_GRAPH):
    data = graph.data()
    # The length of the text, and the checksum of the length.
    (size, position) = wire_format.varint(data, 0)
    for _, node in _fields(data[position + 4 : position + 4 + size]):
      for field, attribute in _fields(node):
        budget.pay(STEP)
        if field == 2:
          texts = dict(_fields(attribute))
          full_names[texts.get(3)] = texts.get(2, b'').decode()
  # Only the keys of the optimizer's arrays tell that they are the optimizer's.
  return {
    (not _OPTIMIZER.fullmatch(key) and full_names.get(key.encode()))
    or key.removesuffix(_VALUE): tensor
    for key, tensor in sorted(tensors.items())
  }


def _rows(table: bytes, budget) -> Iterator[tuple[bytes, bytes]]:
  """Keys and values of a table of LevelDB without compression."""
  footer = table[-_FOOTER_BYTES:]
  if not footer.endswith(_MAGIC):
    raise UserError('it is truncated, or not the index of a checkpoint')
  _, position = _handle(footer, 0)
  blocks, _ = _handle(footer, position)
  for _, handle in _block(table, blocks, budget):
    yield from _block(table, _handle(handle, 0)[0], budget)


def _handle(data, position):
  """(offset, size) of a block, and the position after it."""
  offset, position = wire_format.varint(data, position)
  size, position = wire_format.varint(data, position)
  return (offset, size), position


def _block(table, handle, budget) -> Iterator[tuple[bytes, bytes]]:
  """Keys and values of a block; keys share prefixes with those before."""
  offset, size = handle
  budget.pay(size)
  data, trailer = table[offset : offset + size], table[offset + size :][:5]
  if len(trailer) < 5 or trailer[0]:
    raise UserError('it is truncated, or compressed')
  if wire_format.masked_crc32c(data + trailer[:1]) != int.from_bytes(
    trailer[1:], 'little'
  ):
    raise UserError('it is corrupt: the checksum of a block is wrong')
  (num_restarts,) = struct.unpack('<I', data[-4:])
  end, position, key = len(data) - 4 - 4 * num_restarts, 0, b''
  while position < end:
    shared, position = wire_format.varint(data, position)
    rest, position = wire_format.varint(data, position)
    length, position = wire_format.varint(data, position)
    if shared + rest > _MAX_KEY:
      raise UserError('it has a key that is too long')
    budget.pay(STEP + shared + rest)
    key = key[:shared] + data[position : position + rest]
    position += rest
    yield key, data[position : position + length]
    position += length


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
  """Numbers and values of the fields of a protobuf."""
  position = 0
  while position < len(data):
    tag, position = wire_format.varint(data, position)
    kind, size = tag & 7, 0
    if kind == 0:
      value, position = wire_format.varint(data, position)
    elif kind == 2:
      size, position = wire_format.varint(data, position)
      value = data[position : position + size]
    elif kind in (1, 5):
      size = 8 if kind == 1 else 4
      value = int.from_bytes(data[position : position + size], 'little')
    else:
      raise UserError('it is corrupt: it has an unknown type of field')
    position += size
    if position > len(data):
      raise UserError('it is corrupt: it has a field that is truncated')
    yield tag >> 3, value
