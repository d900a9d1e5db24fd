"""Unpickler of tensors and containers that executes nothing of the file.

A pickle is a program that names functions and calls them. This unpickler gives
it harmless replacements for the few names that PyTorch tensors, NumPy arrays
and containers consist of, and refuses the file at the first other name. Errors
do not print values of the file, which may be enormous (see `pickle_cost`).
"""

import dataclasses
import pickle
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import pickle_cost

# PyTorch's storage classes.
_STORAGES = {
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'BoolStorage': np.dtype(np.bool_),
  'ByteStorage': np.dtype(np.uint8),
  'CharStorage': np.dtype(np.int8),
  'DoubleStorage': np.dtype(np.float64),
  'FloatStorage': np.dtype(np.float32),
  'HalfStorage': np.dtype(np.float16),
  'IntStorage': np.dtype(np.int32),
  'LongStorage': np.dtype(np.int64),
  'ShortStorage': np.dtype(np.int16),
}
# Kinds of NumPy types that an array may have.
_KINDS = 'biuf'
# NumPy's limit.
_MAX_RANK = 64


class UnsafePickleError(UserError):
  """A pickle names something besides tensors and containers: `item`."""


def _refuse_state(self, state):
  raise UserError('tensor that is changed after it was made')


@dataclasses.dataclass(frozen=True)
class Storage:
  """Memory of tensors, stored under `key` elsewhere in the file.

  `size` is the number of elements.
  """

  dtype: np.dtype
  key: str
  size: int

  __setstate__ = _refuse_state


@dataclasses.dataclass(frozen=True, eq=False)
class LazyTensor:
  """Tensor whose storage has not been read yet.

  `offset` and `strides` are in elements of the storage.
  """

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  __setstate__ = _refuse_state

  def view(self, memory: np.ndarray) -> np.ndarray:
    """The tensor, copied from the elements of its storage, `[size]`.

    Raises:
      UserError: the tensor does not lie within its storage.
    """
    numbers = (self.offset, *self.shape, *self.strides)
    whole = all(isinstance(x, int) and x >= 0 for x in numbers)
    if not whole or not len(self.shape) == len(self.strides) <= _MAX_RANK:
      raise UserError('The tensor has an invalid offset, shape or strides.')
    count = int(np.prod(self.shape, dtype=object))
    last = self.offset + sum(
      (size - 1) * stride for size, stride in zip(self.shape, self.strides)
    )
    if count and (last >= memory.size or count > memory.size):
      raise UserError(
        f'The tensor of shape {self.shape} exceeds its storage of '
        f'{memory.size} elements.'
      )
    if not count:
      return np.zeros(self.shape, memory.dtype)
    strides = [stride * memory.itemsize for stride in self.strides]
    view = np.lib.stride_tricks.as_strided(
      memory[self.offset :], self.shape, strides, writeable=False
    )
    return np.array(view, order='C')


class _Dict(dict):
  """Dict that ignores the attributes which PyTorch adds to some dicts."""

  def __setstate__(self, state):
    pass


class _Array:
  """Replacement for a NumPy array while it is being assembled."""

  def __init__(self):
    self.value = np.zeros(0, np.float32)

  def __setstate__(self, state):
    _, shape, dtype, is_fortran, data = state
    self.value = _array(data, dtype, shape, 'F' if is_fortran else 'C')


def load(file: BinaryIO, source: str) -> Any:
  """The next object of a file, which is left after it; `source` is its path.

  Returns:
    Numbers, strings and containers, `LazyTensor` for PyTorch tensors, and NumPy
    arrays.

  Raises:
    UnsafePickleError: the file holds anything else; nothing of it was run.
    UserError: the file is corrupt.
  """
  try:
    pickle_cost.check(file)
    return _unwrapped(_Unpickler(file, source).load(), {})
  except UnsafePickleError:
    raise
  # A corrupt pickle can fail in any way.
  except Exception as error:
    raise UserError(
      f'{source} cannot be read; it may be corrupt or truncated: '
      f'{type(error).__name__}: {error}',
      path=source,
    ) from error


