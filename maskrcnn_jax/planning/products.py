"""Operations of the products in a compiled program, from its HLO text.

Convolutions and matrix products of XLA, and the calls of cuDNN and cuBLAS that
replace them: two operations for every multiplication of two entries. Padding
and the zeros of dilated arrays do not count. Where a compiler splits or pads a
product, this is what it made of it.
"""

import json
import math
import re

from maskrcnn_jax.planning import program_text

_LABELS = re.compile(r'dim_labels=(\w+)_(\w+)->(\w+)')
_WINDOW = re.compile(r'window=\{([^}]*)\}')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CONTRACTED = re.compile(r'lhs_contracting_dims=\{([\d,]*)\}')
_NUMBERS = re.compile(r'"lhs_contracting_dimensions":(\[[^\]]*\])')


def operations(
  instruction: program_text.Instruction,
  types: list[str],
  computations: program_text.Computations,
) -> int:
  """Operations of the products in an instruction and in what it calls.

  Args:
    instruction: of the program.
    types: of its operands.
    computations: of the program, see `program_text.read`.
  """
  shapes = [program_text.arrays(x)[:1] for x in types]
  shapes = [found[0][1] if found else [] for found in shapes]
  kind = instruction.opcode
  if kind == 'custom-call':
    target = _TARGET.search(instruction.line)
    kind = target[1] if target else kind
  # Those of libraries return a workspace too.
  result = program_text.arrays(instruction.type)
  result = result[0][1] if result else []
  if kind == 'convolution' or kind.startswith('__cudnn$conv'):
    return _convolution(kind, instruction.line, shapes, result)
  if kind == 'dot' or kind.startswith('__cublas$'):
    return _dot(instruction.line, shapes, result)
  if kind not in ('fusion', 'async-start'):
    return 0
  total = 0
  for name in program_text.called(instruction):
    body = computations.get(name, {})
    for inner in body.values():
      types = [body[x].type for x in inner.operands if x in body]
      total += operations(inner, types, computations)
  return total


def _dot(line, shapes, result) -> int:
  found = _CONTRACTED.search(line)
  numbers = _NUMBERS.search(line)
  if found:
    contracted = [int(x) for x in found[1].split(',') if x]
  else:
    contracted = [int(x) for x in json.loads(numbers[1])] if numbers else []
  return 2 * math.prod(result) * math.prod(shapes[0][x] for x in contracted)


def _convolution(kind, line, shapes, result) -> int:
  labels = _LABELS.search(line).groups()
  left, right = shapes[:2]
  # Input, kernel and output of the convolution that a call is a gradient of.
  if kind.endswith('BackwardFilter'):
    arrays = left, result, right
  elif kind.endswith('BackwardInput'):
    arrays = result, right, left
  else:
    arrays = left, right, result
  inputs, kernel, output = (dict(zip(*x)) for x in zip(labels, arrays))
  window = _WINDOW.search(line)
  fields = dict(x.split('=') for x in window[1].split()) if window else {}
  total = 2 * kernel['i'] * output['f'] * output['b']
  # Pairs of output and kernel positions that meet an entry of the input.
  for axis, side in enumerate(sorted(x for x in inputs if x.isdigit())):
    field = {k: x.split('x')[axis] for k, x in fields.items()}
    stride, base, dilation = (
      int(field.get(x, 1)) for x in ('stride', 'lhs_dilate', 'rhs_dilate')
    )
    before = int(field.get('pad', '0_0').split('_')[0])
    last = base * (inputs[side] - 1)
    total *= sum(
      0 <= at <= last and at % base == 0
      for start in range(-before, stride * output[side] - before, stride)
      for at in range(start, start + dilation * kernel[side], dilation)
    )
  return total
