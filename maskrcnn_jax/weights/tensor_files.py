"""Files of named tensors, read and written without the programs they are for.

The format of a file is told by its first bytes: PyTorch's `.pth`, a pickle of
NumPy arrays such as Detectron2's `.pkl`, `.npz` or `.safetensors`.
"""

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np
import safetensors.numpy

from maskrcnn_jax import files
from maskrcnn_jax.errors import UserError, brief, did_you_mean
from maskrcnn_jax.terminal import escaped
from maskrcnn_jax.weights import pytorch_files, safe_pickle
from maskrcnn_jax.weights.budget import STEP, Budget

# Endings of the files that can be written and read.
SUFFIXES = ('.pth', '.pt', '.npz', '.safetensors')
SUFFIXES_READ = (*SUFFIXES, '.pkl', '.bin')
# Keys under which training programs store the state dict, in this order.
_STATE_DICT_KEYS = (
  'model',
  'state_dict',
  'model_state_dict',
  'model_state',
  'blobs',
  'net',
  'module',
  'ema',
  'model_ema',
  'state_dict_ema',
)
_MAX_NESTED = 10
# Of a name that an error or a report shows.
_MAX_NAME = 200
# Of the header of an array; NumPy's own limit is 10,000 characters.
_MAX_HEADER = 2**14
_HEADERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}
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
  """Content of a weight file or of a TensorFlow checkpoint.

  Attributes:
    path: of the file, or prefix of the checkpoint.
    arrays: by name; some are read by `np.asarray`.
    others: names of other entries, such as the state of an optimizer.
    prefix: parts that were taken off the names, see `prefixes`.
  """

  path: str
  arrays: Mapping[str, np.ndarray]
  others: Sequence[str] = ()
  prefix: Sequence[str] = ()

  def __post_init__(self):
    for name in (*self.arrays, *self.others):
      if _shown(name) != name:
        raise UserError(f'it has a tensor that is named {_shown(name)}')


def read(path: str | os.PathLike) -> Tensors:
  """Reads the state dict of a file; nothing of the file is executed.

  Args:
    path: a .pth, .pt, .pkl, .npz or .safetensors file, whatever its name.

  Raises:
    FileNotFoundError: there is no such file.
    UnsafePickleError: a pickle holds more than tensors and containers.
    UserError: the file has another format or no state dict, is corrupt, or
      needs far more memory or time than its size (see `budget`).
  """
  path = pathlib.Path(path)
  if not path.is_file():
    names = [x.name for x in path.parent.glob('*') if x.is_file()]
    hint = did_you_mean(path.name, names)
    raise FileNotFoundError(f'There is no file {path}{hint}')
  with path.open('rb') as file:
    start = file.read(9)
  with naming(path):
    return _read(path, start)


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
  """Names a file in the errors of the block that do not name one.

  Raises:
    UserError: for any error: a corrupt file can fail in any way.
  """
  try:
    yield
  except UserError as error:
    if error.path is None:
      error.path = str(path)
      error.args = (f'{escaped(error.path)}: {error}',)
    raise
  except Exception as error:
    text = str(error).partition('\n')[0][:_MAX_NAME]
    text = text if text.isprintable() else brief(text)
    raise UserError(
      f'{path} cannot be read; it may be corrupt or truncated: '
      f'{type(error).__name__}: {text}',
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
  budget = Budget(path.stat().st_size)
  if start.startswith(b'PK'):
    with zipfile.ZipFile(path) as archive:
      names = archive.namelist()
      budget.pay(STEP * len(names))
      if not any(name.endswith('.npy') for name in names):
        return _extract(
          *pytorch_files.read_zip(archive, budget), str(path), budget
        )
      arrays = {
        name.removesuffix('.npy'): _from_npy(
          pytorch_files.read_member(archive, name, budget)
        )
        for name in names
        if name.endswith('.npy')
      }
      return Tensors(str(path), arrays)
  # The length of a JSON header; its first byte may be that of a pickle.
  header = int.from_bytes(start[:8], 'little')
  if start[8:] == b'{' and header < path.stat().st_size:
    # Each tensor has some 50 bytes of it at least.
    budget.pay(header // 50 * 8 * STEP)
    found = safetensors.deserialize(path.read_bytes())
    return Tensors(
      str(path), {name: _from_safetensors(tensor) for name, tensor in found}
    )
  if start.startswith(b'\x80'):
    data = path.read_bytes()
    return _extract(
      *pytorch_files.read_pickles(data, budget), str(path), budget
    )
  raise UserError(
    'it is not a weight file: wanted .pth, .pt, .pkl, .npz or .safetensors, or '
    'the prefix of a TensorFlow checkpoint'
  )


def _from_npy(data: bytes) -> np.ndarray:
  """The array of a .npy file; its data are not copied."""
  start = io.BytesIO(data[:_MAX_HEADER])
  version = np.lib.format.read_magic(start)
  shape, is_fortran, dtype = _HEADERS[version](start)
  flat = np.frombuffer(data, dtype, math.prod(shape), start.tell())
  return flat.reshape(shape, order='F' if is_fortran else 'C')


def _from_safetensors(tensor) -> np.ndarray:
  dtype = np.dtype(_SAFETENSORS[tensor['dtype']])
  return np.frombuffer(tensor['data'], dtype).reshape(tensor['shape'])


def _extract(found, memory: pytorch_files.Memory, path, budget) -> Tensors:
  """State dict of an unpickled object, with its tensors read."""
  others, depth = [], 0
  while (key := _state_dict_key(found)) and depth < _MAX_NESTED:
    others += [_shown(x) for x in found if x != key]
    found, depth = found[key], depth + 1
  values = found if isinstance(found, dict) else {}
  tensor = safe_pickle.LazyTensor | safe_pickle.Array
  if not any(isinstance(x, tensor) for x in values.values()):
    content = ', '.join(map(_shown, [*values][:5])) or type(found).__name__
    raise UserError(
      f'it has no state dict, but {content}; wanted tensors by name, or such a '
      f'dict under one of {", ".join(_STATE_DICT_KEYS)}',
      wanted=_STATE_DICT_KEYS,
    )
  arrays = {}
  for name, value in values.items():
    if not isinstance(value, tensor) or not isinstance(name, str):
      others.append(_shown(name))
      continue
    try:
      if isinstance(value, safe_pickle.Array):
        arrays[name] = value.value
      else:
        arrays[name] = value.view(memory(value.storage))
      budget.pay(arrays[name].nbytes + STEP)
    except UserError as error:
      raise UserError(
        f'{path}, {name}: {error}', path=path, item=name
      ) from error
  return Tensors(path, arrays, others)


def _shown(key) -> str:
  """A key of a dict as short text."""
  if not isinstance(key, str | int | float):
    return type(key).__name__
  text = str(key)
  is_name = len(text) <= _MAX_NAME and text.isprintable()
  return text if is_name else brief(text)


def _state_dict_key(found) -> str | None:
  """Key under which a training program stored the state dict, if any."""
  if not isinstance(found, dict):
    return None
  keys = (x for x in _STATE_DICT_KEYS if isinstance(found.get(x), dict))
  return next(keys, None)