class _Unpickler(pickle.Unpickler):
  """Unpickler whose program reaches nothing but replacements."""

  def __init__(self, file, source):
    # Pickles of Python 2 store bytes as strings.
    super().__init__(file, encoding='latin1')
    self._source = source
    self._known = _replacements()

  def find_class(self, module, name):
    if (module, name) in self._known:
      return self._known[module, name]
    raise UnsafePickleError(
      f'{self._source} is refused, and nothing of it was run: it contains '
      f'{module}.{name}, which is neither a tensor nor a container. If the '
      'file is your own, save only its state dict: '
      'torch.save(model.state_dict(), FILE).',
      path=self._source,
      item=f'{module}.{name}',
    )

  def persistent_load(self, pid):
    match pid:
      case ('storage', str(kind), str(key), _, int(size), *view):
        if kind in _STORAGES and view in ([], [None]):
          return Storage(_STORAGES[kind], key, size)
    raise UserError('unknown storage')


def _replacements() -> dict[tuple[str, str], Any]:
  """New replacements by admitted name; a pickle may alter them."""
  known = {
    ('collections', 'OrderedDict'): _Dict,
    ('collections', 'Counter'): _Dict,
    ('torch._utils', '_rebuild_tensor'): _rebuild_tensor,
    ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
    ('torch._utils', '_rebuild_parameter'): lambda data, *rest: data,
    ('torch', 'Size'): tuple,
    ('numpy', 'dtype'): _Dtype,
    ('_codecs', 'encode'): _encode,
  }
  for module in ('builtins', '__builtin__'):
    known |= {(module, 'set'): set, (module, 'frozenset'): frozenset}
  # NumPy moved its core in version 2.
  for core in ('numpy.core', 'numpy._core'):
    known[f'{core}.multiarray', '_reconstruct'] = lambda *unused: _Array()
    known[f'{core}.multiarray', 'scalar'] = _scalar
    known[f'{core}.numeric', '_frombuffer'] = _frombuffer
  known = {key: _wrapped(function) for key, function in known.items()}
  known['numpy', 'ndarray'] = 'numpy.ndarray'
  for name in _STORAGES:
    known['torch', name] = name
  return known


def _wrapped(function):
  return lambda *args: function(*args)


def _rebuild_tensor(storage, offset, shape, strides, *unused):
  if not isinstance(storage, Storage):
    raise UserError('tensor without a storage')
  return LazyTensor(storage, offset, tuple(shape), tuple(strides))


class _Dtype:
  """Replacement for a NumPy type; numbers only."""

  def __init__(self, name, *unused):
    self.dtype = np.dtype(name if isinstance(name, str) else object)
    if self.dtype.kind not in _KINDS:
      raise UserError(f'array of {self.dtype.name}, wanted numbers')

  def __setstate__(self, state):
    if state[1] in ('<', '>'):
      self.dtype = self.dtype.newbyteorder(state[1])


def _array(data, dtype, shape, order):
  if isinstance(data, str):  # Written by Python 2.
    data = data.encode('latin1')
  if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray):
    raise UserError('array that does not consist of numbers')
  return np.frombuffer(data, dtype.dtype).reshape(tuple(shape), order=order)


def _frombuffer(data, dtype, shape, order):
  result = _Array()
  result.value = _array(data, dtype, shape, order)
  return result


def _scalar(dtype, data):
  return _frombuffer(data, dtype, (), 'C')


def _encode(text, encoding):
  if encoding not in ('latin1', 'latin-1'):
    raise UserError('bytes that are not encoded as latin1')
  return text.encode('latin1')


def _unwrapped(found, done):
  """Tree with NumPy arrays; `done` are results by the id of the container."""
  if isinstance(found, _Array):
    return found.value
  if not isinstance(found, dict | list | tuple):
    return found
  if id(found) not in done:
    done[id(found)] = None  # While its content is unwrapped.
    if isinstance(found, dict):
      result = {key: _unwrapped(x, done) for key, x in found.items()}
    else:
      result = type(found)(_unwrapped(x, done) for x in found)
    done[id(found)] = result
  elif done[id(found)] is None:
    raise UserError('container that contains itself')
  return done[id(found)]
