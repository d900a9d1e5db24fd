"""Programs of JAX written as ONNX graphs, one operation after the other.

What depends on weights and shapes alone is computed here and becomes a
constant. A norm after a convolution becomes part of its kernel and bias.
"""

from collections.abc import Sequence

import numpy as np
from jax.extend import core

from maskrcnn_jax.export import onnx_elementwise, onnx_rules
from maskrcnn_jax.export import onnx_layout as layout
from maskrcnn_jax.export.onnx_graph import (
  Graph,
  Tensor,
  compact,
  is_static,
  unsupported,
)

_SAME = ('stop_gradient', 'copy', 'copy_p', 'optimization_barrier')


def lower(
  graph: Graph, jaxpr: core.Jaxpr, inputs: Sequence[Tensor]
) -> list[Tensor]:
  """Writes a program into a graph.

  Args:
    graph: that grows.
    jaxpr: the program.
    inputs: its constants and arguments.

  Returns:
    The outputs of the program.

  Raises:
    UserError: an operation has no form in ONNX.
  """
  values = dict(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))

  def read(atom):
    if isinstance(atom, core.Literal):
      return np.asarray(atom.val, atom.aval.dtype)
    return values[atom]

  for equation in jaxpr.eqns:
    found = _lower_equation(graph, equation, [*map(read, equation.invars)])
    values.update(zip(equation.outvars, found))
  return [read(atom) for atom in jaxpr.outvars]


def _lower_equation(graph, equation, inputs):
  """Outputs of one operation."""
  name, params = equation.primitive.name, equation.params
  shapes = [x.aval.shape for x in equation.outvars]
  if name in _SAME:
    return inputs
  if name == 'platform_index':
    # The form for every platform, which has no name.
    return [np.int32(params['platforms'].index(None))]
  if name == 'cond' and isinstance(inputs[0], np.ndarray | np.integer):
    inner, inputs = params['branches'][int(inputs[0])], inputs[1:]
  else:
    inner = params.get('jaxpr', params.get('call_jaxpr'))
  if inner is not None and name not in ('scan', 'while'):
    if hasattr(inner, 'consts'):
      inputs, inner = [*map(np.asarray, inner.consts), *inputs], inner.jaxpr
    return lower(graph, inner, inputs)
  if name == 'broadcast_in_dim':
    axes = params['broadcast_dimensions']
    return [layout.broadcast(graph, inputs[0], shapes[0], axes)]
  is_constant = all(isinstance(x, np.ndarray) for x in inputs)
  if name in onnx_elementwise.ELEMENTWISE:
    if is_constant:
      return [_fold_elementwise(equation, inputs, shapes[0])]
    return [onnx_elementwise.elementwise(graph, equation, inputs)]
  if is_constant and all(map(is_static, shapes)):
    return _fold(equation, inputs)
  if name not in onnx_rules.RULES:
    raise unsupported(f'the operation {name}')
  inputs = [
    layout.whole(graph, x, atom.aval.shape)
    for x, atom in zip(inputs, equation.invars)
  ]
  return onnx_rules.RULES[name](graph, equation, *inputs)


def _fold(equation, inputs):
  """Constants computed from constants."""
  found = equation.primitive.bind(*inputs, **equation.params)
  if not equation.primitive.multiple_results:
    found = [found]
  return [np.asarray(x) for x in found]


def _fold_elementwise(equation, inputs, shape):
  """A constant of as many numbers as its inputs have different ones."""
  (found,) = _fold(equation, np.broadcast_arrays(*map(compact, inputs)))
  lengths = [n if isinstance(n, int) else 1 for n in shape]
  return np.broadcast_to(found, lengths)
