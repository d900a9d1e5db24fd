"""Reads and writes files of named tensors, without the programs they are of.

What a file is, its first bytes say: PyTorch's `.pth` of today (a zip) and of
before 2020 (pickles one after the other), a pickle of NumPy arrays such as
Detectron2's `.pkl`, `.npz`, `.safetensors`.
"""

import dataclasses
import difflib
import io
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import pickles

KINDS = '.pth, .pt, .pkl, .npz and .safetensors'
# First number of a .pth of before 2020, which is followed by its version.
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
# Where training programs keep the state dict, in the order of search.
_PLACES = ('model', 'state_dict', 'model_state_dict', 'model_state', 'blobs')
# In front of every name of a model that was trained on several devices.
_PARALLEL = 'module.'
_SAFETENSORS = {
  'BF16': ml_dtypes.bfloat16,
  'BOOL': np.bool_,
  'F16': np.float16,
  'F32': np.float32,
  'F64': np.float64,
  'I16': np.int16,
  'I32': np.int32,
  'I64': np.int64,
  'I8': np.int8,
  'U8': np.uint8,
}


@dataclasses.dataclass(frozen=True)
class Tensors:
  """What is in a file.

  Attributes:
    path: of the file.
    arrays: by name.
    others: names of what is in it besides, such as the state of an optimizer.
  """

  path: str
  arrays: Mapping[str, np.ndarray]
  others: Sequence[str] = ()


