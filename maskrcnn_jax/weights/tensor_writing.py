"""Writes named tensors as PyTorch and its friends read them.

A `.pth` is made without PyTorch: a zip with the numbers of every tensor and one
small pickle, which `torch.load(FILE, weights_only=True)` takes.
"""

import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping

import numpy as np
import safetensors.numpy

from maskrcnn_jax.errors import UserError

SUFFIXES = ('.pth', '.pt', '.npz', '.safetensors')
# The version of PyTorch's zip files.
_VERSION = b'3\n'
_STORAGES = {'float32': 'FloatStorage', 'int64': 'LongStorage'}


def check_output(path: str | os.PathLike) -> None:
  """Raises if a file cannot be written there, or is there.

  Raises:
    ValueError: the ending is of none of `SUFFIXES`, or there is such a file.
    FileNotFoundError: its folder is not there.
  """
  path = pathlib.Path(path)
  if path.suffix not in SUFFIXES:
    raise UserError(
      f'{path} must end in one of {", ".join(SUFFIXES)}, which says the format.'
    )
  if path.exists():
    raise UserError(f'{path} is there already and is left as it is.')
  if not path.absolute().parent.is_dir():
    raise FileNotFoundError(f'{path}: there is no folder {path.parent}.')


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays by name; the ending of the path says the format.

  It is written beside its place and renamed, so that there is a whole file or
  none.

  Args:
    path: ends in one of `SUFFIXES`; must not be there.
    arrays: float32 or int64.

  Raises:
    ValueError: as `check_output`; or an array is of another type.
    FileNotFoundError: as `check_output`.
  """
  check_output(path)
  path = pathlib.Path(path)
  for name, array in arrays.items():
    if array.dtype.name not in _STORAGES:
      raise UserError(f'{name} is {array.dtype}, wanted float32 or int64.')
  arrays = {name: np.array(x, order='C') for name, x in arrays.items()}
  unfinished = path.with_name(f'{path.name}.unfinished')
  try:
    if path.suffix == '.safetensors':
      # Transformers and timm look for this note.
      data = safetensors.numpy.save(arrays, {'format': 'pt'})
      unfinished.write_bytes(data)
    elif path.suffix == '.npz':
      with unfinished.open('wb') as file:
        np.savez(file, **arrays)
    else:
      _write_pth(unfinished, arrays)
    unfinished.replace(path)
  finally:
    unfinished.unlink(missing_ok=True)


def _write_pth(path, arrays):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
    archive.writestr('archive/data.pkl', _state_dict_pickle(arrays))
    archive.writestr('archive/byteorder', b'little')
    for key, array in enumerate(arrays.values()):
      little = array.astype(array.dtype.newbyteorder('<'), copy=False)
      archive.writestr(f'archive/data/{key}', little.tobytes())
    archive.writestr('archive/version', _VERSION)


def _state_dict_pickle(arrays) -> bytes:
  """What PyTorch's pickler writes for an OrderedDict of contiguous tensors."""
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
      _name('torch', _STORAGES[array.dtype.name]),
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
