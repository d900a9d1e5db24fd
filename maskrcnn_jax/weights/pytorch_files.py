"""PyTorch's `.pth` files, read and written without PyTorch.

Today's form is a zip with the bytes of every storage and one small pickle; the
form before 2020 is a sequence of pickles followed by the storages.
"""

import functools
import io
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from maskrcnn_jax.errors import UserError, brief
from maskrcnn_jax.weights import safe_pickle
from maskrcnn_jax.weights.budget import Budget
from maskrcnn_jax.weights.safe_pickle import Storage

# First object of a .pth from before 2020, followed by its version.
_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
# Version of the zip files.
_ZIP_VERSION = b'3\n'
# Storages of the types that are written.
STORAGES = {'float32': 'FloatStorage', 'int64': 'LongStorage'}
# Methods of compression that stop at a given size.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# The elements of a storage.
Memory = Callable[[Storage], np.ndarray]


def read_member(
  archive: zipfile.ZipFile, name: str, budget: Budget, wanted: int | None = None
) -> bytes:
  """A file of a zip; `UserError` if its size is not the wanted one."""
  info = archive.getinfo(name)
  if info.compress_type not in _METHODS:
    raise UserError(f'{brief(name)} is compressed by an unknown method')
  if wanted is not None and info.file_size != wanted:
    raise UserError(
      f'{brief(name)} has {info.file_size} bytes, wanted {wanted}; the file '
      'may be corrupt or truncated'
    )
  budget.pay(info.file_size)
  with archive.open(info) as file:
    return file.read(info.file_size)


def read_zip(archive: zipfile.ZipFile, budget: Budget) -> tuple[Any, Memory]:
  """Unpickled object of a zip, and a function that reads a storage.

  Raises:
    UserError: the file is corrupt, or not from PyTorch.
  """
  names = {*archive.namelist()}
  pickled = [name for name in names if name.endswith('data.pkl')]
  if len(pickled) != 1:
    raise UserError(
      f'it is a zip file of neither PyTorch nor NumPy: it has {len(pickled)} '
      'files data.pkl and no .npy'
    )
  root = pickled[0].removesuffix('data.pkl')
  program = io.BytesIO(read_member(archive, pickled[0], budget))
  found, _ = safe_pickle.load(program, budget)
  order = f'{root}byteorder'
  is_big = order in names and read_member(archive, order, budget) == b'big'

  @functools.cache
  def memory(storage):
    name = f'{root}data/{storage.key}'
    if name not in names:
      raise UserError(f'the storage {brief(name)} is missing')
    return _elements(
      read_member(archive, name, budget, _num_bytes(storage)), storage, is_big
    )

  return found, memory


def read_pickles(data: bytes, budget: Budget) -> tuple[Any, Memory]:
  """Unpickled object of a sequence of pickles; a function that reads a storage.

  A file that is one pickle of NumPy arrays, such as Detectron2's, has no
  storages.

  Raises:
    UserError: the file is corrupt, or of another version.
  """
  file, memories, is_big = io.BytesIO(data), {}, False

  def load():
    return safe_pickle.load(file, budget)

  found, _ = load()
  if found == _MAGIC:
    if load()[0] != _LEGACY_VERSION:
      raise UserError(f'its format is not version {_LEGACY_VERSION}')
    is_big = not load()[0].get('little_endian', True)
    found, storages = load()
    for key in load()[0]:
      storage = storages.get(key if isinstance(key, str) else None)
      count = int.from_bytes(file.read(8), 'big' if is_big else 'little')
      if not storage or count != storage.size:
        raise UserError('it has a storage that no tensor has declared so')
      memories[key] = file.read(_num_bytes(storage))

  @functools.cache
  def memory(storage):
    data = memories.get(storage.key, b'')
    if len(data) != _num_bytes(storage):
      raise UserError(
        f'the storage {brief(storage.key)} has {len(data)} bytes, wanted '
        f'{_num_bytes(storage)}; the file may be corrupt or truncated'
      )
    return _elements(data, storage, is_big)

  return found, memory


def _num_bytes(storage: Storage) -> int:
  return storage.size * storage.dtype.itemsize


def _elements(data: bytes, storage: Storage, is_big) -> np.ndarray:
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
