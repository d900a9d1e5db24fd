"""ONNX graph under construction: operators, constants and memory layout.

Shapes are those of JAX, channels last. Where ONNX wants the channels second, a
value is *channels first*: its tensor is transposed, its shape here is not. A
value may also be *lazy*: of length 1 along axes that JAX has broadcast, since
ONNX broadcasts by itself. Equal operators are written once.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from maskrcnn_jax.errors import UserError

# Operators of this version are read by ONNX Runtime 1.20 and later.
OPSET = 21
_IR_VERSION = 10
# Codes of TensorProto.DataType.
CODES = {'float32': 1, 'int64': 7, 'bool': 9}
LARGEST = np.finfo(np.float32).max


@dataclasses.dataclass(frozen=True)
class Value:
  """A tensor that an operator computes.

  Attributes:
    name: in the file.
    shape: as JAX has it, 1 along lazy axes; the batch size may be symbolic.
    kind: dtype in the file: float32, int64, bool or uint8.
    first: whether it is channels first.
    node: that computes it; None for an input.
  """

  name: str
  shape: tuple[Any, ...]
  kind: str
  first: bool = False
  node: Any = None


Tensor = Value | np.ndarray


@dataclasses.dataclass(frozen=True)
class _Node:
  operator: str
  inputs: tuple[Tensor | None, ...]
  attributes: dict[str, Any]
  name: str


class Graph:
  """Operators in the order of their computation.

  Attributes:
    batch: symbol of the batch size in shapes; None if it is a number.
  """

  def __init__(self, batch: Any = None):
    self.batch = batch
    self._inputs = []
    self._nodes = {}
    self._constants = {}

  def input(self, name: str, shape: Sequence[Any], kind: str) -> Value:
    """A new input of the graph."""
    value = Value(name, tuple(shape), kind)
    self._inputs.append(value)
    return value

  def emit(
    self,
    operator: str,
    inputs: Sequence[Tensor | None],
    shape: Sequence[Any],
    kind: str | None = None,
    first: bool = False,
    output: int = 0,
    **attributes,
  ) -> Value:
    """An output of an operator, which is new unless there is an equal one.

    Args:
      operator: of ONNX.
      inputs: values and constants; None for an input that is left out.
      shape: of the output, channels last.
      kind: of the output; None: that of the first input.
      first: whether the output is channels first.
      output: number of the output.
      **attributes: of the operator.
    """
    names = [None if x is None else self.name(x) for x in inputs]
    key = (
      operator,
      *names,
      *sorted((k, repr(v)) for k, v in attributes.items()),
    )
    if key not in self._nodes:
      name = f'{operator}_{len(self._nodes)}'
      self._nodes[key] = _Node(operator, tuple(inputs), attributes, name)
    node = self._nodes[key]
    kind = kind or kind_of(inputs[0])
    name = f'{node.name}.{output}' if output else node.name
    return Value(name, tuple(shape), kind, first, node)

  def name(self, x: Tensor) -> str:
    """Name of a value, or of a constant, which is stored once."""
    if isinstance(x, Value):
      return x.name
    array = np.ascontiguousarray(stored(x))
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    key = (array.dtype.name, array.shape, digest)
    if key not in self._constants:
      name = f'constant_{len(self._constants)}'
      self._constants[key] = numpy_helper.from_array(array, name)
    return self._constants[key].name

  def sizes(self, shape: Sequence[Any]) -> Tensor:
    """The lengths of axes, as the input of an operator."""
    if is_static(shape):
      return np.array(shape, np.int64)
    image_sizes = self._inputs[-1]
    batch = self.emit('Shape', [image_sizes], [1], 'int64', start=0, end=1)
    parts = [
      np.int64([n])
      if isinstance(n, int)
      else self.emit('Mul', [batch, np.int64([self.per_image(n)])], [1])
      for n in shape
    ]
    return self.emit('Concat', parts, [len(parts)], 'int64', axis=0)

  def per_image(self, length: Any) -> int:
    """Length of an axis divided by the batch size."""
    return int(length // self.batch)

  def model(
    self, name: str, outputs: dict[str, Value], metadata: dict[str, str]
  ) -> onnx.ModelProto:
    """The model with some outputs, without what they do not need."""
    nodes, constants = self._needed(outputs.values())
    renamed = [
      helper.make_node('Identity', [value.name], [output])
      for output, value in outputs.items()
    ]
    graph = helper.make_graph(
      [self._proto(node) for node in nodes] + renamed,
      name,
      [_info(x.name, x) for x in self._inputs],
      [_info(*item) for item in outputs.items()],
      constants,
    )
    model = helper.make_model(
      graph,
      opset_imports=[helper.make_opsetid('', OPSET)],
      ir_version=_IR_VERSION,
      producer_name='maskrcnn_jax',
    )
    helper.set_model_props(model, metadata)
    return model

  def _needed(self, values):
    """Nodes in order and constants that some values depend on."""
    needed, names = set(), set()
    left = [x.node for x in values]
    while left:
      node = left.pop()
      if node is None or node.name in needed:
        continue
      needed.add(node.name)
      names.update(self.name(x) for x in node.inputs if x is not None)
      left.extend(x.node for x in node.inputs if isinstance(x, Value))
    return (
      [node for node in self._nodes.values() if node.name in needed],
      [x for x in self._constants.values() if x.name in names],
    )

  def _proto(self, node):
    names = ['' if x is None else self.name(x) for x in node.inputs]
    outputs = [node.name]
    if node.operator == 'TopK':
      outputs.append(f'{node.name}.1')
    return helper.make_node(
      node.operator, names, outputs, node.name, **node.attributes
    )


def _info(name, value):
  kind = helper.np_dtype_to_tensor_dtype(np.dtype(value.kind))
  shape = [n if isinstance(n, int) else str(n) for n in value.shape]
  return helper.make_tensor_value_info(name, kind, shape)


def unsupported(what: str) -> UserError:
  """Error of an operation that has no form in ONNX."""
  return UserError(
    f'--format onnx: the model needs {what}, which has no form in ONNX here. '
    'Choose --format stablehlo.',
    argument='format',
    given=what,
  )


def is_static(shape: Sequence[Any]) -> bool:
  """Whether no length depends on a symbol."""
  return all(isinstance(n, int) for n in shape)


def kind_of(x: Tensor) -> str:
  """Dtype in the file; integers are int64, as operators want indices."""
  if isinstance(x, Value):
    return x.kind
  return file_kind(x.dtype)


def file_kind(dtype: Any) -> str:
  """Dtype in the file of a dtype of JAX."""
  dtype = np.dtype(dtype)
  return 'int64' if np.issubdtype(dtype, np.integer) else dtype.name


def stored(array: np.ndarray) -> np.ndarray:
  """A constant as it is in the file: finite and of a known dtype."""
  array = array.astype(kind_of(array))
  if array.dtype == np.float32:
    # Minus infinity marks what is never taken; runtimes multiply by zero.
    array = np.clip(array, -LARGEST, LARGEST)
  return array


def compact(array: np.ndarray) -> np.ndarray:
  """A constant with length 1 along the axes that it was broadcast along."""
  index = tuple(
    slice(0, 1) if stride == 0 else slice(None) for stride in array.strides
  )
  return array[index] if array.ndim else array  # Not a scalar.
