"""Tensors and containers out of pickles, of which nothing is executed.

A pickle is a program that names functions and calls them. Here it gets none but
stand-ins of ours, for the few names that tensors of PyTorch, arrays of NumPy
and containers are made of. The first other name ends the reading.
"""

import dataclasses
import pickle
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from maskrcnn_jax.errors import UserError

# Storages of PyTorch by the name of their class.
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
# Numbers of NumPy that an array may hold.
_KINDS = 'biuf'


class UnsafePickleError(UserError):
  """A pickle names something that is neither a tensor nor a container."""


@dataclasses.dataclass(frozen=True)
class Storage:
  """The memory of tensors, somewhere else in the file.

  Attributes:
    dtype: of its numbers.
    key: names it in the file.
    size: how many numbers it has.
  """

  dtype: np.dtype
  key: str
  size: int


@dataclasses.dataclass(frozen=True)
class LazyTensor:
  """A tensor whose storage is not read yet.

  Attributes:
    storage: that it is a view of.
    offset: of its first number.
    shape: of the tensor.
    strides: in numbers.
  """

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def view(self, memory: np.ndarray) -> np.ndarray:
    """The tensor as a copy out of its storage.

    Args:
      memory: the numbers of the storage, `[size]`.

    Raises:
      ValueError: the tensor reaches beyond its storage.
    """
    numbers = (self.offset, *self.shape, *self.strides)
    whole = all(isinstance(x, int) and x >= 0 for x in numbers)
    if not whole or len(self.shape) != len(self.strides):
      raise UserError(
        f'A tensor has the offset {self.offset}, shape {self.shape} and '
        f'strides {self.strides}.'
      )
    count = int(np.prod(self.shape, dtype=object))
    last = self.offset + sum(
      (size - 1) * stride for size, stride in zip(self.shape, self.strides)
    )
    if count and (last >= memory.size or count > memory.size):
      raise UserError(
        f'A tensor of the shape {self.shape} reaches beyond its storage of '
        f'{memory.size} numbers.'
      )
    if not count:
      return np.zeros(self.shape, memory.dtype)
    strides = [stride * memory.itemsize for stride in self.strides]
    view = np.lib.stride_tricks.as_strided(
      memory[self.offset :], self.shape, strides, writeable=False
    )
    return np.array(view, order='C')


class _Dict(dict):
  """A dict, without the attributes that PyTorch hangs on some of them."""

  def __setstate__(self, state):
    pass


class Array:
  """Stands for a NumPy array while its parts are put together."""

  def __init__(self):
    self.value = np.zeros(0, np.float32)

  def __setstate__(self, state):
    _, shape, dtype, is_fortran, data = state
    self.value = _array(data, dtype, shape, 'F' if is_fortran else 'C')


def load(file: BinaryIO, source: str) -> Any:
  """The next object of a file.

  Args:
    file: open for reading; afterwards it is behind the object.
    source: of the file, for errors.

  Returns:
    Numbers, texts and containers; `LazyTensor` for tensors of PyTorch, NumPy's
    own arrays for its arrays.

  Raises:
    UnsafePickleError: it has something else; nothing of it was run.
    ValueError: it is damaged.
  """
  unpickler = _Unpickler(file, source)
  try:
    return _finished(unpickler.load(), {})
  except UnsafePickleError:
    raise
  # Whatever a program of nonsense makes of an interpreter.
  except Exception as error:
    raise UserError(
      f'{source} cannot be read, it may be damaged or not wholly copied: '
      f'{type(error).__name__}: {error}'
    ) from error


