"""Names of variables in TensorFlow checkpoints.

Four layouts are known: Google's ResNet, which Habana's and Google's Mask R-CNN
hold in a scope; NVIDIA's ResNet classifier; and NVIDIA's Mask R-CNN. Layers are
numbered in the order of their calls: the stem, then the blocks, each with its
projection, if any, first.
"""

import dataclasses
import re
from collections.abc import Collection

import numpy as np

from maskrcnn_jax.weights import state_dicts
from maskrcnn_jax.weights.state_dicts import Format

_LAYER = re.compile(
  r'backbone/(?:stem|stage(\d)/block(\d+))/'
  r'(?:(?:conv|norm)(\d?)|shortcut_(?:conv|norm))'
)
# Variables in a layer: ours -> theirs.
_LEAVES = {
  'kernel': 'kernel',
  'scale': 'gamma',
  'bias': 'beta',
  'mean': 'moving_mean',
  'variance': 'moving_variance',
}
# Layers outside the backbone: ours -> theirs.
_HEADS = (
  (r'fpn/lateral(\d)', r'fpn/l\1'),
  (r'fpn/output(\d)', r'fpn/post_hoc_d\1'),
  (r'rpn_head/conv', 'rpn_head/rpn'),
  (r'rpn_head/objectness', 'rpn_head/rpn-class'),
  (r'rpn_head/box_deltas', 'rpn_head/rpn-box'),
  (r'box_head/(fc\d)', r'box_head/\1'),
  (r'box_head/class_logits', 'box_head/class-predict'),
  (r'box_head/box_deltas', 'box_head/box-predict'),
  (r'mask_head/conv(\d+)', lambda m: f'mask_head/mask-conv-l{int(m[1]) - 1}'),
  (r'mask_head/deconv', 'mask_head/conv5-mask'),
  (r'mask_head/mask_logits', 'mask_head/mask_fcn_logits'),
)
_head_name = state_dicts.namer(
  _HEADS, 'TensorFlow checkpoints', {'kernel': 'kernel', 'bias': 'bias'}, '/'
)
_HEAD_SCOPES = ('fpn/', 'rpn_head/', 'box_head/', 'mask_head/')
_NUMBERED = '(conv2d|batch_normalization|btlnck_block|bottleneck_group)[_/]'
_TRAINING_STATE = re.compile(
  r'optimizer/.*|.*\.OPTIMIZER_SLOT.*|(SGD|Adam)/.*'
  r'|(.*/)?(Momentum|momentum|Adam|RMSProp|ExponentialMovingAverage)(_\d+)?'
  r'|(.*/)?(global_step|save_counter|beta[12]_power)(:0)?'
  r'|(.*/)?(current_)?loss_scale(/.*)?|(.*/)?good_steps'
  r'|_CHECKPOINTABLE_OBJECT_GRAPH'
)
# Blocks of stages 2 to 5 by the number of convolutions.
_BLOCKS = {53: (3, 4, 6, 3), 104: (3, 4, 23, 3)}


def find_format(names: Collection[str]) -> Format | None:
  """Format of a checkpoint with these names; None if unknown."""
  for pattern, convolution, config in _BACKBONES:
    matches = (re.fullmatch(pattern, name) for name in names)
    if match := next(filter(None, matches), None):
      model_scope = match['model'] or ''
      scope = model_scope + (match['backbone'] or '')
      return _format(names, model_scope, scope, convolution, config)
  return None


