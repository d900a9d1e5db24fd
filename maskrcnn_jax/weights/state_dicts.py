"""Formats of weights: the names and layouts of other systems' state dicts.

Arrays change layout between PyTorch and Flax:

| layer | here | PyTorch |
|---|---|---|
| convolution | `[height, width, in, out]` | `[out, in, height, width]` |
| dense | `[in, out]` | `[out, in]` |
| dense after a map | in: row, column, channel | in: channel, row, column |
| transposed convolution | `[2, 2, in, out]` | `[in, out, 2, 2]` |
| box deltas | `(dy, dx, dh, dw)` | `(dx, dy, dw, dh)` |
"""

import contextlib
import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import coco_classes, resnet
from maskrcnn_jax.weights.tensor_files import Tensors

_TRAINING_STATE = re.compile(
  r'(.*\.)?num_batches_tracked|.*_momentum|lr|pixel_mean|pixel_std'
  r'|.*anchor_generator\.cell_anchors\..*|(.*/)?weight_order'
)
# Layers of a kind that are counted, at most.
_MAX_LAYERS = 128
DECONV = 'mask_head/deconv/kernel'
# Transposed convolutions.
_TRANSPOSED = re.compile(r'mask_head/deconv/kernel|fpn/upsample\w+/kernel')
_DELTAS = ('rpn_head/box_deltas', 'box_head/box_deltas')
# The first dense layer takes flattened RoI features.
_FLATTENED = 'box_head/fc6/kernel'
# Axes of ours in PyTorch's order; the inverse leads back.
_CONV_AXES = (3, 2, 0, 1)
_DECONV_AXES = (2, 3, 0, 1)
# Variables of PyTorch's modules; the scale of a norm is a weight too.
LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'variance': 'running_var',
}


@dataclasses.dataclass(frozen=True)
class InferredModel:
  """The model that weights belong to, in the words of the command line.

  Attributes:
    config: a shipped config, such as `coco:torchvision`.
    overrides: fields that differ from it, such as `model.num_classes=5`.
    classes: names by class id; empty if the data set is not known.
  """

  config: str
  overrides: Sequence[str] = ()
  classes: Mapping[int, str] = dataclasses.field(default_factory=dict)


def roi_channels(ours: Mapping[str, Any]) -> int:
  """Channels of the RoI features that the dense layers take; 0 if unknown."""
  lateral = ours.get('fpn/lateral5/kernel')
  return 0 if lateral is None else lateral.shape[-1]


def _swap_box_axes(array):
  """Swaps the rows of x and y in each group of four; its own inverse."""
  groups = array.reshape(-1, 4, *array.shape[1:])
  return groups[:, [1, 0, 3, 2]].reshape(array.shape)