def read(path: str | os.PathLike) -> Tensors:
  """The state dict of a file; nothing of the file is executed.

  Args:
    path: of a file of one of `KINDS`, whatever its name.

  Raises:
    FileNotFoundError: there is no such file.
    UnsafePickleError: it has something else than tensors and containers.
    ValueError: it is of another kind, has no state dict, or is damaged.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'There is no file {path}.{_near(path)}')
  with path.open('rb') as file:
    start = file.read(9)
  if start.startswith(b'PK'):
    return _read_zip(path)
  # The length of a header in JSON, whose first byte may be that of a pickle.
  header = int.from_bytes(start[:8], 'little')
  if start[8:] == b'{' and header < path.stat().st_size:
    return Tensors(str(path), _read_safetensors(path))
  if start.startswith(b'\x80'):
    return _read_pickles(path)
  raise UserError(
    f'{path} is no file of weights: wanted {KINDS}, or the prefix of a '
    'TensorFlow checkpoint.'
  )


def _near(path: pathlib.Path) -> str:
  names = sorted(x.name for x in path.parent.glob('*') if x.is_file())
  close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
  return f' Did you mean {path.with_name(close[0])}?' if close else ''


def _read_zip(path) -> Tensors:
  try:
    with zipfile.ZipFile(path) as archive:
      return _read_archive(archive, path)
  except (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    RuntimeError,  # Encrypted; or packed in a way that Python does not know.
  ) as error:
    raise UserError(
      f'{path} cannot be read, it may be damaged or not wholly copied: {error}'
    ) from error


def _read_archive(archive: zipfile.ZipFile, path) -> Tensors:
  names = archive.namelist()
  if any(name.endswith('.npy') for name in names):
    return Tensors(str(path), _read_npz(path))
  pickled = [name for name in names if name.endswith('data.pkl')]
  if len(pickled) != 1:
    raise UserError(
      f'{path} is a zip file, but neither of PyTorch (it has {len(pickled)} '
      'files data.pkl) nor of NumPy.'
    )
  root = pickled[0].removesuffix('data.pkl')
  found = pickles.load(io.BytesIO(archive.read(pickled[0])), str(path))
  is_big = (
    f'{root}byteorder' in names and archive.read(f'{root}byteorder') == b'big'
  )
  order = '>' if is_big else '<'
  memories = {}

  def memory(storage):
    if storage.key not in memories:
      name = f'{root}data/{storage.key}'
      if name not in names:
        raise UserError(f'{path} lacks the storage {name}.')
      memories[storage.key] = archive.read(name)
    return _numbers(memories[storage.key], storage, order, path)

  return _resolved(found, memory, path)


def _read_pickles(path) -> Tensors:
  with path.open('rb') as file:
    first = pickles.load(file, str(path))
    if first != _MAGIC:
      return _resolved(first, None, path)
    version = pickles.load(file, str(path))
    system = pickles.load(file, str(path))
    if version != _VERSION:
      raise UserError(
        f'{path} has version {version} of its format, wanted {_VERSION}.'
      )
    order = '<' if system.get('little_endian', True) else '>'
    found = pickles.load(file, str(path))
    keys = pickles.load(file, str(path))
    # Each storage follows in the order of the keys: how many numbers, numbers.
    sizes = {x.key: x.dtype.itemsize for x in _storages(found)}
    memories = {}
    for key in keys:
      count = int.from_bytes(
        file.read(8), 'little' if order == '<' else 'big', signed=True
      )
      if key not in sizes:
        raise UserError(f'{path} has a storage {key} that no tensor is of.')
      # Not more than there is, whatever it says.
      wanted = min(max(count, 0) * sizes[key], path.stat().st_size)
      memories[key] = file.read(wanted)

  def memory(storage):
    return _numbers(memories.get(storage.key, b''), storage, order, path)

  return _resolved(found, memory, path)


def _numbers(data: bytes, storage: pickles.Storage, order, path) -> np.ndarray:
  wanted = storage.size * storage.dtype.itemsize
  if len(data) != wanted:
    raise UserError(
      f'{path} has {len(data)} bytes for the storage {storage.key}, wanted '
      f'{wanted}: it may be damaged or not wholly copied.'
    )
  memory = np.frombuffer(data, storage.dtype)
  return memory if order == '<' else memory.byteswap()


def _storages(found):
  """Storages of all tensors in a tree, each part of it seen once."""
  left, seen = [found], set()
  while left:
    part = left.pop()
    if isinstance(part, pickles.LazyTensor):
      yield part.storage
    elif isinstance(part, dict | list | tuple) and id(part) not in seen:
      seen.add(id(part))
      left += part.values() if isinstance(part, dict) else part


def _read_npz(path) -> dict[str, np.ndarray]:
  try:
    with np.load(path, allow_pickle=False) as archive:
      return {name: archive[name] for name in archive.files}
  except ValueError as error:
    raise UserError(f'{path} cannot be read: {error}') from error


def _read_safetensors(path) -> dict[str, np.ndarray]:
  try:
    found = safetensors.deserialize(path.read_bytes())
  except safetensors.SafetensorError as error:
    raise UserError(
      f'{path} cannot be read, it may be damaged or not wholly copied: {error}'
    ) from error
  arrays = {}
  for name, tensor in found:
    if tensor['dtype'] not in _SAFETENSORS:
      raise UserError(f'{path} has {name} in {tensor["dtype"]}.')
    dtype = np.dtype(_SAFETENSORS[tensor['dtype']])
    arrays[name] = np.frombuffer(tensor['data'], dtype).reshape(tensor['shape'])
  return arrays


def _resolved(found: Any, memory, path) -> Tensors:
  """The state dict in what was unpickled, with its tensors read."""
  others = []
  while place := _place(found):
    others += [str(key) for key in found if key != place]
    found = found[place]
  if not _is_state_dict(found):
    raise UserError(
      f'{path} holds no state dict: {_described(found)}. Wanted tensors by '
      f'name, or one of {", ".join(_PLACES)} with them.'
    )
  arrays = {}
  for name, value in found.items():
    if isinstance(value, pickles.LazyTensor):
      try:
        arrays[name] = value.view(memory(value.storage))
      except ValueError as error:
        raise UserError(f'{path}, {name}: {error}') from error
    elif isinstance(value, np.ndarray):
      arrays[name] = value
    else:
      others.append(name)
  if all(name.startswith(_PARALLEL) for name in arrays):
    arrays = {k.removeprefix(_PARALLEL): v for k, v in arrays.items()}
  return Tensors(str(path), arrays, others)


def _place(found) -> str | None:
  """Where a training program put its state dict, if it did so."""
  if not isinstance(found, dict):
    return None
  return next((x for x in _PLACES if isinstance(found.get(x), dict)), None)


def _is_state_dict(found) -> bool:
  kinds = (pickles.LazyTensor, np.ndarray)
  return isinstance(found, dict) and any(
    isinstance(value, kinds) for value in found.values()
  )


def _described(found) -> str:
  if isinstance(found, dict):
    return f'it is a dict of {", ".join(map(str, [*found][:5])) or "nothing"}'
  return f'it is a {type(found).__name__}'
