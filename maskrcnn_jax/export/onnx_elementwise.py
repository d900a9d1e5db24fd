"""Operations of JAX on single elements as operators of ONNX."""

import numpy as np

from maskrcnn_jax.export import onnx_layout as layout
from maskrcnn_jax.export.onnx_graph import (
  CODES,
  LARGEST,
  Graph,
  Tensor,
  Value,
  compact,
  file_kind,
  kind_of,
  unsupported,
)

# Operators with the operands of the primitive.
_SAME_NAMES = (
  *('abs', 'add', 'and', 'ceil', 'div', 'erf', 'exp', 'floor', 'log', 'max'),
  *('min', 'mul', 'neg', 'not', 'or', 'sqrt', 'sub'),
)
_OPERATORS = {name: name.capitalize() for name in _SAME_NAMES} | {
  'eq': 'Equal',
  'ge': 'GreaterOrEqual',
  'gt': 'Greater',
  'le': 'LessOrEqual',
  'logistic': 'Sigmoid',
  'lt': 'Less',
}
# Operators made of several.
_FORMS = {
  'clamp': lambda emit, low, x, high: emit('Min', emit('Max', x, low), high),
  'convert_element_type': lambda emit, x: x,
  'erfc': lambda emit, x: emit('Sub', np.float32(1), emit('Erf', x)),
  # Not a number is not below anything.
  'is_finite': lambda emit, x: emit('LessOrEqual', emit('Abs', x), LARGEST),
  'ne': lambda emit, x, y: emit('Not', emit('Equal', x, y)),
  # Of integers only. Of the sign of x, which Mod has not.
  'rem': lambda emit, x, y: emit('Sub', x, emit('Mul', emit('Div', x, y), y)),
  'rsqrt': lambda emit, x: emit('Reciprocal', emit('Sqrt', x)),
  'select_n': lambda emit, which, no, yes: _select(emit, which, no, yes),
  'square': lambda emit, x: emit('Mul', x, x),
}
ELEMENTWISE = (*_OPERATORS, *_FORMS)


def elementwise(graph: Graph, equation, inputs: list[Tensor]) -> Tensor:
  """An operation on single elements."""
  name = equation.primitive.name
  kind = file_kind(equation.outvars[0].aval.dtype)
  if name == 'rem' and kind != 'int64':
    raise unsupported('the remainder of floats')
  inputs = [x if isinstance(x, Value) else compact(x) for x in inputs]
  if name in ('mul', 'add'):
    merged = _into_convolution(graph, name, *inputs)
    if merged is not None:
      return merged
  lengths = _broadcast_shape([x.shape for x in inputs])
  first = any(isinstance(x, Value) and x.first for x in inputs)
  if first:
    inputs = [layout.to_first(graph, x) for x in inputs]
  if name == 'convert_element_type' and kind_of(inputs[0]) != kind:
    code = CODES[kind]
    return graph.emit('Cast', inputs, lengths, kind, first, to=code)

  def emit(operator, *operands):
    return graph.emit(operator, operands, lengths, kind, first)

  is_zero = isinstance(inputs[-1], np.ndarray) and not inputs[-1].any()
  if name == 'max' and kind == 'float32' and is_zero:
    return emit('Relu', inputs[0])
  if name in _OPERATORS:
    return emit(_OPERATORS[name], *inputs)
  return _FORMS[name](emit, *inputs)


def _select(emit, which, no, yes):
  if kind_of(yes) != 'bool':
    return emit('Where', which, yes, no)
  # Not every runtime has Where for truth values.
  no = emit('And', emit('Not', which), no)
  return emit('Or', emit('And', which, yes), no)


def _broadcast_shape(shapes):
  """Shape of operands of the same rank or of none, with symbols."""
  shapes = [shape for shape in shapes if shape]
  return tuple(
    next((n for n in lengths if not (isinstance(n, int) and n == 1)), 1)
    for lengths in zip(*shapes)
  )


def _into_convolution(graph, name, x, y):
  """A convolution times or plus a number per channel, as a convolution."""
  if isinstance(x, np.ndarray):
    x, y = y, x
  if not isinstance(x, Value) or not isinstance(y, np.ndarray):
    return None
  is_per_channel = y.ndim == 0 or y.shape == (1, 1, 1, x.shape[-1])
  if x.node is None or x.node.operator != 'Conv' or not is_per_channel:
    return None
  source, kernel, bias = x.node.inputs
  y = np.broadcast_to(y.reshape(-1), x.shape[-1:])
  if name == 'mul':
    kernel = kernel * y[:, None, None, None]
    bias = None if bias is None else bias * y
  else:
    bias = y if bias is None else bias + y
  return graph.emit(
    'Conv', [source, kernel, bias], x.shape, first=True, **x.node.attributes
  )
