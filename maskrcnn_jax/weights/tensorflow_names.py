"""Names of variables in TensorFlow checkpoints, from the places of layers.

Four layouts are known: Google's ResNet, which Habana's and Google's Mask R-CNN
hold in a scope of its own; NVIDIA's ResNet classifier; and NVIDIA's Mask R-CNN.
Layers without names of their own are numbered there in the order of their
calls: stem, then blocks, each with its projection, if any, before the others.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator

from maskrcnn_jax.errors import UserError

_CONV = re.compile(
  r'backbone/(?:stem|stage(\d)/block(\d+))/(?:conv(\d?)|shortcut_conv)/kernel'
)
# Of batch norm: ours, and theirs.
_NORM = {
  'scale': 'gamma',
  'bias': 'beta',
  'mean': 'moving_mean',
  'variance': 'moving_variance',
}
# Outside of the backbone: ours, and theirs.
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
_HEAD_SCOPES = ('fpn/', 'rpn_head/', 'box_head/', 'mask_head/')
_BOOKKEEPING = re.compile(
  r'optimizer/.*|.*\.OPTIMIZER_SLOT.*|(SGD|Adam)/.*'
  r'|(.*/)?(Momentum|momentum|Adam|RMSProp|ExponentialMovingAverage)(_\d+)?'
  r'|(.*/)?(global_step|save_counter|beta[12]_power)(:0)?'
  r'|(.*/)?(current_)?loss_scale(/.*)?|(.*/)?good_steps'
  r'|_CHECKPOINTABLE_OBJECT_GRAPH'
)


@dataclasses.dataclass(frozen=True)
class _Place:
  """Where a convolution of the backbone is.

  Attributes:
    stage: 2 to 5; 0 in the stem.
    block: of the stage, from 1; 0 in the stem.
    conv: of the block, from 1; 0 for its projection and in the stem.
    index: calls of convolutions before.
    index_of_plain: the same, projections not counted.
    index_of_block: blocks before.
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
  """How a checkpoint names its variables.

  Attributes:
    kind: `backbone`, or `model` if there are heads.
    model_scope: in front of every name.
    backbone_scope: in front of names of the backbone, with `model_scope`.
    convolution: names of a convolution of the backbone and its norm.
    config: shipped config of the model.
  """

  kind: str
  model_scope: str
  backbone_scope: str
  convolution: Callable[[_Place], tuple[str, str]]
  config: str

  def names(self, paths: Collection[str]) -> dict[str, str]:
    """Our name -> theirs, for all that a checkpoint of this kind must have.

    Args:
      paths: our names of all variables of a model.

    Raises:
      ValueError: a variable has no name there.
    """
    names = dict(self._backbone_names(paths))
    for path in paths:
      if path.startswith('backbone/'):
        if path not in names:
          raise UserError(f'{path} has no name in TensorFlow checkpoints.')
      elif self.kind == 'model':
        names[path] = self.model_scope + _head_name(path)
    return names

  def is_layer(self, name: str) -> bool:
    """Whether a name is of a layer, of a part that the checkpoint is about."""
    scope = re.escape(self.backbone_scope)
    numbered = '(conv2d|batch_normalization|btlnck_block|bottleneck_group)'
    if re.match(f'{scope}{numbered}[_/]', name):
      return True
    heads = tuple(self.model_scope + scope for scope in _HEAD_SCOPES)
    return self.kind == 'model' and name.startswith(heads)

  def _backbone_names(self, paths) -> Iterator[tuple[str, str]]:
    for place in _places(paths):
      conv, norm = place.ours()
      their_conv, their_norm = self.convolution(place)
      yield f'{conv}/kernel', f'{self.backbone_scope}{their_conv}/kernel'
      for leaf, their_leaf in _NORM.items():
        yield (
          f'{norm}/{leaf}',
          f'{self.backbone_scope}{their_norm}/{their_leaf}',
        )


def find_layout(names: Collection[str]) -> Layout | None:
  """How a checkpoint with these names names its variables; None if unknown."""
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


def is_bookkeeping(name: str) -> bool:
  """Whether a tensor is of the optimizer, or counts steps."""
  return _BOOKKEEPING.fullmatch(name) is not None


def _places(paths) -> Iterator[_Place]:
  """Convolutions of the backbone in the order of their calls."""
  matches = filter(None, map(_CONV.fullmatch, paths))
  keys = sorted(tuple(int(x or 0) for x in match.groups()) for match in matches)
  blocks, plain = [], 0
  for index, key in enumerate(keys):
    stage, block, conv = key
    if stage and (stage, block) not in blocks:
      blocks.append((stage, block))
    place = _Place(stage, block, conv, index, plain, max(len(blocks) - 1, 0))
    yield place
    plain += not place.is_projection


def _google(place):
  return (
    _numbered('conv2d', place.index),
    _numbered('batch_normalization', place.index),
  )


def _nvidia_classifier(place):
  block = f'btlnck_block_{place.stage - 2}_{place.block - 1}'
  if not place.stage:
    scope = 'conv2d'
  elif place.is_projection:
    scope = f'{block}/shortcut/conv2d'
  else:
    scope = f'{block}/bottleneck_{place.conv}'
  return f'{scope}/conv2d', f'{scope}/BatchNorm'


def _nvidia_mask_rcnn(place):
  scope = _numbered('conv2d_block', place.index_of_plain)
  if place.is_projection:
    scope = 'shortcut'
  if place.stage:
    group = _numbered('bottleneck_group', place.stage - 2)
    block = _numbered('bottleneck_block', place.index_of_block)
    scope = f'{group}/{block}/{scope}'
  conv, norm = _google(place)
  return f'{scope}/{conv}', f'{scope}/{norm}'


def _numbered(name, index):
  return f'{name}_{index}' if index else name


def _head_name(path):
  module, _, leaf = path.rpartition('/')
  for pattern, theirs in _HEADS:
    if re.fullmatch(pattern, module):
      return f'{re.sub(pattern, theirs, module)}/{leaf}'
  raise UserError(f'{path} has no name in TensorFlow checkpoints.')


# A name that a layout alone has, with its scopes, and its convolutions.
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
