"""Work of a compiled program by stage of the model, from its HLO text.

The compiler keeps the scopes that an operation was traced in, and names a
kernel that it made of several operations after its last: what it fused across
stages counts where it ends.
"""

import collections
import functools
import re
from collections.abc import Mapping
from typing import Any

from maskrcnn_jax.planning import chips, products, program_text, traffic

COLLECTIVES = 'collectives'
COPIES = 'copies without a name'
UNNAMED = 'others without a name'
OTHER = 'other scopes'
# Stages in the order of a step, by what their scopes have; the first counts.
# Parameters and their momentum have names of their own, as in
# `state.params['fpn']`, also where the compiler transposes them.
_STAGES = (
  (r'opt_state|\boptimizer\b', 'optimizer'),
  (r'\bMaskRCNN\.pyramid/(?!backbone|fpn)|\bimages\b', 'images'),
  (r'\bbackbone\W+(?:norm|stage)(\d)', r'backbone stage\1'),
  (r'\bbackbone\W+block', 'backbone blocks'),
  (r'\bbackbone\b', 'backbone stem'),
  (r'\bfpn\b', 'FPN'),
  (r'\brpn_head\b', 'RPN head'),
  (r'\brpn_targets\b', 'RPN targets'),
  (r'\brpn_losses\b', 'RPN losses'),
  (r'\b_propose\b', 'proposals'),
  (r'\bMaskRCNN\.sample\b', 'sampling'),
  (r'\balign(\d+)\b', r'RoIAlign \1x\1'),
  (r'\bMaskRCNN\.align', 'RoIAlign table'),
  (r'\bbox_head\b', 'box head'),
  (r'\bmask_head\b', 'mask head'),
  (r'\bbox_targets\b', 'box targets'),
  (r'\bmask_targets\b', 'mask targets'),
  (r'\bbox_losses\b', 'box losses'),
  (r'\bmask_loss\b', 'mask loss'),
  (r'\bweight_decay\b', 'weight decay'),
  (r'\bMaskRCNN\.detect\b', 'detections'),
)
_ORDER = (
  *('images', 'backbone stem', *(title for _, title in _STAGES[2:])),
  *('optimizer', COLLECTIVES, OTHER, COPIES, UNNAMED),
)
# Instructions that are counted, wherever they are.
KINDS = (
  *('fusion', 'custom-call', 'copy', 'copy-start', 'gather', 'scatter'),
  *('sort', 'while', 'all-reduce'),
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_INDEX = re.compile(r'\bindex=(\d+)')
# Their result is their operand, elsewhere or in another layout.
_SAME = re.compile(r'bitcast|copy|copy-start|.*-done|get-tuple-element')
_FIELDS = (
  *('kernels', 'bytes', 'on_chip_bytes', 'flops', 'cycles', 'without_cycles'),
)


def breakdown(
  text: str, chip: chips.Chip | chips.Gpu | None = None
) -> dict[str, Any]:
  """Work by stage, and the number of instructions.

  Args:
    text: of `jax.stages.Compiled.as_text`.
    chip: for times; None: there are none.

  Returns:
    instructions: their number in the text, for `KINDS`, and `kernels`, the
      runs in a step.
    stages: a dict for each stage and pass, in the order of a step. `stage`;
      `pass`: forward, backward, or '' outside the differentiated function;
      `kernels`; `bytes` of main memory, whose sum is `traffic.accessed_bytes`;
      `on_chip_bytes`; `flops` of products; `cycles`, the estimate of the
      compiler for TPUs, and `without_cycles`, kernels that have none (these
      three are None for other platforms); `least_bytes`, see `_least_bytes`;
      `seconds`, the longer of `flops` at the peak and `bytes` at the
      bandwidth; `floor_seconds`, the same of `least_bytes`; `gap_seconds`,
      their difference.
  """
  entry, computations = program_text.read(text)
  stages = collections.defaultdict(collections.Counter)
  find_stage = functools.partial(
    stage_of, computations=computations, readers=_readers(computations)
  )
  for kernel in traffic.kernels(entry, computations):
    instruction = kernel.instruction
    cycles = _CYCLES.search(instruction.line)
    flops = products.operations(instruction, kernel.types, computations)
    values = 1, kernel.bytes, kernel.on_chip_bytes, flops
    values += int(cycles[1]) if cycles else 0, not cycles
    stages[find_stage(instruction)].update(
      {k: x * kernel.times for k, x in zip(_FIELDS, values)}
    )
  least = _least_bytes(computations.get(entry, {}), find_stage)
  has_cycles = any(x['cycles'] for x in stages.values())
  rows = []
  for key in sorted(stages, key=_position):
    row = dict(zip(('stage', 'pass'), key)) | dict.fromkeys(_FIELDS, 0)
    row |= stages[key]
    row['least_bytes'] = min(least.get(key, 0), row['bytes'])
    if not has_cycles:
      row |= dict.fromkeys(('on_chip_bytes', 'cycles', 'without_cycles'))
    rows.append(row | _seconds(row, chip))
  return {'instructions': _counts(computations, rows), 'stages': rows}


def _readers(computations) -> dict[str, list[program_text.Instruction]]:
  """Instructions that have a name among their operands, for every name."""
  readers = collections.defaultdict(list)
  for instructions in computations.values():
    for instruction in instructions.values():
      for name in instruction.operands:
        readers[name].append(instruction)
  return readers


def _counts(computations, rows) -> dict[str, int]:
  number = collections.Counter(
    x.opcode.replace('all-reduce-start', 'all-reduce')
    for instructions in computations.values()
    for x in instructions.values()
  )
  kernels = sum(row['kernels'] for row in rows)
  return {kind: number[kind] for kind in KINDS} | {'kernels': kernels}


def stage_of(
  instruction: program_text.Instruction,
  computations: program_text.Computations,
  readers: Mapping[str, list[program_text.Instruction]] = {},
) -> tuple[str, str]:
  """Stage and pass of an instruction, see `breakdown`.

  Args:
    instruction: of the program.
    computations: of the program, see `program_text.read`.
    readers: of every name; one without scopes, such as the prefetch of an
      array, belongs to the first that has some.
  """
  kind = instruction.opcode
  if kind.removesuffix('-start') in program_text.KINDS:
    return COLLECTIVES, ''
  source = _source(instruction, computations)
  seen, near = set(), [instruction]
  while near and not source:
    near = [
      x for y in near for x in readers.get(y.name, ()) if x.name not in seen
    ]
    seen.update(x.name for x in near)
    sources = (_source(x, computations) for x in near if x.opcode != 'tuple')
    source = next(filter(None, sources), '')
  if not source:
    return (COPIES if kind.startswith('copy') else UNNAMED), ''
  is_backward = 'transpose(' in source
  direction = 'backward' if is_backward else 'forward' * ('jvp(' in source)
  for pattern, title in _STAGES:
    found = re.search(pattern, source)
    if found:
      return found.expand(title), direction
  return OTHER, direction


def _source(instruction, computations) -> str:
  """Scopes of an instruction: its own, else the last in what it calls."""
  inner = [
    x.source
    for name in program_text.called(instruction)
    for x in computations.get(name, {}).values()
  ]
  source = next(filter(None, [instruction.source, *reversed(inner)]), '')
  return source.partition(';')[0]


def _position(key) -> tuple:
  """Rank of a stage and pass in a step; stages of a kind by their number."""
  stage, direction = key
  titles = [re.sub(r'\\1', r'\\d+', title) for title in _ORDER]
  found = [i for i, x in enumerate(titles) if re.fullmatch(x, stage)]
  return found[0], len(stage), stage, direction == 'backward'


def _seconds(row, chip) -> dict[str, float | None]:
  names = 'seconds', 'floor_seconds', 'gap_seconds'
  if chip is None:
    return dict.fromkeys(names)
  flops, bandwidth = (
    x / chip.devices for x in (chip.flops, chip.memory_bandwidth)
  )
  compute = row['flops'] / flops
  seconds = max(compute, row['bytes'] / bandwidth)
  floor = max(compute, row['least_bytes'] / bandwidth)
  return dict(zip(names, (seconds, floor, seconds - floor)))


def _least_bytes(instructions, find_stage) -> dict[tuple[str, str], int]:
  """Bytes of the arrays that a stage takes from others or leaves to others.

  Those in main memory are meant: a TPU keeps some on its chip. Each counts once
  for the stage that makes it and once for every stage that reads it, as a
  whole. What a stage makes for itself counts nothing, and copies are left out:
  their readers read the original.

  Args:
    instructions: of the entry computation.
    find_stage: instruction -> stage and pass.
  """
  moved = collections.defaultdict(dict)
  for name, instruction in instructions.items():
    kind, readers = instruction.opcode, []
    if kind != 'tuple' and not _SAME.fullmatch(kind):
      readers += [(find_stage(instruction), x) for x in instruction.operands]
    if instruction.is_root:
      readers.append((None, name))
    for reader, operand in readers:
      for *value, num_bytes in _values(operand, None, instructions):
        origin = instructions[value[0]]
        is_input = origin.opcode in ('parameter', 'constant')
        maker = None if is_input else find_stage(origin)
        for stage in {maker, reader} if maker != reader else ():
          moved[stage][tuple(value)] = num_bytes
  return {stage: sum(values.values()) for stage, values in moved.items()}


def _values(name, index, instructions):
  """Instruction, index of its result and bytes of the arrays behind a name."""
  instruction = instructions.get(name)
  if instruction is None:
    return []
  kind, operands = instruction.opcode, instruction.operands
  if kind == 'tuple':
    chosen = operands if index is None else [operands[index]]
    return [x for y in chosen for x in _values(y, None, instructions)]
  own_size = program_text.size(instruction.type)
  if kind == 'get-tuple-element':
    index = int(_INDEX.search(instruction.line)[1])
    own_size = _main_size(instruction)
  elif not _SAME.fullmatch(kind) or not operands:
    return [(name, index, _main_size(instruction))]
  found = _values(operands[0], index, instructions)
  # Of the results of an instruction the name is one.
  if len(found) == 1:
    *value, num_bytes = found[0]
    found = [(*value, min(num_bytes, own_size))]
  return found


def _main_size(instruction) -> int:
  """Bytes of the result that are not on chip."""
  sizes = program_text.array_sizes(instruction.type)
  return sum(num_bytes for num_bytes, is_on_chip in sizes if not is_on_chip)
