"""PyTorch's `.pth` files, read and written without PyTorch.

Today's form is a zip with the bytes of every storage and one small pickle; the
form before 2020 is a sequence of pickles followed by the storages.
"""

import functools
import io
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import safe_pickle

# First object of a .pth from before 2020, followed by its version.
_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
# Version of the zip files.
_ZIP_VERSION = b'3\n'
# Storages of the types that are written.
STORAGES = {'float32': 'FloatStorage', 'int64': 'LongStorage'}
# The elements of a storage.
Memory = Callable[[safe_pickle.Storage], np.ndarray]


def read_zip(archive: zipfile.ZipFile, path: str) -> tuple[Any, Memory]:
  """Unpickled object of a zip, and a function that reads a storage.

  Raises:
    UserError: the file is corrupt, or not from PyTorch.
  """
  sizes = {x.filename: x.file_size for x in archive.infolist()}
  pickled = [name for name in sizes if name.endswith('data.pkl')]
  if len(pickled) != 1:
    raise UserError(
      f'{path} is a zip file of neither PyTorch nor NumPy: it has '
      f'{len(pickled)} files data.pkl and no .npy.',
      path=path,
    )
  root = pickled[0].removesuffix('data.pkl')

  @functools.cache
  def read(name, size):
    # Decompression stops at `size`, whatever the header says.
    with archive.open(name) as file:
      return file.read(size)

  # PyTorch does not compress, so a larger pickle is a bomb.
  if sizes[pickled[0]] > os.path.getsize(path):
    raise UserError(f'{path}: {pickled[0]} is larger than the file.', path=path)
  found = safe_pickle.load(
    io.BytesIO(read(pickled[0], sizes[pickled[0]])), path
  )
  order = f'{root}byteorder'
  is_big = order in sizes and read(order, len('little')) == b'big'

  def memory(storage):
    name = f'{root}data/{storage.key}'
    if name not in sizes:
      raise UserError(f'the storage {name} is missing')
    _check_size(sizes[name], storage)
    return _elements(read(name, sizes[name]), storage, is_big)

  return found, memory


def read_pickles(path: pathlib.Path) -> tuple[Any, Memory]:
  """Unpickled object of a file of pickles; a function that reads a storage.

  A file that is one pickle of NumPy arrays, such as Detectron2's, has no
  storages.

  Raises:
    UserError: the file is corrupt, or of another version.
  """
  with path.open('rb') as file:
    first = safe_pickle.load(file, str(path))
    memories, is_big = {}, False
    if first == _MAGIC:
      version = safe_pickle.load(file, str(path))
      if version != _LEGACY_VERSION:
        raise UserError(
          f'{path} has format version {version}, wanted {_LEGACY_VERSION}.',
          path=path,
          given=version,
          wanted=_LEGACY_VERSION,
        )
      system = safe_pickle.load(file, str(path))
      is_big = not system.get('little_endian', True)
      first = safe_pickle.load(file, str(path))
      memories = _read_storages(file, path, first, is_big)

  def memory(storage):
    return _elements(memories.get(storage.key, b''), storage, is_big)

  return first, memory


def _read_storages(file, path, found, is_big) -> dict[str, bytes]:
  """Bytes of the storages by key, in the order of the keys in the file."""
  sizes = {x.key: x.dtype.itemsize for x in _storages(found)}
  memories = {}
  for key in safe_pickle.load(file, str(path)):
    order = 'big' if is_big else 'little'
    count = int.from_bytes(file.read(8), order, signed=True)
    if key not in sizes:
      raise UserError(f'{path} has an unused storage {key}.', path=path)
    # A corrupt count must not allocate more than the file has.
    wanted = min(max(count, 0) * sizes[key], path.stat().st_size)
    memories[key] = file.read(wanted)
  return memories


def _storages(found):
  """Storages of all tensors in a tree; every container is visited once."""
  left, seen = [found], set()
  while left:
    part = left.pop()
    if isinstance(part, safe_pickle.LazyTensor):
      yield part.storage
    elif isinstance(part, dict | list | tuple) and id(part) not in seen:
      seen.add(id(part))
      left += part.values() if isinstance(part, dict) else part


def _check_size(size: int, storage: safe_pickle.Storage) -> None:
  wanted = storage.size * storage.dtype.itemsize
  if size != wanted:
    raise UserError(
      f'the storage {storage.key} has {size} bytes, wanted {wanted}; the '
      'file may be corrupt or truncated'
    )


def _elements(data: bytes, storage: safe_pickle.Storage, is_big) -> np.ndarray:
  _check_size(len(data), storage)
  memory = np.frombuffer(data, storage.dtype)
  return memory.byteswap() if is_big else memory


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes a state dict for `torch.load(FILE, weights_only=True)`.

  Args:
    path: to be written.
    arrays: contiguous, of the types of `STORAGES`.
  """
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
    archive.writestr('archive/data.pkl', _state_dict_pickle(arrays))
    archive.writestr('archive/byteorder', b'little')
    for key, array in enumerate(arrays.values()):
      little = array.astype(array.dtype.newbyteorder('<'), copy=False)
      archive.writestr(f'archive/data/{key}', little.tobytes())
    archive.writestr('archive/version', _ZIP_VERSION)


def _state_dict_pickle(arrays) -> bytes:
  """PyTorch's pickle of an OrderedDict of contiguous tensors."""
  ordered = _name('collections', 'OrderedDict') + pickle.EMPTY_TUPLE
  ordered += pickle.REDUCE
  parts = [pickle.PROTO, b'\x02', ordered, pickle.MARK]
  for key, (name, array) in enumerate(arrays.items()):
    strides = [x // array.itemsize for x in array.strides]
    parts += [
      _text(name),
      _name('torch._utils', '_rebuild_tensor_v2'),
      pickle.MARK,
      pickle.MARK,
      _text('storage'),
      _name('torch', STORAGES[array.dtype.name]),
      _text(str(key)),
      _text('cpu'),
      _number(array.size),
      pickle.TUPLE,
      pickle.BINPERSID,
      _number(0),
      _numbers(array.shape),
      _numbers(strides),
      pickle.NEWFALSE,
      ordered,  # No hooks.
      pickle.TUPLE,
      pickle.REDUCE,
    ]
  return b''.join([*parts, pickle.SETITEMS, pickle.STOP])


def _name(module: str, name: str) -> bytes:
  return pickle.GLOBAL + f'{module}\n{name}\n'.encode()


def _text(text: str) -> bytes:
  data = text.encode()
  return pickle.BINUNICODE + struct.pack('<I', len(data)) + data


def _number(number: int) -> bytes:
  if number < 2**31:
    return pickle.BININT + struct.pack('<i', number)
  return pickle.LONG1 + b'\x08' + struct.pack('<q', number)


def _numbers(numbers) -> bytes:
  return pickle.MARK + b''.join(map(_number, numbers)) + pickle.TUPLE
