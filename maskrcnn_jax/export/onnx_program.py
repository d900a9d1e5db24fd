"""Detection as an ONNX file."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx

from maskrcnn_jax.export import (
  onnx_graph,
  onnx_layout,
  onnx_lowering,
  onnx_ops,
  program,
)
from maskrcnn_jax.models.mask_rcnn import MaskRCNN

_INT32 = onnx.TensorProto.INT32


def detection(
  model: MaskRCNN,
  weights: Mapping[str, np.ndarray],
  shapes: Sequence[Any],
  metadata: Mapping[str, str],
) -> onnx.ModelProto:
  """Detection on one canvas, with the weights inside.

  Args:
    model: to be exported; computed in float32 whatever its precision.
    weights: of `program.flatten_weights`.
    shapes: of `program.input_shapes`.
    metadata: texts to store in the file.

  Returns:
    The model, from `images` and `image_sizes` to `program.OUTPUTS`.

  Raises:
    UserError: an option of the model has no form in ONNX.
  """
  model = program.in_float32(model).clone(operations=onnx_ops.OPERATIONS)
  return convert(
    program.detect_function(model),
    weights,
    dict(zip(('images', 'image_sizes'), shapes[1:])),
    'detect_{}x{}'.format(*shapes[1].shape[1:3]),
    metadata,
  )


def convert(
  function: Callable[..., Mapping[str, jax.Array]],
  weights: Mapping[str, np.ndarray],
  inputs: Mapping[str, jax.ShapeDtypeStruct],
  name: str,
  metadata: Mapping[str, str],
) -> onnx.ModelProto:
  """A function of JAX as an ONNX model.

  Args:
    function: `function(weights, *inputs)` gives the outputs by name.
    weights: constants of the model.
    inputs: shape and dtype by name. A symbolic batch size is the first axis of
      each.
    name: of the model.
    metadata: texts to store in it.

  Raises:
    UserError: an operation of the function has no form in ONNX.
  """
  traced = jax.jit(function).trace(dict(weights), *inputs.values())
  graph = onnx_graph.Graph(next(iter(inputs.values())).shape[0])
  values = [
    graph.input(key, x.shape, _input_kind(x)) for key, x in inputs.items()
  ]
  closed, arrays = traced.jaxpr, jax.tree.leaves(dict(weights))
  found = onnx_lowering.lower(
    graph, closed.jaxpr, [*closed.consts, *map(np.asarray, arrays), *values]
  )
  names = sorted(jax.tree.unflatten(traced.out_tree, found))
  outputs = {
    key: _output(graph, value, info.aval)
    for key, value, info in zip(names, found, closed.jaxpr.outvars)
  }
  return graph.model(name, outputs, dict(metadata))


def _input_kind(info: Any) -> str:
  return 'uint8' if info.dtype == np.uint8 else onnx_graph.file_kind(info.dtype)


def _output(graph, value, info):
  """An output whole, channels last, and of the dtype that JAX has."""
  value = onnx_layout.whole(graph, value, info.shape)
  value = onnx_layout.to_last(graph, value)
  if info.dtype == np.int32:
    return graph.emit('Cast', [value], value.shape, 'int32', to=_INT32)
  return value
