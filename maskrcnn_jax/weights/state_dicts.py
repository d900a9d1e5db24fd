"""State dicts of PyTorch programs -> our variables, and the model they are of.

`torchvision.py` and `detectron2.py` know the names; here is what they share.
"""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import account as account_lib
from maskrcnn_jax.weights import tensor_files, torch_layout
from maskrcnn_jax.weights.account import Account

_BOOKKEEPING = re.compile(
  r'(.*\.)?num_batches_tracked|.*_momentum|lr|pixel_mean|pixel_std'
  r'|.*anchor_generator\.cell_anchors\..*|(.*/)?weight_order'
)
_STATISTICS = ('mean', 'variance')
# (blocks of stage 4, three convolutions in a block) -> depth.
_DEPTHS = {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101}
# As many names as an error mentions.
_NUM_MENTIONED = 5


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The model that weights are of, in the words of the command line.

  Attributes:
    config: a shipped config, such as `coco:torchvision`.
    overrides: what of it is another way, such as `model.num_classes=5`.
    classes: names by class id; empty if the file is not of a known set.
  """

  config: str
  overrides: Sequence[str] = ()
  classes: Mapping[int, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Format:
  """How a state dict names its tensors.

  Attributes:
    system: whose names they are.
    kind: `backbone`, or `model` if there are heads.
    config: shipped config of the model.
    name: our name of a variable -> theirs; raises `ValueError` if it has none.
    is_layer: whether a name is of a layer of the part that the file is about.
    has_statistics: norms have means and variances; else they are part of scale
      and bias.
    arrange: for what is not a matter of layout, such as the order of classes:
      our name, their array, our shape -> their array in our order.
    overrides: of the config, besides those that the shapes tell.
  """

  system: str
  kind: str
  config: str
  name: Callable[[str], str]
  is_layer: Callable[[str], bool]
  has_statistics: bool = True
  arrange: Callable[[str, np.ndarray, tuple], np.ndarray] | None = None
  overrides: Sequence[str] = ()


def load(
  file: tensor_files.Tensors,
  form: Format,
  variables: Mapping[str, Any],
  fit: account_lib.Fit = account_lib.WHOLE,
) -> tuple[dict[str, Any], Account]:
  """Variables with every tensor that a state dict has for them.

  Args:
    file: what was read.
    form: of its names.
    variables: `params` and `batch_stats` of `MaskRCNN`, as nested dicts of
      arrays or `jax.ShapeDtypeStruct`s.
    fit: how much of the model the state dict must cover.

  Returns:
    variables: the same structure, with float32 arrays of NumPy where loaded and
      the given ones elsewhere.
    account: what went where.

  Raises:
    ValueError: the state dict does not fit the model.
  """
  ours = account_lib.flatten(variables)
  names, implied = {}, {}
  for path in ours:
    if form.kind == 'backbone' and not path.startswith('backbone/'):
      continue
    is_statistic = path.rpartition('/')[2] in _STATISTICS
    if is_statistic and not form.has_statistics:
      implied[path] = 'scale and bias'
    else:
      names[path] = form.name(path)
  arrays = _arrays(file, form, names, ours)
  for path in implied:
    fill = np.ones if path.endswith('/variance') else np.zeros
    arrays[path] = fill(ours[path].shape, np.float32)
  others = sorted(file.arrays.keys() - {*names.values()})
  bookkeeping = [x for x in others if _BOOKKEEPING.fullmatch(x)]
  surplus = [x for x in others if x not in set(bookkeeping)]
  filled, misfits, left_over = account_lib.fill(
    variables,
    arrays,
    names | implied,
    file.path,
    excess=[x for x in surplus if form.is_layer(x)],
    fit=fit,
  )
  return filled, Account(
    source=pathlib.Path(file.path).name,
    kind=form.kind,
    loaded={k: v for k, v in names.items() if k not in misfits},
    surplus=[x for x in surplus if x not in left_over],
    bookkeeping=[*bookkeeping, *file.others],
    implied=[x for x in implied if x not in misfits],
    initial=[x for x in ours if x not in names and x not in implied],
    misfits=misfits,
    left_over=left_over,
  )


def _arrays(file, form, names, ours) -> dict[str, np.ndarray]:
  """Our name -> array in our layout, of those that the file has."""
  channels = roi_channels(ours)
  arrays = {}
  for path, theirs in names.items():
    if theirs not in file.arrays:
      continue
    array = file.arrays[theirs]
    if form.arrange:
      array = form.arrange(path, array, ours[path].shape)
    arrays[path] = torch_layout.from_torch(path, array, channels)
  return arrays


def roi_channels(ours: Mapping[str, Any]) -> int:
  """Channels of the RoI features that the dense layers see."""
  return ours['fpn/lateral5/kernel'].shape[-1]


def shape_overrides(
  form: Format, arrays: Mapping[str, np.ndarray]
) -> list[str]:
  """What the shapes of a state dict say of the model, as overrides.

  Raises:
    ValueError: the backbone is none of the ResNets here.
  """
  sizes = {'backbone.width': _out(form, arrays, 'backbone/stem/conv')}
  sizes['backbone.depth'] = _depth(form, arrays)
  if form.kind == 'model':
    count = {
      name: _count(form, arrays, pattern)
      for name, pattern in (
        ('box_convs', 'box_head/conv{}'),
        ('mask_convs', 'mask_head/conv{}'),
      )
    }
    sizes |= count
    sizes['box_dense'] = sum(
      form.name(f'box_head/fc{6 + i}/kernel') in arrays for i in range(4)
    )
    sizes['pyramid_channels'] = _out(form, arrays, 'fpn/lateral2')
    sizes['box_channels'] = _out(form, arrays, 'box_head/fc6')
    sizes['mask_channels'] = _out(form, arrays, 'mask_head/deconv', axis=1)
  known = {key: value for key, value in sizes.items() if value is not None}
  return [f'model.{name}={value}' for name, value in known.items()]


def _out(form, arrays, layer, axis=0):
  """Output channels of a layer; None if the file lacks it."""
  array = arrays.get(form.name(f'{layer}/kernel'))
  return array.shape[axis] if array is not None else None


def _count(form, arrays, pattern) -> int:
  """Layers of a pattern that the file has, from number 1 on."""
  return next(
    number
    for number in itertools.count()
    if form.name(f'{pattern.format(number + 1)}/kernel') not in arrays
  )


def _depth(form, arrays) -> int:
  blocks = _count(form, arrays, 'backbone/stage4/block{}/conv1')
  third = form.name('backbone/stage4/block1/conv3/kernel') in arrays
  if (blocks, third) not in _DEPTHS:
    raise UserError(
      f'The backbone has {blocks} blocks of {3 if third else 2} convolutions '
      f'in stage 4, wanted a ResNet of {sorted(_DEPTHS.values())} layers.'
    )
  return _DEPTHS[blocks, third]


def norm_kind(names: Collection[str], scope: str) -> str:
  """Which kind of norm has names like `scope.weight`; `none` if there is none.

  A batch norm that learns counts its batches; a group norm has no statistics.
  """
  if f'{scope}.weight' not in names:
    return 'none'
  if f'{scope}.running_mean' not in names:
    return 'group'
  return 'batch' if f'{scope}.num_batches_tracked' in names else 'frozen'


def unknown(file: tensor_files.Tensors) -> ValueError:
  """The error for a state dict whose names nobody knows."""
  mentioned = ', '.join(sorted(file.arrays)[:_NUM_MENTIONED])
  return ValueError(
    f'{file.path} is neither a ResNet nor a Mask R-CNN with names of '
    'torchvision, timm, Detectron2 or Caffe2. It has '
    f'{len(file.arrays)} tensors: {mentioned}, ...'
  )


def backbone_path(path: str) -> re.Match | None:
  """The place of a variable of the backbone, in named groups.

  Groups `stage`, `block` (both None in the stem), `layer` (`conv`, `norm`,
  `shortcut_conv`, `shortcut_norm`), `number` and `leaf`.
  """
  return re.fullmatch(
    r'backbone/(?:stem|stage(?P<stage>\d)/block(?P<block>\d+))/'
    r'(?P<layer>shortcut_conv|shortcut_norm|conv|norm)(?P<number>\d?)/'
    r'(?P<leaf>\w+)',
    path,
  )


# Leaves of PyTorch's modules; of a norm the scale is a weight, too.
LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'variance': 'running_var',
}


def rename(
  path: str, patterns: Sequence[tuple[str, str | Callable]], system: str
) -> str:
  """The name of a head's variable, by the first pattern that fits its layer.

  Args:
    path: our name.
    patterns: of a layer, and what stands for it.
    system: whose names they are, for the error.

  Raises:
    ValueError: none fits.
  """
  layer, _, leaf = path.rpartition('/')
  for pattern, theirs in patterns:
    if re.fullmatch(pattern, layer):
      return f'{re.sub(pattern, theirs, layer)}.{LEAVES[leaf]}'
  raise UserError(f'{path} has no name in {system}.')
