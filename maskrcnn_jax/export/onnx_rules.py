"""Operations of JAX as operators of ONNX: the table of rules.

A rule takes the graph, the equation of the program and its inputs, which are
whole, and returns the outputs.
"""

import numpy as np

from maskrcnn_jax.export import onnx_layers
from maskrcnn_jax.export import onnx_layout as layout
from maskrcnn_jax.export.onnx_graph import (
  CODES,
  Graph,
  Value,
  file_kind,
  kind_of,
  unsupported,
)


def _transpose(graph, equation, x):
  return [layout.transposed(graph, x, equation.params['permutation'])]


def _reshape(graph, equation, x):
  return [layout.reshape(graph, x, equation.outvars[0].aval.shape)]


def _slice(graph, equation, x):
  params = equation.params
  strides = params['strides'] or [1] * len(x.shape)
  starts, ends = params['start_indices'], params['limit_indices']
  return [slice_axes(graph, x, dict(enumerate(zip(starts, ends, strides))))]


def _split(graph, equation, x):
  axis, sizes = equation.params['axis'], equation.params['sizes']
  ends = np.cumsum(sizes).tolist()
  ranges = [(end - size, end, 1) for size, end in zip(sizes, ends)]
  return [slice_axes(graph, x, {axis: part}) for part in ranges]


