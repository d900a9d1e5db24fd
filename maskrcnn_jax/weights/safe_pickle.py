"""Unpickler of tensors and containers that executes nothing of the file.

A pickle is a program for a stack machine. This machine has only the
instructions and the names that PyTorch tensors, NumPy arrays and containers
consist of, and stops at the first other one. Every instruction takes constant
time, or pays for what it copies. Errors do not print values of the file, which
may be enormous.
"""

import dataclasses
import math
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from maskrcnn_jax.errors import UserError, brief
from maskrcnn_jax.weights.budget import STEP, Budget

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
# NumPy's limit.
MAX_RANK = 64
# Kinds of NumPy types that an array may have.
_KINDS = 'biuf'
_MAX_DTYPE_NAME = _MAX_ARGUMENTS = 8
_MAX_NAME_SHOWN = 100
# Keys of dicts whose hashes a file cannot choose to be equal.
_MAX_KEY = 2**63
_MARK = object()


class UnsafePickleError(UserError):
  """A pickle names something besides tensors and containers: `item`."""


class Unused:
  """Replacement for what no state dict needs, such as a set."""

  def __init__(self, *_):
    pass


@dataclasses.dataclass(frozen=True)
class Storage:
  """Memory of tensors, stored under `key` elsewhere in the file.

  `size` is the number of elements.
  """

  dtype: np.dtype
  key: str
  size: int


@dataclasses.dataclass(frozen=True, eq=False)
class LazyTensor:
  """Tensor whose storage has not been read yet.

  `offset` and `strides` are in elements of the storage.
  """

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def view(self, memory: np.ndarray) -> np.ndarray:
    """The tensor, a view of the elements of its storage, `[size]`.

    Raises:
      UserError: the tensor does not lie within its storage.
    """
    numbers = (self.offset, *self.shape, *self.strides)
    whole = all(isinstance(x, int) and x >= 0 for x in numbers)
    if not whole or not len(self.shape) == len(self.strides) <= MAX_RANK:
      raise UserError('the tensor has an invalid offset, shape or strides')
    count = math.prod(self.shape)
    last = self.offset + sum(
      (size - 1) * stride for size, stride in zip(self.shape, self.strides)
    )
    if count and (last >= memory.size or count > memory.size):
      raise UserError(
        f'the tensor of shape {self.shape} exceeds its storage of '
        f'{memory.size} elements'
      )
    if not count:
      return np.zeros(self.shape, memory.dtype)
    strides = [stride * memory.itemsize for stride in self.strides]
    return np.lib.stride_tricks.as_strided(
      memory[self.offset :], self.shape, strides, writeable=False
    )


class Array:
  """NumPy array; `value` is None until it is assembled."""

  value: np.ndarray | None = None


class _Dtype:
  """NumPy type of numbers."""

  def __init__(self, name):
    is_short = isinstance(name, str) and len(name) <= _MAX_DTYPE_NAME
    self.dtype = np.dtype(name if is_short else object)
    if self.dtype.kind not in _KINDS:
      raise UserError(f'array of {self.dtype.name}, wanted numbers')


@dataclasses.dataclass(frozen=True)
class _Function:
  call: Callable


def load(file: BinaryIO, budget: Budget) -> tuple[Any, dict[str, Storage]]:
  """The next object of a file, and storages by key; the file is left after it.

  The object consists of numbers, strings, containers, `LazyTensor`, `Array` and
  `Unused`. The file's `read` must not allocate more than there is (`BytesIO`).

  Raises:
    UnsafePickleError: the file holds anything else; nothing of it was run.
    UserError: the budget is too small, or an instruction is wrong.
    Exception: a corrupt pickle can fail in any way.
  """
  machine = _Machine(budget)
  for instruction, argument, _ in pickletools.genops(file):
    budget.pay(STEP)
    if push := _PUSHING.get(instruction.name):
      machine.stack.append(push(machine, argument))
    elif execute := _OTHERS.get(instruction.name):
      execute(machine, argument)
    else:
      raise UserError(f'it has the instruction {instruction.name}')
  return machine.stack.pop(), machine.storages