def _map_side(size, channels):
  """Side of the square feature maps with `size` entries; 0 if not square."""
  if channels < 1 or size % channels:
    return 0
  side = math.isqrt(size // channels)
  return side if side * side * channels == size else 0


def from_torch(name: str, array: np.ndarray, channels: int) -> np.ndarray:
  """A PyTorch array in our layout; unchanged where its rank is unexpected.

  `name` is ours; `channels` are those of the RoI features.
  """
  if name.startswith(_DELTAS) and array.shape[0] % 4 == 0:
    array = _swap_box_axes(array)
  if not name.endswith('/kernel'):
    return array
  if array.ndim == 4:
    is_deconv = _TRANSPOSED.fullmatch(name)
    axes = _DECONV_AXES if is_deconv else np.argsort(_CONV_AXES)
    return array.transpose(axes)
  if array.ndim != 2:
    return array
  if name == _FLATTENED and (side := _map_side(array.shape[1], channels)):
    maps = array.reshape(-1, channels, side, side)
    array = maps.transpose(0, 2, 3, 1).reshape(array.shape)
  return array.T


@dataclasses.dataclass(frozen=True)
class Format:
  """Naming scheme and layout of a state dict.

  Attributes:
    kind: `backbone`, or `model` if there are heads.
    config: shipped config of the model.
    name: our name of a variable -> theirs; raises `UserError` if it has none.
    layout: our name, their array, channels of the RoI features -> the array in
      our layout.
    is_layer: True for names in layers of a part that the file covers.
    has_statistics: norms have means and variances; otherwise the file folds
      them into scale and bias.
    arrange: for differences besides the layout, such as the order of classes:
      our name, their array, our shape -> their array in our order.
    num_classes: rows of the class logits -> `model.num_classes`.
    backbone_sizes: `FileShapes` -> fields of `model` that the backbone tells.
    lacks: True for our variables of a covered part that such files do not have;
      they keep their initial values.
    overrides: fields of the config, besides those that the shapes give.
    assumed: fields of the config that neither names nor shapes tell, which have
      the value that is usual there.
    training_state: pattern of tensors of the run that wrote the file.
  """

  kind: str
  config: str
  name: Callable[[str], str]
  layout: Callable[[str, np.ndarray, int], np.ndarray] = from_torch
  is_layer: Callable[[str], bool] = lambda name: True
  has_statistics: bool = True
  arrange: Callable[[str, np.ndarray, tuple], np.ndarray] | None = None
  num_classes: Callable[[int], int] = lambda rows: rows
  backbone_sizes: Callable[[Any], Mapping[str, Any]] = resnet.sizes
  lacks: Callable[[str], bool] = lambda name: False
  overrides: Sequence[str] = ()
  assumed: Sequence[str] = ()
  training_state: re.Pattern = _TRAINING_STATE


@dataclasses.dataclass(frozen=True)
class FileShapes:
  """Shapes of the variables in a file, in our layout."""

  file: Tensors
  form: Format

  def shape(self, name: str) -> tuple[int, ...] | None:
    """Shape of one of our variables; None if the file does not have it."""
    with contextlib.suppress(UserError):
      array = self.file.arrays.get(self.form.name(name))
      if array is None or not array.shape or 0 in array.shape:
        return None
      # Shapes are enough, and the array may be unread.
      shaped = np.broadcast_to(np.float32(0), array.shape)
      return self.form.layout(name, shaped, 0).shape
    return None

  def width(self, layer: str) -> int | None:
    """Output channels of a layer; None if the file does not have it."""
    shape = self.shape(f'{layer}/kernel')
    return shape and shape[-1]

  def count(self, layers: str) -> int:
    """Number of layers such as `box_head/conv{}`, from 1 without a gap."""
    found = (self.width(layers.format(i)) for i in range(1, _MAX_LAYERS))
    return sum(1 for _ in itertools.takewhile(bool, found))


def infer_model(file: Tensors, form: Format) -> InferredModel:
  """The model of a state dict; `UserError` for a ResNet of unknown depth."""
  shapes = FileShapes(file, form)
  sizes = dict(form.backbone_sizes(shapes))
  classes = {}
  if form.kind == 'model':
    rows = shapes.width('box_head/class_logits')
    if rows is not None:
      sizes['num_classes'] = form.num_classes(rows)
      classes = coco_classes.of(sizes['num_classes'])
    sizes |= {
      'box_convs': shapes.count('box_head/conv{}'),
      'mask_convs': shapes.count('mask_head/conv{}'),
      'box_dense': sum(
        shapes.width(f'box_head/fc{6 + i}') is not None for i in range(4)
      ),
      'pyramid_channels': shapes.width('fpn/lateral2'),
      'box_channels': shapes.width('box_head/fc6'),
      'mask_channels': shapes.width('mask_head/deconv'),
    }
  overrides = [f'model.{k}={v}' for k, v in sizes.items() if v is not None]
  return InferredModel(form.config, [*form.overrides, *overrides], classes)


def norm_kind(names: Collection[str], scope: str) -> str:
  """Kind of the norm with names like `scope.weight`; `none` without one.

  Trainable batch norm counts its batches; group norm has no statistics.
  """
  if f'{scope}.weight' not in names:
    return 'none'
  if f'{scope}.running_mean' not in names:
    return 'group'
  return 'batch' if f'{scope}.num_batches_tracked' in names else 'frozen'


def namer(
  patterns: Sequence[tuple[str, str | Callable]],
  system: str,
  leaves: Mapping[str, str] = LEAVES,
  separator: str = '.',
) -> Callable[[str], str]:
  """Function from our name of a variable to that of another system.

  It raises `UserError` if no pattern matches.

  Args:
    patterns: of our layers, with replacements; the first match counts.
    system: for the error.
    leaves: our names of variables in a layer -> theirs.
    separator: between layer and leaf.
  """

  def name(path):
    layer, _, leaf = path.rpartition('/')
    for pattern, theirs in patterns:
      if re.fullmatch(pattern, layer):
        return re.sub(pattern, theirs, layer) + separator + leaves[leaf]
    raise UserError(f'{path} has no name in {system}.', item=path)

  return name


def to_torch(name: str, array: np.ndarray, channels: int) -> np.ndarray:
  """One of our arrays in PyTorch's layout; the inverse of `from_torch`."""
  if name.endswith('/kernel'):
    if array.ndim == 4:
      is_deconv = _TRANSPOSED.fullmatch(name)
      axes = np.argsort(_DECONV_AXES) if is_deconv else _CONV_AXES
      array = array.transpose(axes)
    else:
      array = array.T
  if name == _FLATTENED and (side := _map_side(array.shape[1], channels)):
    maps = array.reshape(-1, side, side, channels)
    array = maps.transpose(0, 3, 1, 2).reshape(array.shape)
  if name.startswith(_DELTAS):
    array = _swap_box_axes(array)
  return np.ascontiguousarray(array)