def slice_axes(graph: Graph, x: Value, parts: dict) -> Value:
  """`x[start:end:step]` along some axes."""
  parts = {k: v for k, v in parts.items() if v != (0, x.shape[k], 1)}
  if not parts:
    return x
  shape = list(x.shape)
  for axis, (start, end, step) in parts.items():
    shape[axis] = -(-(end - start) // step)
  rank = len(shape)
  axes = [layout.first_axis(k, rank) if x.first else k for k in parts]
  starts, ends, steps = (np.int64(y) for y in zip(*parts.values()))
  inputs = [x, starts, ends, np.int64(axes), steps]
  return graph.emit('Slice', inputs, shape, first=x.first)


def _reverse(graph, equation, x):
  rank = len(x.shape)
  for axis in equation.params['dimensions']:
    order = np.arange(x.shape[axis])[::-1]
    place = layout.first_axis(axis, rank) if x.first else axis
    x = graph.emit('Gather', [x, order], x.shape, first=x.first, axis=place)
  return [x]


def _concatenate(graph, equation, *inputs):
  axis, shape = equation.params['dimension'], equation.outvars[0].aval.shape
  first = any(isinstance(x, Value) and x.first for x in inputs)
  if first:
    inputs = [layout.to_first(graph, x) for x in inputs]
    axis = layout.first_axis(axis, len(shape))
  kind = file_kind(equation.outvars[0].aval.dtype)
  return [graph.emit('Concat', inputs, shape, kind, first, axis=axis)]


def _stack(graph, equation, *inputs):
  axis, shape = equation.params['axis'], equation.outvars[0].aval.shape
  part = (*shape[:axis], 1, *shape[axis + 1 :])
  inputs = [layout.reshape(graph, x, part) for x in inputs]
  return [graph.emit('Concat', inputs, shape, axis=axis)]


def _pad(graph, equation, x, value):
  before, after, inner = zip(*equation.params['padding_config'])
  if any(inner) or min(*before, *after) < 0:
    raise unsupported('negative or inner padding')
  shape = equation.outvars[0].aval.shape
  pads = np.int64([*before, *after])
  return [graph.emit('Pad', [layout.to_last(graph, x), pads, value], shape)]


def _iota(graph, equation):
  params = equation.params
  axis = params['dimension']
  lengths = [n if isinstance(n, int) else 1 for n in params['shape']]
  numbers = np.arange(lengths[axis], dtype=params['dtype'])
  numbers = np.expand_dims(
    numbers, [i for i in range(len(lengths)) if i != axis]
  )
  return [np.broadcast_to(numbers, lengths)]


def _reduce(operator, graph, equation, x):
  axes, kind = equation.params['axes'], kind_of(x)
  shape, rank = equation.outvars[0].aval.shape, len(x.shape)
  first = x.first and rank - 1 not in axes and len(shape) > 2
  if x.first:
    axes = [layout.first_axis(axis, rank) for axis in axes]
  axes = np.int64(sorted(axes))
  if kind == 'bool':
    x = graph.emit('Cast', [x], x.shape, 'int64', x.first, to=CODES['int64'])
  found = graph.emit(operator, [x, axes], shape, first=first, keepdims=0)
  if kind == 'bool':
    code = CODES['bool']
    found = graph.emit('Cast', [found], shape, 'bool', first, to=code)
  return [found]


def _top_k(graph, equation, x):
  shape, k = equation.outvars[0].aval.shape, equation.params['k']
  inputs = [layout.to_last(graph, x), np.int64([k])]
  more = {'axis': -1, 'largest': 1, 'sorted': 1}
  return [
    graph.emit('TopK', inputs, shape, **more),
    graph.emit('TopK', inputs, shape, 'int64', output=1, **more),
  ]


def _gather(graph, equation, x, indices):
  numbers = equation.params['dimension_numbers']
  if isinstance(indices, np.ndarray):
    return [_take_constant(graph, equation, x, indices)]
  batch = numbers.operand_batching_dims
  axis, rank = numbers.start_index_map[0], len(x.shape)
  positions = indices.shape[:-1]
  after = range(axis + len(positions), rank + len(positions) - 1)
  before = range(len(batch), axis)
  is_rows = (
    numbers.start_index_map == numbers.collapsed_slice_dims == (axis,)
    and batch == numbers.start_indices_batching_dims
    and batch in ((), (0,))
    and (not batch or axis == 1)
    and numbers.offset_dims == (*before, *(i - len(batch) for i in after))
  )
  if not is_rows:
    raise unsupported(f'the gather {numbers}')
  shape = equation.outvars[0].aval.shape
  x = layout.to_last(graph, x)
  if batch:
    return [graph.emit('GatherND', [x, indices], shape, batch_dims=1)]
  rows = layout.reshape(graph, indices, positions)
  return [graph.emit('Gather', [x, rows], shape, kind_of(x), axis=axis)]


def _take_constant(graph, equation, x, indices):
  """`x[start:end:step]` along axes, which JAX gathers if the batch is open."""
  numbers = equation.params['dimension_numbers']
  sizes = equation.params['slice_sizes']
  grid = indices.ndim > 1
  parts = {}
  for column, axis in enumerate(numbers.start_index_map):
    places = indices[..., column]
    if grid:  # Each axis varies along its own axis of the indices.
      places = np.moveaxis(places, column, 0)
      is_regular = sizes[axis] == 1 and indices.ndim - 1 == indices.shape[-1]
      places = places.reshape(len(places), -1)
      is_regular &= bool((places == places[:, :1]).all())
      places = places[:, 0]
    else:
      places = places + np.arange(sizes[axis])
      is_regular = True
    step = int(places[1] - places[0]) if len(places) > 1 else 1
    if not is_regular or step < 1 or (np.diff(places) != step).any():
      raise unsupported(f'the gather of {indices}')
    parts[axis] = (int(places[0]), int(places[-1]) + 1, step)
  shape = equation.outvars[0].aval.shape
  return layout.reshape(graph, slice_axes(graph, x, parts), shape)


RULES = {
  'concatenate': _concatenate,
  'conv_general_dilated': onnx_layers.convolution,
  'dot_general': onnx_layers.dot,
  'gather': _gather,
  'iota': _iota,
  'keep': onnx_layers.keep,
  'pad': _pad,
  'reduce_and': lambda *x: _reduce('ReduceMin', *x),
  'reduce_max': lambda *x: _reduce('ReduceMax', *x),
  'reduce_sum': lambda *x: _reduce('ReduceSum', *x),
  'reduce_window_max': onnx_layers.max_pool,
  'reshape': _reshape,
  'rev': _reverse,
  'roi_align': onnx_layers.roi_align,
  'slice': _slice,
  'split': _split,
  'squeeze': _reshape,
  'stack': _stack,
  'top_k': _top_k,
  'transpose': _transpose,
}