class _Machine:
  """Stack, memo and storages of a program."""

  def __init__(self, budget):
    self.stack, self.storages = [], {}
    self.memo, self._budget = {}, budget
    self._functions = {
      'collections OrderedDict': self._copied,
      'collections Counter': self._copied,
      'torch._utils _rebuild_tensor': _rebuild_tensor,
      'torch._utils _rebuild_tensor_v2': _rebuild_tensor,
      'torch._utils _rebuild_parameter': lambda data, *_: data,
      'torch Size': lambda sides=(): sides,
      'numpy dtype': lambda name, *_: _Dtype(name),
      '_codecs encode': self._encode,
    }
    for module in ('builtins', '__builtin__'):
      for name in ('set', 'frozenset'):
        self._functions[f'{module} {name}'] = Unused
    # NumPy moved its core in version 2.
    for core in ('numpy.core', 'numpy._core'):
      self._functions |= {
        f'{core}.multiarray _reconstruct': lambda *_: Array(),
        f'{core}.multiarray scalar': lambda dtype, data: self._array(
          data, dtype, (), 'C'
        ),
        f'{core}.numeric _frombuffer': self._array,
      }

  def pop(self, count):
    items = self.stack[-count:]
    if len(items) < count or any(x is _MARK for x in items):
      raise UserError('its stack is too short')
    del self.stack[-count:]
    return items

  def items(self):
    """Pops the items above the last mark, and the mark."""
    items = []
    while (item := self.stack.pop()) is not _MARK:
      items.append(item)
    return items[::-1]

  def append(self, items):
    """Appends to the list on the stack."""
    if type(self.stack[-1]) is not list:
      raise UserError('it appends to something that is not a list')
    self.stack[-1].extend(items)

  def set_items(self, items):
    """Sets items of the dict on the stack, which is below `items`."""
    if type(self.stack[-1]) is not dict:
      raise UserError('it sets items of something that is not a dict')
    self.stack[-1].update(self.dict(items))

  def dict(self, items):
    """A dict of keys and values, which alternate."""
    made = {}
    for key, value in zip(items[::2], items[1::2], strict=True):
      if isinstance(key, str | bytes):
        self._budget.pay(len(key))
      elif not isinstance(key, int | float) or abs(key) >= _MAX_KEY:
        key = Unused()  # It names no tensor.
      made[key] = value
    return made

  def _copied(self, items=()):
    """A dict of the items of another, or of (key, value) pairs."""
    self._budget.pay(STEP * len(items))
    pairs = items.items() if isinstance(items, dict) else items
    return self.dict([x for key, value in pairs for x in (key, value)])

  def call(self, function, arguments):
    is_call = isinstance(function, _Function)
    if not is_call or not _is_short(arguments, _MAX_ARGUMENTS):
      raise UserError('it calls something that is not a function')
    return function.call(*arguments)

  def find(self, name):
    if name in self._functions:
      return _Function(self._functions[name])
    module, _, kind = name.partition(' ')
    if module == 'torch' and kind in _STORAGES:
      return _STORAGES[kind]
    if name == 'numpy ndarray':
      return Unused()
    item = name.replace(' ', '.', 1)
    if len(item) > _MAX_NAME_SHOWN or not item.isprintable():
      item = brief(item)
    raise UnsafePickleError(
      f'it is refused, and nothing of it was run: it contains {item}, which is '
      'neither a tensor nor a container. If the file is your own, save only '
      'its state dict: torch.save(model.state_dict(), FILE).',
      item=item,
    )

  def storage(self, found):
    match found if _is_short(found, _MAX_ARGUMENTS) else None:
      case ('storage', np.dtype() as dtype, str(key), _, int(size), *view):
        if view in ([], [None]):
          self.storages[key] = Storage(dtype, key, size)
          return self.storages[key]
    raise UserError('it has an unknown storage')

  def set_state(self, state):
    target = self.stack[-1]
    if isinstance(target, Array):
      _, shape, dtype, is_fortran, data = state
      order = 'F' if is_fortran else 'C'
      target.value = self._array(data, dtype, shape, order).value
    elif isinstance(target, _Dtype):
      if state[1] in ('<', '>'):
        target.dtype = target.dtype.newbyteorder(state[1])
    elif type(target) is not dict:  # PyTorch adds attributes to some dicts.
      raise UserError('it changes something after it was made')

  def _array(self, data, dtype, shape, order):
    if isinstance(data, str):  # Written by Python 2.
      data = self._encode(data, 'latin1')
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray):
      raise UserError('it has an array that does not consist of numbers')
    array = Array()
    flat = np.frombuffer(data, dtype.dtype)
    array.value = flat.reshape(_sides(shape), order=order)
    return array

  def _encode(self, text, encoding):
    if encoding not in ('latin1', 'latin-1'):
      raise UserError('it has bytes that are not encoded as latin1')
    self._budget.pay(len(text))
    return text.encode('latin1')


