"""Estimate of the time and memory that unpickling needs.

A pickle of 200 bytes can hold a key that takes years to hash: a tuple of twice
a tuple of twice a tuple, and so on.
"""

import pickletools
from typing import BinaryIO

from maskrcnn_jax.errors import UserError

# Opcodes that keep the top of the stack, fetch what was kept, and change the
# container below their items.
_PUT = ('PUT', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE')
_GET = ('GET', 'BINGET', 'LONG_BINGET')
_FILL = ('APPEND', 'APPENDS', 'SETITEM', 'SETITEMS', 'ADDITEMS', 'BUILD')
_CONTAINERS = (pickletools.pylist, pickletools.pydict, pickletools.pyset)
# Objects handled per byte of a pickle; files of PyTorch and NumPy need 2 to 4.
_MAX_COST = 100


def check(file: BinaryIO) -> None:
  """Refuses the next pickle of a file if its objects would be enormous.

  It takes time linear in the size of the pickle and leaves the file before it.
  Follows the stack with a cell for every object: the number of objects in it,
  each counted as often as it is reached, which bounds the time to hash or copy
  it; and whether it is a list, dict or set. Those count as one within others,
  as they cannot be hashed.

  Raises:
    UserError: it would need far more time or memory than its size.
  """
  start, size, cost, stack, memo = file.tell(), 0, 0, [], {}
  for opcode, argument, _ in pickletools.genops(file):
    before, size = size, file.tell() - start
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
      weight += 1 + (size - before) // _MAX_COST
      stack += [[weight, x in _CONTAINERS] for x in opcode.stack_after]
  file.seek(start)