def _format(names, model_scope, backbone_scope, convolution, config) -> Format:
  heads = tuple(model_scope + scope for scope in _HEAD_SCOPES)
  is_model = any(name.startswith(heads) for name in names)
  numbered = re.compile(re.escape(backbone_scope) + _NUMBERED)
  convs = [x for x in names if numbered.match(x) and x.endswith('/kernel')]
  nearest = min(_BLOCKS, key=lambda count: abs(count - len(convs)))
  positions = {
    (x.stage, x.block, x.conv): x for x in _positions(_BLOCKS[nearest])
  }

  def name(path):
    layer, _, leaf = path.rpartition('/')
    if not (match := _LAYER.fullmatch(layer)):
      return model_scope + _head_name(path)
    position = positions.get(tuple(int(x or 0) for x in match.groups()))
    if not position:  # Of a larger network: a name that is missing.
      return backbone_scope + path
    conv, norm = convolution(position)
    layer = conv if leaf == 'kernel' else norm
    return f'{backbone_scope}{layer}/{_LEAVES[leaf]}'

  return Format(
    kind='model' if is_model else 'backbone',
    config=config,
    name=name,
    layout=_layout,
    is_layer=lambda name: bool(
      numbered.match(name) or (is_model and name.startswith(heads))
    ),
    training_state=_TRAINING_STATE,
  )


def _layout(name: str, array: np.ndarray, channels: int) -> np.ndarray:
  """An array in our layout; the kernel of a deconvolution differs."""
  swap = name == state_dicts.DECONV and array.ndim == 4
  return np.swapaxes(array, 2, 3) if swap else array


@dataclasses.dataclass(frozen=True)
class _Position:
  """Position of a convolution in the backbone.

  Attributes:
    stage: 2 to 5; 0 in the stem.
    block: in the stage, from 1; 0 in the stem.
    conv: in the block, from 1; 0 for its projection and in the stem.
    index: number of convolutions called before.
    index_of_plain: the same without projections.
    index_of_block: number of blocks before.
  """

  stage: int = 0
  block: int = 0
  conv: int = 0
  index: int = 0
  index_of_plain: int = 0
  index_of_block: int = 0

  @property
  def is_projection(self):
    return self.stage > 0 and self.conv == 0


def _positions(num_blocks) -> list[_Position]:
  """Convolutions of the backbone in the order of their calls."""
  found, plain = [_Position()], 1
  blocks = [
    (stage, block)
    for stage, count in enumerate(num_blocks, start=2)
    for block in range(1, count + 1)
  ]
  for index, (stage, block) in enumerate(blocks):
    for conv in range(0 if block == 1 else 1, 4):
      found.append(_Position(stage, block, conv, len(found), plain, index))
      plain += conv > 0
  return found


def _google(conv):
  return (
    _numbered('conv2d', conv.index),
    _numbered('batch_normalization', conv.index),
  )


def _nvidia_classifier(conv):
  block = f'btlnck_block_{conv.stage - 2}_{conv.block - 1}'
  if not conv.stage:
    scope = 'conv2d'
  elif conv.is_projection:
    scope = f'{block}/shortcut/conv2d'
  else:
    scope = f'{block}/bottleneck_{conv.conv}'
  return f'{scope}/conv2d', f'{scope}/BatchNorm'


def _nvidia_mask_rcnn(conv):
  scope = _numbered('conv2d_block', conv.index_of_plain)
  if conv.is_projection:
    scope = 'shortcut'
  if conv.stage:
    group = _numbered('bottleneck_group', conv.stage - 2)
    block = _numbered('bottleneck_block', conv.index_of_block)
    scope = f'{group}/{block}/{scope}'
  name, norm = _google(conv)
  return f'{scope}/{name}', f'{scope}/{norm}'


def _numbered(name, index):
  return f'{name}_{index}' if index else name


# Pattern of a name that only this layout has, with its scopes.
_BACKBONES = (
  (
    r'(?P<model>)(?P<backbone>resnet\d+/)?conv2d(_\d+)?/kernel',
    _google,
    'coco:habana_1x',
  ),
  (
    r'(?P<model>)(?P<backbone>resnet\d+/)btlnck_block_\d+_\d+/.*',
    _nvidia_classifier,
    'coco:nvidia_1x',
  ),
  (
    r'(?P<model>.*/)?(?P<backbone>resnet\d+/)bottleneck_group(_\d+)?/.*',
    _nvidia_mask_rcnn,
    'coco:nvidia_1x',
  ),
)