def _rebuild_tensor(storage, offset, shape, strides, *_):
  if not isinstance(storage, Storage):
    raise UserError('it has a tensor without a storage')
  return LazyTensor(storage, offset, _sides(shape), _sides(strides))


def _is_short(items, most):
  return isinstance(items, tuple | list) and len(items) <= most


def _sides(sides):
  if not _is_short(sides, MAX_RANK):
    raise UserError(f'it has a tensor of rank over {MAX_RANK}')
  return tuple(sides)


# Instructions that push what they return, by the machine and the argument.
_PUSHING = {
  **{
    x.name: lambda machine, argument: argument
    for x in pickletools.opcodes
    if x.arg and x.stack_after and not x.stack_before
    if not x.name.startswith(('EXT', 'PERSID'))
  },
  **dict.fromkeys(
    ('GET', 'BINGET', 'LONG_BINGET'), lambda machine, row: machine.memo[row]
  ),
  'NONE': lambda *_: None,
  'NEWTRUE': lambda *_: True,
  'NEWFALSE': lambda *_: False,
  'MARK': lambda *_: _MARK,
  'DUP': lambda machine, _: machine.stack[-1],
  'EMPTY_TUPLE': lambda *_: (),
  'TUPLE1': lambda machine, _: tuple(machine.pop(1)),
  'TUPLE2': lambda machine, _: tuple(machine.pop(2)),
  'TUPLE3': lambda machine, _: tuple(machine.pop(3)),
  'TUPLE': lambda machine, _: tuple(machine.items()),
  'EMPTY_LIST': lambda *_: [],
  'LIST': lambda machine, _: machine.items(),
  'EMPTY_DICT': lambda *_: {},
  'DICT': lambda machine, _: machine.dict(machine.items()),
  'EMPTY_SET': lambda *_: Unused(),
  'FROZENSET': lambda machine, _: Unused(machine.items()),
  'GLOBAL': lambda machine, name: machine.find(name),
  'STACK_GLOBAL': lambda machine, _: machine.find(' '.join(machine.pop(2))),
  'REDUCE': lambda machine, _: machine.call(*machine.pop(2)),
  'BINPERSID': lambda machine, _: machine.storage(*machine.pop(1)),
}
_OTHERS = {
  **dict.fromkeys(('PROTO', 'FRAME', 'STOP'), lambda *_: None),
  **dict.fromkeys(
    ('PUT', 'BINPUT', 'LONG_BINPUT'),
    lambda machine, row: machine.memo.update({row: machine.stack[-1]}),
  ),
  'MEMOIZE': lambda machine, _: machine.memo.update(
    {len(machine.memo): machine.stack[-1]}
  ),
  'POP': lambda machine, _: machine.stack.pop(),
  **dict.fromkeys(('POP_MARK', 'ADDITEMS'), lambda machine, _: machine.items()),
  'APPEND': lambda machine, _: machine.append(machine.pop(1)),
  'APPENDS': lambda machine, _: machine.append(machine.items()),
  'SETITEM': lambda machine, _: machine.set_items(machine.pop(2)),
  'SETITEMS': lambda machine, _: machine.set_items(machine.items()),
  'BUILD': lambda machine, _: machine.set_state(*machine.pop(1)),
}
