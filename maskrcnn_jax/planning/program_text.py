"""Instructions and collectives of a compiled program; its memory.

The text has computations of one instruction a line,
`%name = type opcode(%operand, ...), attribute=...`. Lines of another form are
skipped.
"""

import dataclasses
import math
import re
from typing import Any

KINDS = (
  'all-gather',
  'all-reduce',
  'all-to-all',
  'collective-broadcast',
  'collective-permute',
  'ragged-all-to-all',
  'reduce-scatter',
)
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.-]+) (?:\(.*)?\{$')
# Name, type, opcode and operands, once layouts are removed.
_INSTRUCTION = re.compile(
  r'\s+(?:ROOT )?%?([\w.-]+) = (\S.*?) ([a-z][\w-]*)\(([^)]*)'
)
_LAYOUT = re.compile(r'\{[^{}]*\}')
# A TPU's layout has tiles; the memory S(1) of a GPU is no other than S(0).
_IS_ON_CHIP = re.compile(r':T\(.*S\([1-9]\d*\)')
ON_CHIP = '@'
_ARRAY = re.compile(r'\b([a-z]+\d*\w*)\[([\d,<=]*)\]')
_CALLED = re.compile(
  r'\b(?:calls|to_apply|true_computation|false_computation|body|condition|'
  r'branch_computations|called_computations)=(\{[^}]*\}|%?[\w.-]+)'
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One instruction that moves data between devices.

  Attributes:
    kind: of `KINDS`.
    bytes: of the whole array on one device: what an all-reduce adds up, what an
      all-gather leaves, what other kinds take.
    source: `op_name` of the instruction; '' if there is none.
    times: runs in a step; None: in a loop of unknown length.
  """

  kind: str
  bytes: int
  source: str
  times: int | None


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of a computation.

  Attributes:
    name: of its own in the program.
    opcode: its operation.
    type: of its result; of the layouts, `ON_CHIP` alone is left.
    operands: names of instructions of the same computation.
    line: as printed.
  """

  name: str
  opcode: str
  type: str
  operands: list[str]
  line: str

  @property
  def is_root(self) -> bool:
    """Whether it is the result of its computation."""
    return self.line.lstrip().startswith('ROOT ')

  @property
  def source(self) -> str:
    """`op_name`: the scopes that it comes from; '' if there is none."""
    found = _OP_NAME.search(self.line)
    return found[1] if found else ''


# Instructions by name, for every computation.
Computations = dict[str, dict[str, Instruction]]


def find_collectives(text: str) -> list[Collective]:
  """The collectives that a program runs, in the order of its computations.

  Args:
    text: of `jax.stages.Compiled.as_text`.

  Raises:
    ValueError: the text has no entry computation.
  """
  entry, computations = read(text)
  if entry is None:
    raise ValueError('The text has no line `ENTRY ... {`.')
  found = []
  _visit(entry, 1, computations, found)
  return found


def called(instruction: Instruction) -> list[str]:
  """Names of the computations that an instruction calls."""
  found = _CALLED.findall(instruction.line)
  return [name for names in found for name in re.findall(r'[\w.-]+', names)]


def trips(instruction: Instruction) -> int | None:
  """Number of rounds of a loop, where it is known."""
  found = _TRIPS.search(instruction.line)
  return int(found[1]) if found else None


def _visit(name, times, computations, found) -> None:
  """Adds the collectives of a computation that runs `times` in a step."""
  instructions = computations.get(name, {})
  for instruction in instructions.values():
    kind = instruction.opcode.removesuffix('-start')
    is_start = kind != instruction.opcode
    if kind in KINDS:
      payload = _payload(kind, instruction, instructions, is_start)
      found.append(Collective(kind, payload, instruction.source, times))
      continue  # The computation that it applies adds two numbers.
    inner = times
    if kind == 'while':
      rounds = trips(instruction)
      known = rounds is not None and times is not None
      inner = times * rounds if known else None
    for callee in called(instruction):
      _visit(callee, inner, computations, found)


def _payload(kind, instruction, instructions, is_start) -> int:
  operands = sum(
    size(instructions[x].type)
    for x in instruction.operands
    if x in instructions
  )
  if kind == 'all-gather':
    # The asynchronous form also returns its operands.
    return size(instruction.type) - (operands if is_start else 0)
  return operands or size(instruction.type)


def array_sizes(type_: str) -> list[tuple[int, bool]]:
  """Bytes of every array in the text of a type; whether it is on chip."""
  found = [x.end() for x in _ARRAY.finditer(type_)]
  starts = [0, *found[:-1]]
  return [
    (size(type_[start:end]), type_[end:].startswith(ON_CHIP))
    for start, end in zip(starts, found)
  ]


def size(type_: str) -> int:
  """Bytes of the arrays in the text of a type, without padding of layouts."""
  total = 0
  for dtype, sides in arrays(type_):
    number = re.match(r'[a-z]+(\d+)', dtype)  # As in f32, bf16, u8, f8e4m3fn.
    bits = int(number[1]) if number else 8 * (dtype == 'pred')
    total += -(-bits * math.prod(sides) // 8)
  return total


def arrays(type_: str) -> list[tuple[str, list[int]]]:
  """Data type and sides of every array in the text of a type."""
  found = [
    (dtype, sides.replace('<=', '').split(','))
    for dtype, sides in _ARRAY.findall(type_)
  ]
  return [(dtype, [int(x) for x in sides if x]) for dtype, sides in found]


def read(text: str) -> tuple[str | None, Computations]:
  """Name of the entry, and the instructions of each computation, by name."""
  entry, computations, current = None, {}, {}
  for line in text.splitlines():
    if not line.startswith(' '):
      header = _COMPUTATION.match(line)
      if header:
        current = computations.setdefault(header[2], {})
        entry = header[2] if header[1] else entry
      continue
    found = _INSTRUCTION.match(_LAYOUT.sub(_memory_space, line))
    if found:
      name, type_, opcode, operands = found.groups()
      names = re.findall(r'%([\w.-]+)', operands)
      current[name] = Instruction(name, opcode, type_, names, line)
  return entry, computations


def _memory_space(layout) -> str:
  return ON_CHIP if _IS_ON_CHIP.search(layout[0]) else ''


def summary(collectives: list[Collective]) -> list[dict]:
  """Collectives grouped by kind, source and number of runs.

  Returns:
    Dicts of `kind`, `source`, `times`, `count` of instructions and `bytes` of
    all runs in a step; of a single run where `times` is None. Largest first.
  """
  groups = {}
  for x in collectives:
    count, total = groups.get((x.kind, x.source, x.times), (0, 0))
    total += x.bytes * (x.times or 1)
    groups[x.kind, x.source, x.times] = (count + 1, total)
  names = ('kind', 'source', 'times', 'count', 'bytes')
  rows = [dict(zip(names, (*key, *sums))) for key, sums in groups.items()]
  return sorted(rows, key=lambda row: -row['bytes'])


def sent_bytes(rows: list[dict], num_devices: int) -> float:
  """Bytes that a device sends in a step, along rings of all devices.

  An all-reduce goes round twice, to reduce and to broadcast; other kinds go
  round once. Loops of unknown length are skipped.

  Args:
    rows: see `summary`.
    num_devices: in a ring.
  """
  rounds = sum(
    row['bytes'] * (2 if row['kind'] == 'all-reduce' else 1)
    for row in rows
    if row['times'] is not None
  )
  return rounds * (num_devices - 1) / num_devices


def memory(compiled: Any) -> dict[str, int]:
  """Bytes of a `jax.stages.Compiled` on one device, by what they hold.

  Returns:
    `arguments`, `outputs`, `aliased` (outputs in the memory of arguments),
    `temporaries`, `program`; `needed`, all that is allocated while it runs;
    `least_moved`, arguments and outputs, which must be read and written;
    `peak`, in use at once without the program, or None.
  """
  analysis = compiled.memory_analysis()
  memory = {
    'arguments': analysis.argument_size_in_bytes,
    'outputs': analysis.output_size_in_bytes,
    'aliased': analysis.alias_size_in_bytes,
    'temporaries': analysis.temp_size_in_bytes,
    'program': analysis.generated_code_size_in_bytes,
  }
  return memory | {
    'needed': sum(memory.values()) - 2 * memory['aliased'],
    'least_moved': memory['arguments'] + memory['outputs'],
    'peak': getattr(analysis, 'peak_memory_in_bytes', None),
  }
