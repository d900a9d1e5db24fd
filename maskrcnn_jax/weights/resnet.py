"""ResNets in state dicts: patterns of names, sizes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from maskrcnn_jax.errors import UserError

# (blocks of stage 4, three convolutions in a block) -> depth.
_DEPTHS = {
  (2, False): 18,
  (6, False): 34,
  (6, True): 50,
  (23, True): 101,
  (36, True): 152,
}


def sizes(shapes: Any) -> Mapping[str, Any]:
  """Fields of `model`; `UserError` for another depth.

  Args:
    shapes: `state_dicts.FileShapes`.
  """
  blocks = shapes.count('backbone/stage4/block{}/conv1')
  third = shapes.width('backbone/stage4/block1/conv3') is not None
  if (blocks, third) not in _DEPTHS:
    raise UserError(
      f'{shapes.file.path}: the backbone has {blocks} blocks of '
      f'{3 if third else 2} convolutions in stage 4, wanted a ResNet of '
      f'{sorted(_DEPTHS.values())} layers.',
      argument='model.backbone.depth',
      path=shapes.file.path,
      wanted=sorted(_DEPTHS.values()),
    )
  width = shapes.width('backbone/stem/conv')
  found = {
    'backbone.width': width,
    'backbone.depth': _DEPTHS[blocks, third],
  }
  kernel = shapes.shape('backbone/stage2/block1/conv2/kernel')
  is_known = third and width and kernel and len(kernel) == 4
  if is_known and kernel[3] > kernel[2]:
    found['backbone.groups'] = kernel[3] // kernel[2]
    found['backbone.group_width'] = kernel[2] * 64 // width
  return found


def patterns(*names: str) -> Sequence[tuple[str, Callable]]:
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
