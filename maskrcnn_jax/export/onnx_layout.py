"""Tensors of an ONNX graph in other forms: whole, reshaped, channels first."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskrcnn_jax.export.onnx_graph import (
  Graph,
  Tensor,
  Value,
  compact,
  is_static,
  unsupported,
)


def shape_of(x: Tensor) -> tuple[Any, ...]:
  """Shape, 1 along lazy axes."""
  return x.shape if isinstance(x, Value) else compact(x).shape


def first_axis(axis: int, rank: int) -> int:
  """Axis of the tensor of a value that is channels first."""
  return {0: 0, rank - 1: 1}.get(axis, axis + 1)


def to_first(graph: Graph, x: Tensor) -> Tensor:
  """The same, channels first; nothing changes below rank 3."""
  rank = len(x.shape)
  if rank < 3 or (isinstance(x, Value) and x.first):
    return x
  if isinstance(x, np.ndarray):
    return np.moveaxis(x, -1, 1)
  source = _source(x, 'Transpose')
  if source is not None and source.first and source.shape == x.shape:
    return source
  order = [0, rank - 1, *range(1, rank - 1)]
  return graph.emit('Transpose', [x], x.shape, first=True, perm=order)


def to_last(graph: Graph, x: Tensor) -> Tensor:
  """The same, channels last."""
  if not isinstance(x, Value) or not x.first:
    return x
  source = _source(x, 'Transpose')
  if source is not None and not source.first and source.shape == x.shape:
    return source
  rank = len(x.shape)
  order = [0, *range(2, rank), 1]
  return graph.emit('Transpose', [x], x.shape, perm=order)


def whole(graph: Graph, x: Tensor, shape: Sequence[Any]) -> Tensor:
  """The same with the full length along lazy axes."""
  shape = tuple(shape)
  if x.shape == shape:
    return x
  first = isinstance(x, Value) and x.first
  sizes = graph.sizes(_moved(shape) if first else shape)
  return graph.emit('Expand', [x, sizes], shape, first=first)


def reshape(graph: Graph, x: Tensor, shape: Sequence[Any]) -> Tensor:
  """The same elements, in the order of channels last, in another shape."""
  shape = tuple(shape)
  if x.shape == shape:
    return x
  if isinstance(x, np.ndarray) and is_static(shape):
    return x.reshape(shape)
  keeps_ends = (x.shape[:1], x.shape[-1:]) == (shape[:1], shape[-1:])
  first = isinstance(x, Value) and x.first and keeps_ends and len(shape) > 2
  if not first:
    x = to_last(graph, x)
    source = isinstance(x, Value) and _source(x, 'Reshape')
    if source and source.shape == shape and not source.first:
      return source
  sizes = _inferred(_moved(shape) if first else shape)
  return graph.emit('Reshape', [x, sizes], shape, first=first)


def transposed(graph: Graph, x: Tensor, order: Sequence[int]) -> Tensor:
  """The same with the axes in another order."""
  x = to_last(graph, x)
  if list(order) == sorted(order):
    return x
  if isinstance(x, np.ndarray):
    return np.transpose(x, order)
  shape = [x.shape[i] for i in order]
  return graph.emit('Transpose', [x], shape, perm=list(order))


def broadcast(
  graph: Graph, x: Tensor, shape: Sequence[Any], axes: Sequence[int]
) -> Tensor:
  """`lax.broadcast_in_dim`; the result is lazy."""
  lazy = [1] * len(shape)
  for axis, length in zip(axes, shape_of(x)):
    lazy[axis] = length
  if isinstance(x, np.ndarray):
    lengths = [n if isinstance(n, int) else 1 for n in shape]
    return np.broadcast_to(compact(x).reshape(lazy), lengths)
  if list(axes) != sorted(axes):
    raise unsupported('a broadcast that transposes')
  return reshape(graph, x, lazy)


def _source(x, operator):
  """The input of a value, if that operator computes it."""
  if x.node is None or x.node.operator != operator:
    return None
  source = x.node.inputs[0]
  return source if isinstance(source, Value) else None


def _moved(shape):
  """Lengths of the tensor of a value that is channels first."""
  return (shape[0], shape[-1], *shape[1:-1])


def _inferred(shape):
  """Lengths for Reshape, which infers the one that is symbolic."""
  return np.array([n if isinstance(n, int) else -1 for n in shape], np.int64)