class _Unpickler(pickle.Unpickler):
  """An unpickler whose program can reach nothing but stand-ins."""

  def __init__(self, file, source):
    # Bytes of Python 2 are texts in its pickles.
    super().__init__(file, encoding='latin1')
    self._source = source
    self._known = _stand_ins()

  def find_class(self, module, name):
    try:
      return self._known[module, name]
    except KeyError:
      pass
    raise UnsafePickleError(
      f'{self._source} names {module}.{name}, which is neither a tensor nor a '
      'container. It is refused, and nothing of it was run. If the file is '
      'your own, save its state dict alone: torch.save(model.state_dict(), '
      'FILE).'
    )

  def persistent_load(self, pid):
    if (
      isinstance(pid, tuple)
      and len(pid) in (5, 6)
      and pid[0] == 'storage'
      and pid[1] in _STORAGES
      and isinstance(pid[2], str)
      and isinstance(pid[4], int)
      and (len(pid) == 5 or pid[5] is None)
    ):
      return Storage(_STORAGES[pid[1]], pid[2], pid[4])
    raise UserError(f'an unknown kind of storage, {str(pid)[:80]}')


def _stand_ins() -> dict[tuple[str, str], Any]:
  """What each admitted name gets, made anew: a pickle may write into it."""
  known = {
    ('collections', 'OrderedDict'): lambda *items: _Dict(*items),
    ('collections', 'Counter'): lambda *items: _Dict(*items),
    ('torch._utils', '_rebuild_tensor'): _rebuild_tensor,
    ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
    ('torch._utils', '_rebuild_parameter'): lambda data, *rest: data,
    ('torch', 'Size'): lambda *sizes: tuple(*sizes),
    ('numpy', 'ndarray'): 'numpy.ndarray',
    ('numpy', 'dtype'): _Dtype,
    ('_codecs', 'encode'): _encode,
  }
  known = {key: _wrapped(value) for key, value in known.items()}
  for module in ('builtins', '__builtin__'):
    for name, kind in (('set', set), ('frozenset', frozenset)):
      known[module, name] = _wrapped(kind)
  # NumPy moved its core in version 2.
  for core in ('numpy.core', 'numpy._core'):
    known[f'{core}.multiarray', '_reconstruct'] = lambda *_: Array()
    known[f'{core}.multiarray', 'scalar'] = _wrapped(_scalar)
    known[f'{core}.numeric', '_frombuffer'] = _wrapped(_frombuffer)
  for name in _STORAGES:
    known['torch', name] = name
  return known


def _wrapped(function):
  return (lambda *args: function(*args)) if callable(function) else function


def _rebuild_tensor(storage, offset, shape, strides, *unused):
  if not isinstance(storage, Storage):
    raise UserError('a tensor without storage')
  return LazyTensor(storage, offset, tuple(shape), tuple(strides))


class _Dtype:
  """Stands for a type of NumPy, of plain numbers only."""

  def __init__(self, text, *unused):
    self.dtype = np.dtype(str(text))
    if self.dtype.kind not in _KINDS:
      raise UserError(f'an array of {text}, wanted numbers')

  def __setstate__(self, state):
    if state[1] in ('<', '>'):
      self.dtype = self.dtype.newbyteorder(state[1])


def _array(data, dtype, shape, order):
  if isinstance(data, str):  # Of Python 2.
    data = data.encode('latin1')
  if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray):
    raise UserError('an array that does not consist of numbers')
  return np.frombuffer(data, dtype.dtype).reshape(tuple(shape), order=order)


def _frombuffer(data, dtype, shape, order):
  result = Array()
  result.value = _array(data, dtype, shape, order)
  return result


def _scalar(dtype, data):
  return _frombuffer(data, dtype, (), 'C')


def _encode(text, encoding):
  if encoding not in ('latin1', 'latin-1'):
    raise UserError(f'bytes in {encoding}')
  return text.encode('latin1')


def _finished(found, done):
  """A tree with NumPy's arrays for what stands for them.

  Args:
    found: what was unpickled; parts of it may be there twice.
    done: what came of each part so far, by its id; None while it is at work.
  """
  if isinstance(found, Array):
    return found.value
  if not isinstance(found, dict | list | tuple):
    return found
  if id(found) not in done:
    done[id(found)] = None
    if isinstance(found, dict):
      result = {key: _finished(x, done) for key, x in found.items()}
    else:
      result = type(found)(_finished(x, done) for x in found)
    done[id(found)] = result
  elif done[id(found)] is None:
    raise UserError('a container that holds itself')
  return done[id(found)]
