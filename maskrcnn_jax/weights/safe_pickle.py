"""Unpickler of tensors and containers that executes nothing of the file.

A pickle is a program that names functions and calls them. This unpickler gives
it harmless replacements for the few names that PyTorch tensors, NumPy arrays
and containers consist of, and refuses the file at the first other name. Before
that, the size of its objects is estimated, since a pickle of 200 bytes can hold
a key that takes years to hash. Errors do not print values, which may be as big.
"""

import dataclasses
import pickle
import pickletools
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from maskrcnn_jax.errors import UserError

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
# Opcodes that keep the top of the stack, fetch what was kept, and change the
# container below their items.
_PUT = ('PUT', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE')
_GET = ('GET', 'BINGET', 'LONG_BINGET')
_FILL = ('APPEND', 'APPENDS', 'SETITEM', 'SETITEMS', 'ADDITEMS', 'BUILD')
_CONTAINERS = (pickletools.pylist, pickletools.pydict, pickletools.pyset)
# Objects handled per byte of a pickle; real files stay below 1.
_MAX_COST = 100
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
    _check_cost(file)
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


def _check_cost(file):
  """Refuses a pickle that would need far more time or memory than its size.

  Follows the stack with a cell for every object: the number of objects in it,
  each counted as often as it is reached, which bounds the time to hash or copy
  it; and whether it is a list, dict or set. Those count as one within others,
  as they cannot be hashed.
  """
  start, cost, stack, memo = file.tell(), 0, [], {}
  for opcode, argument, position in pickletools.genops(file):
    size = position - start
    if opcode.name in _PUT:
      index = len(memo) if argument is None else argument
      # The unpickler allocates a table up to the largest index.
      if index > size:
        raise UserError(f'number {index} at byte {size}')
      memo[index] = stack[-1]
      continue
    if opcode.name in _GET:
      stack.append(memo[argument])
      continue
    items, below = [], opcode.stack_before
    if pickletools.markobject in below:
      while (item := stack.pop()) is not None:
        items.append(item)
      below = below[: below.index(pickletools.markobject)]
    items += [stack.pop() for _ in below]
    filled = items.pop() if opcode.name in _FILL else None
    weight = sum(1 if is_container else n for n, is_container in items)
    cost += sum(n for n, _ in items)
    if cost > _MAX_COST * (size + _MAX_COST):
      raise UserError(f'objects that contain each other, at byte {size}')
    if filled:
      filled[0] += weight
      stack.append(filled)
    elif opcode.name == 'MARK':
      stack.append(None)
    else:
      if isinstance(argument, str | bytes):
        weight += len(argument) // _MAX_COST
      stack += [[1 + weight, x in _CONTAINERS] for x in opcode.stack_after]
  file.seek(start)


class _Unpickler(pickle.Unpickler):
  """Unpickler whose program reaches nothing but replacements."""

  def __init__(self, file, source):
    # Pickles of Python 2 store bytes as strings.
    super().__init__(file, encoding='latin1')
    self._source = source
    self._known = _replacements()

  def find_class(self, module, name):
    try:
      return self._known[module, name]
    except KeyError:
      pass
    raise UnsafePickleError(
      f'{self._source} is refused, and nothing of it was run: it contains '
      f'{module}.{name}, which is neither a tensor nor a container. If the '
      'file is your own, save only its state dict: '
      'torch.save(model.state_dict(), FILE).',
      path=self._source,
      item=f'{module}.{name}',
    )

  def persistent_load(self, pid):
    if (
      isinstance(pid, tuple)
      and len(pid) in (5, 6)
      and pid[0] == 'storage'
      and isinstance(pid[1], str)
      and pid[1] in _STORAGES
      and isinstance(pid[2], str)
      and isinstance(pid[4], int)
      and (len(pid) == 5 or pid[5] is None)
    ):
      return Storage(_STORAGES[pid[1]], pid[2], pid[4])
    raise UserError('unknown storage')


def _replacements() -> dict[tuple[str, str], Any]:
  """New replacements by admitted name; a pickle may alter them."""
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
    known[f'{core}.multiarray', '_reconstruct'] = lambda *_: _Array()
    known[f'{core}.multiarray', 'scalar'] = _wrapped(_scalar)
    known[f'{core}.numeric', '_frombuffer'] = _wrapped(_frombuffer)
  for name in _STORAGES:
    known['torch', name] = name
  return known


def _wrapped(function):
  return (lambda *args: function(*args)) if callable(function) else function


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
