"""Files of named tensors, read and written without the programs they are for.

The format of a file is told by its first bytes: PyTorch's `.pth`, a pickle of
NumPy arrays such as Detectron2's `.pkl`, `.npz` or `.safetensors`.
"""

import dataclasses
import os
import pathlib
import zipfile
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import safetensors.numpy

from maskrcnn_jax import files
from maskrcnn_jax.errors import UserError, did_you_mean
from maskrcnn_jax.weights import pytorch_files, safe_pickle

# Endings of the files that can be written.
SUFFIXES = ('.pth', '.pt', '.npz', '.safetensors')
# Keys under which training programs store the state dict, in this order.
_STATE_DICT_KEYS = (
  'model',
  'state_dict',
  'model_state_dict',
  'model_state',
  'blobs',
)
# Prefix of every name in a model that was trained on several devices.
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
  """Content of a weight file.

  Attributes:
    path: of the file.
    arrays: by name.
    others: names of other entries, such as the state of an optimizer.
  """

  path: str
  arrays: Mapping[str, np.ndarray]
  others: Sequence[str] = ()


def read(path: str | os.PathLike) -> Tensors:
  """Reads the state dict of a file; nothing of the file is executed.

  Args:
    path: a .pth, .pt, .pkl, .npz or .safetensors file, whatever its name.

  Raises:
    FileNotFoundError: there is no such file.
    UnsafePickleError: a pickle holds more than tensors and containers.
    UserError: the file has another format or no state dict, or is corrupt.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    names = [x.name for x in path.parent.glob('*') if x.is_file()]
    hint = did_you_mean(path.name, names)
    raise FileNotFoundError(f'There is no file {path}{hint}')
  with path.open('rb') as file:
    start = file.read(9)
  try:
    return _read(path, start)
  except UserError:
    raise
  # A corrupt file can fail in any way.
  except Exception as error:
    raise UserError(
      f'{path} cannot be read; it may be corrupt or truncated: '
      f'{type(error).__name__}: {error}',
      path=path,
    ) from error


def check_output(path: str | os.PathLike) -> None:
  """Checks that a file can be written.

  Raises:
    UserError: the ending is not in `SUFFIXES`, or the file exists.
    FileNotFoundError: its folder does not exist.
  """
  path = pathlib.Path(path)
  if path.suffix not in SUFFIXES:
    raise UserError(
      f'{path} must end in one of {", ".join(SUFFIXES)}, which tells the '
      'format.',
      path=path,
      given=path.suffix,
      wanted=SUFFIXES,
    )
  if path.exists():
    raise UserError(f'{path} exists and is not overwritten.', path=path)
  if not path.absolute().parent.is_dir():
    raise FileNotFoundError(f'{path}: there is no folder {path.parent}.')


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays by name; there is a whole file or none.

  Args:
    path: ends in one of `SUFFIXES`, which tells the format; must not exist.
    arrays: float32 or int64.

  Raises:
    UserError: as `check_output`; or an array is of another type.
    FileNotFoundError: as `check_output`.
  """
  check_output(path)
  for name, array in arrays.items():
    if array.dtype.name not in pytorch_files.STORAGES:
      raise UserError(
        f'{name} is {array.dtype}, wanted float32 or int64.',
        item=name,
        given=array.dtype.name,
      )
  arrays = {name: np.array(x, order='C') for name, x in arrays.items()}
  suffix = pathlib.Path(path).suffix
  with files.replaced(path) as unfinished:
    if suffix == '.safetensors':
      # Transformers and timm look for this entry.
      data = safetensors.numpy.save(arrays, {'format': 'pt'})
      unfinished.write_bytes(data)
    elif suffix == '.npz':
      with unfinished.open('wb') as file:
        np.savez(file, **arrays)
    else:
      pytorch_files.write(unfinished, arrays)


def _read(path, start) -> Tensors:
  """Reads a file by the format of its first bytes."""
  if start.startswith(b'PK'):
    with zipfile.ZipFile(path) as archive:
      if not any(name.endswith('.npy') for name in archive.namelist()):
        return _extract(*pytorch_files.read_zip(archive, str(path)), path)
    with np.load(path, allow_pickle=False) as arrays:
      return Tensors(str(path), {name: arrays[name] for name in arrays.files})
  # The length of a JSON header; its first byte may be that of a pickle.
  header = int.from_bytes(start[:8], 'little')
  if start[8:] == b'{' and header < path.stat().st_size:
    found = safetensors.deserialize(path.read_bytes())
    return Tensors(
      str(path), {name: _from_safetensors(tensor) for name, tensor in found}
    )
  if start.startswith(b'\x80'):
    return _extract(*pytorch_files.read_pickles(path), path)
  raise UserError(
    f'{path} is not a weight file: wanted .pth, .pt, .pkl, .npz or '
    '.safetensors, or the prefix of a TensorFlow checkpoint.',
    path=path,
  )


def _from_safetensors(tensor) -> np.ndarray:
  dtype = np.dtype(_SAFETENSORS[tensor['dtype']])
  return np.frombuffer(tensor['data'], dtype).reshape(tensor['shape'])


def _extract(found, memory: pytorch_files.Memory, path) -> Tensors:
  """State dict of an unpickled object, with its tensors read."""
  others = []
  while key := _state_dict_key(found):
    others += [str(x) for x in found if x != key]
    found = found[key]
  tensor = safe_pickle.LazyTensor
  is_dict = isinstance(found, dict)
  if not is_dict or not any(
    isinstance(x, tensor | np.ndarray) for x in found.values()
  ):
    content = f'a {type(found).__name__}'
    if is_dict:
      content = f'a dict of {", ".join(map(str, [*found][:5])) or "nothing"}'
    raise UserError(
      f'{path} has no state dict, but {content}. Wanted tensors by name, or '
      f'such a dict under one of {", ".join(_STATE_DICT_KEYS)}.',
      path=path,
      wanted=_STATE_DICT_KEYS,
    )
  arrays = {}
  for name, value in found.items():
    if isinstance(value, tensor):
      try:
        arrays[name] = value.view(memory(value.storage))
      except UserError as error:
        raise UserError(
          f'{path}, {name}: {error}', path=path, item=name
        ) from error
    elif isinstance(value, np.ndarray):
      arrays[name] = value
    else:
      others.append(name)
  if all(name.startswith(_PARALLEL) for name in arrays):
    arrays = {k.removeprefix(_PARALLEL): v for k, v in arrays.items()}
  return Tensors(str(path), arrays, others)


def _state_dict_key(found) -> str | None:
  """Key under which a training program stored the state dict, if any."""
  if not isinstance(found, dict):
    return None
  keys = (x for x in _STATE_DICT_KEYS if isinstance(found.get(x), dict))
  return next(keys, None)
