"""Names of variables in TensorFlow checkpoints.

Four layouts are known: Google's ResNet, which Habana's and Google's Mask R-CNN
hold in a scope; NVIDIA's ResNet classifier; and NVIDIA's Mask R-CNN. Layers are
numbered in the order of their calls: the stem, then the blocks, each with its
projection, if any, first.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator

from maskrcnn_jax.weights import state_dicts

_CONV = re.compile(
  r'backbone/(?:stem|stage(\d)/block(\d+))/(?:conv(\d?)|shortcut_conv)/kernel'
)
# Variables of batch norm: ours -> theirs.
_NORM = {
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
_TRAINING_STATE = re.compile(
  r'optimizer/.*|.*\.OPTIMIZER_SLOT.*|(SGD|Adam)/.*'
  r'|(.*/)?(Momentum|momentum|Adam|RMSProp|ExponentialMovingAverage)(_\d+)?'
  r'|(.*/)?(global_step|save_counter|beta[12]_power)(:0)?'
  r'|(.*/)?(current_)?loss_scale(/.*)?|(.*/)?good_steps'
  r'|_CHECKPOINTABLE_OBJECT_GRAPH'
)


@dataclasses.dataclass(frozen=True)
class _Conv:
  """Position of a convolution in the backbone.

  Attributes:
    stage: 2 to 5; 0 in the stem.
    block: in the stage, from 1; 0 in the stem.
    conv: in the block, from 1; 0 for its projection and in the stem.
    index: number of convolutions called before.
    index_of_plain: the same without projections.
    index_of_block: number of blocks before.
  """

  stage: int
  block: int
  conv: int
  index: int
  index_of_plain: int
  index_of_block: int

  @property
  def is_projection(self):
    return self.stage > 0 and self.conv == 0

  def ours(self) -> tuple[str, str]:
    """Paths of the convolution and its norm."""
    if not self.stage:
      return 'backbone/stem/conv', 'backbone/stem/norm'
    block = f'backbone/stage{self.stage}/block{self.block}'
    if self.is_projection:
      return f'{block}/shortcut_conv', f'{block}/shortcut_norm'
    return f'{block}/conv{self.conv}', f'{block}/norm{self.conv}'


@dataclasses.dataclass(frozen=True)
class Layout:
  """Naming scheme of a checkpoint.

  Attributes:
    kind: `backbone`, or `model` if there are heads.
    model_scope: prefix of every name.
    backbone_scope: prefix of names of the backbone, with `model_scope`.
    convolution: names of a convolution of the backbone and its norm.
    config: shipped config of the model.
  """

  kind: str
  model_scope: str
  backbone_scope: str
  convolution: Callable[[_Conv], tuple[str, str]]
  config: str

  def names(self, paths: Collection[str]) -> dict[str, str]:
    """Our name -> theirs, of every variable that the checkpoint must have.

    Args:
      paths: our names of all variables of a model.

    Raises:
      UserError: a variable has no name in TensorFlow checkpoints.
    """
    names, scope = {}, self.backbone_scope
    for position in _convs(paths):
      conv, norm = position.ours()
      their_conv, their_norm = self.convolution(position)
      names[f'{conv}/kernel'] = f'{scope}{their_conv}/kernel'
      for leaf, theirs in _NORM.items():
        names[f'{norm}/{leaf}'] = f'{scope}{their_norm}/{theirs}'
    for path in paths:
      is_wanted = self.kind == 'model' or path.startswith('backbone/')
      if is_wanted and path not in names:
        names[path] = self.model_scope + _head_name(path)
    return names

  def is_layer(self, name: str) -> bool:
    """True for names in layers of a part that the checkpoint covers."""
    scope = re.escape(self.backbone_scope)
    numbered = '(conv2d|batch_normalization|btlnck_block|bottleneck_group)'
    if re.match(f'{scope}{numbered}[_/]', name):
      return True
    heads = tuple(self.model_scope + scope for scope in _HEAD_SCOPES)
    return self.kind == 'model' and name.startswith(heads)


def find_layout(names: Collection[str]) -> Layout | None:
  """Layout of a checkpoint with these names; None if unknown."""
  for pattern, convolution in _BACKBONES:
    for name in names:
      if match := re.fullmatch(pattern, name):
        model_scope = match['model'] or ''
        heads = tuple(model_scope + scope for scope in _HEAD_SCOPES)
        is_model = any(name.startswith(heads) for name in names)
        return Layout(
          kind='model' if is_model else 'backbone',
          model_scope=model_scope,
          backbone_scope=model_scope + (match['backbone'] or ''),
          convolution=convolution,
          config='coco:habana_1x'
          if convolution is _google
          else 'coco:nvidia_1x',
        )
  return None


def is_training_state(name: str) -> bool:
  """True for tensors of the optimizer and counters of steps."""
  return _TRAINING_STATE.fullmatch(name) is not None


def _convs(paths) -> Iterator[_Conv]:
  """Convolutions of the backbone in the order of their calls."""
  matches = filter(None, map(_CONV.fullmatch, paths))
  keys = sorted(tuple(int(x or 0) for x in match.groups()) for match in matches)
  blocks, plain = [], 0
  for index, key in enumerate(keys):
    stage, block, conv = key
    if stage and (stage, block) not in blocks:
      blocks.append((stage, block))
    found = _Conv(stage, block, conv, index, plain, max(len(blocks) - 1, 0))
    yield found
    plain += not found.is_projection


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
  (r'(?P<model>)(?P<backbone>resnet\d+/)?conv2d(_\d+)?/kernel', _google),
  (
    r'(?P<model>)(?P<backbone>resnet\d+/)btlnck_block_\d+_\d+/.*',
    _nvidia_classifier,
  ),
  (
    r'(?P<model>.*/)?(?P<backbone>resnet\d+/)bottleneck_group(_\d+)?/.*',
    _nvidia_mask_rcnn,
  ),
)
