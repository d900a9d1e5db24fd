"""Memory traffic of a compiled program: bytes that its kernels read and write.

Each kernel reads its operands and writes its results once. Of an array that it
slices or gathers from, only what it takes counts; an array that it updates in
place counts with the update. Main memory (HBM of a GPU or TPU) and the on-chip
memory of a TPU, to which its compiler prefetches arrays, are counted apart.
"""

import dataclasses
import re
from collections.abc import Iterator

from maskrcnn_jax.planning import program_text
from maskrcnn_jax.planning.program_text import (
  Computations,
  Instruction,
  called,
  size,
)

# Opcodes that touch no memory, or whose other half counts.
_FREE = re.compile(
  r'after-all|bitcast|constant|get-tuple-element|parameter|partition-id|'
  r'replica-id|tuple|.*-done'
)
# Calls that reserve memory, or name neighbouring arrays as one.
_FREE_CALLS = re.compile(r'custom_call_target="(AllocateBuffer|ConcatBitcast)"')
_NUMBER = re.compile(r' parameter\((\d+)\)')
_TAKES = 'slice', 'dynamic-slice', 'gather'


@dataclasses.dataclass(frozen=True)
class Kernel:
  """An instruction that reads and writes memory.

  Attributes:
    instruction: of the program.
    types: of its operands.
    times: runs in a step; the body of a loop of unknown length counts once.
    bytes: of one run, in main memory.
    on_chip_bytes: of one run, in the on-chip memory of a TPU.
  """

  instruction: Instruction
  types: list[str]
  times: int
  bytes: int
  on_chip_bytes: int


def accessed_bytes(text: str) -> int:
  """Bytes of main memory that the kernels of a program read and write.

  The body of a loop of unknown length counts once.

  Args:
    text: of `jax.stages.Compiled.as_text`.
  """
  entry, computations = program_text.read(text)
  return sum(x.bytes * x.times for x in kernels(entry, computations))


def kernels(
  name: str | None, computations: Computations, times: int = 1
) -> Iterator[Kernel]:
  """The kernels of a computation and of those that it calls.

  Args:
    name: of the computation, of `computations`; None: there are none.
    computations: of the program, see `program_text.read`.
    times: runs of the computation in a step.
  """
  instructions = computations.get(name, {})
  for instruction in instructions.values():
    if instruction.opcode in ('while', 'conditional', 'call'):
      inner = times * (program_text.trips(instruction) or 1)
      for callee in called(instruction):
        yield from kernels(callee, computations, inner)
    elif not _FREE.fullmatch(instruction.opcode):
      operands = [x for x in instruction.operands if x in instructions]
      types = [instructions[x].type for x in operands]
      moved = _moved(instruction, types, computations)
      totals = (sum(x for x, where in moved if where == i) for i in (0, 1))
      yield Kernel(instruction, types, times, *totals)


def _moved(instruction, types, computations) -> list[tuple[int, bool]]:
  """Bytes of every array that is read or written, and whether it is on chip."""
  kind = instruction.opcode
  results = program_text.array_sizes(instruction.type)
  operands = [program_text.array_sizes(x) for x in types]
  if _FREE_CALLS.search(instruction.line):
    return []
  if kind in ('copy-start', 'slice-start'):
    # The source is among the results, as a whole.
    source, copied = results[:2] if kind == 'slice-start' else results[1::-1]
    return [copied, (copied[0], source[1])]
  # The operands as parameters of a computation that is this instruction alone.
  names = [str(i) for i in range(len(types))]
  body = {
    name: Instruction(name, 'parameter', type_, [], f' parameter({name})')
    for name, type_ in zip(names, types)
  }
  body['root'] = dataclasses.replace(instruction, operands=names)
  written = _written('root', body, computations)
  moved = [
    (num_bytes, is_on_chip)
    for (num_bytes, _), (_, is_on_chip) in zip(written, results)
  ]
  for name, arrays in zip(names, operands):
    read = _read(name, body, computations)
    if read is None:
      moved += arrays
    else:
      moved.append((read, arrays[0][1]))
  return moved


def _read(name, body, computations) -> int | None:
  """Bytes that a computation reads of an array; None: all of it."""
  total = 0
  for reader, x in body.items():
    for position in (i for i, y in enumerate(x.operands) if y == name):
      if x.opcode in _TAKES and position == 0:
        part = size(x.type)
      elif position == 0 and _update(x):
        # Rows that are added to are read; others that are replaced are not.
        part = size(body[_update(x)].type) if x.opcode == 'scatter' else 0
      elif x.opcode == 'bitcast':
        part = _read(reader, body, computations)
      elif x.opcode == 'fusion':
        inner = computations.get(called(x)[0], {})
        names = [k for k in inner if _number(k, inner) == position]
        part = _read(names[0], inner, computations) if names else None
      else:
        part = None
      if part is None:
        return None
      total += part
  return min(total, size(body[name].type))


def _written(name, body, computations) -> list[tuple[int, int | None]]:
  """Bytes that an instruction writes of each array of its result.

  Returns:
    For each array the bytes, and the number of the parameter of the computation
    that it updates in place, or None.
  """
  x = body[name]
  whole = [
    (num_bytes, None) for num_bytes, _ in program_text.array_sizes(x.type)
  ]
  if x.opcode == 'bitcast' and x.operands[0] in body:
    return _written(x.operands[0], body, computations)
  if _update(x):
    found = [(size(body[_update(x)].type), 0)]
  elif x.opcode == 'fusion':
    inner = computations.get(called(x)[0], {})
    roots = [k for k, y in inner.items() if y.is_root]
    found = _written(roots[0], inner, computations) if roots else []
  elif x.opcode == 'tuple':
    return [y for k in x.operands for y in _written(k, body, computations)]
  else:
    return whole
  if len(found) != len(whole):
    return whole
  # Another array than a parameter is written here, as a whole.
  numbers = [
    None if k is None else _number(x.operands[k], body) for _, k in found
  ]
  return [
    y if number is None else (num_bytes, number)
    for y, (num_bytes, _), number in zip(whole, found, numbers)
  ]


def _update(x) -> str | None:
  """The operand that an instruction writes into its first one."""
  if x.opcode == 'dynamic-update-slice':
    return x.operands[1]
  # One of several arrays counts them as a whole.
  is_single = x.opcode == 'scatter' and len(x.operands) == 3
  return x.operands[2] if is_single else None


def _number(name, body) -> int | None:
  """Number of the parameter behind a name, or None."""
  x = body[name]
  while x.opcode == 'bitcast' and x.operands[0] in body:
    x = body[x.operands[0]]
  return int(_NUMBER.search(x.line)[1]) if x.opcode == 'parameter' else None
