"""PyTorch state dicts: shared by the names of torchvision and Detectron2.

Arrays change layout between PyTorch and Flax:

| layer | here | PyTorch |
|---|---|---|
| convolution | `[height, width, in, out]` | `[out, in, height, width]` |
| dense | `[in, out]` | `[out, in]` |
| dense after a map | in: row, column, channel | in: channel, row, column |
| transposed convolution | `[2, 2, in, out]` | `[in, out, 2, 2]` |
| box deltas | `(dy, dx, dh, dw)` | `(dx, dy, dw, dh)` |
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import coco_classes, load_report, tensor_files

_TRAINING_STATE = re.compile(
  r'(.*\.)?num_batches_tracked|.*_momentum|lr|pixel_mean|pixel_std'
  r'|.*anchor_generator\.cell_anchors\..*|(.*/)?weight_order'
)
# (blocks of stage 4, three convolutions in a block) -> depth.
_DEPTHS = {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101}
_DECONV = 'mask_head/deconv/kernel'
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


@dataclasses.dataclass(frozen=True)
class Format:
  """Naming scheme of a state dict.

  Attributes:
    kind: `backbone`, or `model` if there are heads.
    config: shipped config of the model.
    name: our name of a variable -> theirs; raises `UserError` if it has none.
    is_layer: True for names in layers of a part that the file covers.
    has_statistics: norms have means and variances; otherwise the file folds
      them into scale and bias.
    arrange: for differences besides the layout, such as the order of classes:
      our name, their array, our shape -> their array in our order.
    num_classes: rows of the class logits -> `model.num_classes`.
    overrides: fields of the config, besides those that the shapes give.
  """

  kind: str
  config: str
  name: Callable[[str], str]
  is_layer: Callable[[str], bool] = lambda name: True
  has_statistics: bool = True
  arrange: Callable[[str, np.ndarray, tuple], np.ndarray] | None = None
  num_classes: Callable[[int], int] = lambda rows: rows
  overrides: Sequence[str] = ()


def load(
  file: tensor_files.Tensors,
  form: Format,
  variables: Mapping[str, Any],
  options: load_report.LoadOptions = load_report.STRICT,
) -> tuple[dict[str, Any], load_report.LoadReport]:
  """Variables with the tensors of a state dict; see `external.load`."""
  ours = load_report.flatten(variables)
  channels = roi_channels(ours)
  names, arrays, folded = {}, {}, []
  for path, variable in ours.items():
    if form.kind == 'backbone' and not path.startswith('backbone/'):
      continue
    leaf = path.rpartition('/')[2]
    if leaf in ('mean', 'variance') and not form.has_statistics:
      folded.append(path)
      fill = np.ones if leaf == 'variance' else np.zeros
      arrays[path] = fill(variable.shape, np.float32)
      continue
    names[path] = form.name(path)
    if names[path] in file.arrays:
      array = file.arrays[names[path]]
      if form.arrange:
        array = form.arrange(path, array, variable.shape)
      arrays[path] = from_torch(path, array, channels)
  others = sorted(file.arrays.keys() - {*names.values()})
  unexpected = [x for x in others if not _TRAINING_STATE.fullmatch(x)]
  weights = load_report.Weights(
    path=file.path,
    kind=form.kind,
    arrays=arrays,
    names=names | dict.fromkeys(folded, 'scale and bias'),
    folded=folded,
    unexpected=unexpected,
    layers=[x for x in unexpected if form.is_layer(x)],
    training_state=[
      *(x for x in others if _TRAINING_STATE.fullmatch(x)),
      *file.others,
    ],
  )
  return load_report.load_variables(variables, weights, options)


def roi_channels(ours: Mapping[str, Any]) -> int:
  """Channels of the RoI features that the dense layers take."""
  return ours['fpn/lateral5/kernel'].shape[-1]


def infer_model(
  form: Format, arrays: Mapping[str, np.ndarray]
) -> InferredModel:
  """The model of a state dict; `UserError` for a ResNet of unknown depth."""

  def width(layer, axis=0):
    array = arrays.get(form.name(f'{layer}/kernel'))
    return array.shape[axis] if array is not None else None

  def count(layers):
    kernels = (f'{layers.format(i)}/kernel' for i in itertools.count(1))
    there = (form.name(kernel) in arrays for kernel in kernels)
    return sum(1 for _ in itertools.takewhile(bool, there))

  blocks = count('backbone/stage4/block{}/conv1')
  third = form.name('backbone/stage4/block1/conv3/kernel') in arrays
  if (blocks, third) not in _DEPTHS:
    raise UserError(
      f'The backbone has {blocks} blocks of {3 if third else 2} convolutions '
      f'in stage 4, wanted a ResNet of {sorted(_DEPTHS.values())} layers.',
      argument='model.backbone.depth',
      wanted=sorted(_DEPTHS.values()),
    )
  sizes = {
    'backbone.width': width('backbone/stem/conv'),
    'backbone.depth': _DEPTHS[blocks, third],
  }
  classes = {}
  if form.kind == 'model':
    rows = width('box_head/class_logits')
    if rows is not None:
      sizes['num_classes'] = form.num_classes(rows)
      classes = coco_classes.of(sizes['num_classes'])
    dense = (form.name(f'box_head/fc{6 + i}/kernel') for i in range(4))
    sizes |= {
      'box_convs': count('box_head/conv{}'),
      'mask_convs': count('mask_head/conv{}'),
      'box_dense': sum(name in arrays for name in dense),
      'pyramid_channels': width('fpn/lateral2'),
      'box_channels': width('box_head/fc6'),
      'mask_channels': width('mask_head/deconv', axis=1),
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


def backbone_patterns(*names: str) -> Sequence[tuple[str, Callable]]:
  """Patterns for `namer` of the layers of a ResNet.

  Args:
    names: of the stem's convolution and norm, then of a convolution, norm,
      shortcut's convolution and norm of a block, where `{stage}` counts from 2,
      `{layer}` and `{conv}` from 1, `{block}` from 0 and `{letter}` from a.
  """
  block = r'backbone/stage(\d)/block(\d+)/'

  def replacement(name):
    return lambda match: name.format(
      stage=match[1],
      layer=int(match[1]) - 1,
      block=int(match[2]) - 1,
      conv=match[3],
      letter='abc'[int(match[3] or 1) - 1],
    )

  ours = (r'conv(\d)', r'norm(\d)', 'shortcut_conv()', 'shortcut_norm()')
  return (
    ('backbone/stem/conv', names[0]),
    ('backbone/stem/norm', names[1]),
    *((block + x, replacement(name)) for x, name in zip(ours, names[2:])),
  )


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


def from_torch(name: str, array: np.ndarray, channels: int) -> np.ndarray:
  """A PyTorch array in our layout; unchanged where its rank is unexpected.

  `name` is ours; `channels` are those of the RoI features.
  """
  if name.startswith(_DELTAS) and array.shape[0] % 4 == 0:
    array = _swap_box_axes(array)
  if not name.endswith('/kernel'):
    return array
  if array.ndim == 4:
    axes = _DECONV_AXES if name == _DECONV else np.argsort(_CONV_AXES)
    return array.transpose(axes)
  if array.ndim != 2:
    return array
  if name == _FLATTENED and (side := _map_side(array.shape[1], channels)):
    maps = array.reshape(-1, channels, side, side)
    array = maps.transpose(0, 2, 3, 1).reshape(array.shape)
  return array.T


def to_torch(name: str, array: np.ndarray, channels: int) -> np.ndarray:
  """One of our arrays in PyTorch's layout; the inverse of `from_torch`."""
  if name.endswith('/kernel'):
    if array.ndim == 4:
      axes = np.argsort(_DECONV_AXES) if name == _DECONV else _CONV_AXES
      array = array.transpose(axes)
    else:
      array = array.T
  if name == _FLATTENED and (side := _map_side(array.shape[1], channels)):
    maps = array.reshape(-1, side, side, channels)
    array = maps.transpose(0, 3, 1, 2).reshape(array.shape)
  if name.startswith(_DELTAS):
    array = _swap_box_axes(array)
  return np.ascontiguousarray(array)


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
