"""State dicts of vision transformers: Detectron2's ViTDet, MAE's and timm's.

Detectron2 keeps MAE's names below `backbone.net.`. Classifiers have a class
token with a position of its own, which detectors drop, and lack relative
positions.
"""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from maskrcnn_jax.weights import detectron2, state_dicts
from maskrcnn_jax.weights.state_dicts import Format

_NET = 'backbone.net.'
_RPN_CONV = re.compile(r'.*\.rpn_head\.conv\.conv\d\.weight')
_LEAVES = {
  **state_dicts.LEAVES,
  'pos_embed': 'pos_embed',
  'relative_rows': 'rel_pos_h',
  'relative_columns': 'rel_pos_w',
}
# Depth of a ViT-L, which has a config of its own.
_LARGE = 24
# Channels of a head where no table tells them; 80 in a ViT-H.
_HEAD_WIDTHS = {1280: 80}
_HEAD_WIDTH = 64


def find_format(names: Collection[str]) -> Format | None:
  """Format of a state dict with these names; None if unknown."""
  is_model = f'{_NET}patch_embed.proj.weight' in names
  prefix = _NET if is_model else ''
  if f'{prefix}blocks.0.attn.qkv.weight' not in names:
    return None
  is_large = f'{prefix}blocks.{_LARGE - 1}.attn.qkv.weight' in names
  config = 'coco:vitdet_l' if is_large else 'coco:vitdet_b'
  if is_model:
    return _model_format(names, config)
  name_of = state_dicts.namer(_backbone(), 'MAE and timm', _LEAVES)
  return Format(
    kind='backbone',
    config=config,
    name=lambda path: name_of(path).removeprefix(_NET),
    layout=_layout,
    is_layer=lambda name: name.startswith(('blocks.', 'patch_embed.')),
    backbone_sizes=_sizes,
    lacks=lambda path: '/relative_' in path,
  )


def _model_format(names, config) -> Format:
  convs = [name for name in names if _RPN_CONV.fullmatch(name)]
  num_rpn = max(len(convs), 1)
  patterns = (*_backbone(), *_pyramid(), *detectron2.heads(num_rpn))
  return Format(
    kind='model',
    config=config,
    name=state_dicts.namer(patterns, 'Detectron2', _LEAVES),
    layout=_layout,
    arrange=detectron2.order_classes,
    num_classes=detectron2.count_classes,
    overrides=[f'model.rpn_convs={num_rpn}'],
    backbone_sizes=_sizes,
  )


def _backbone():
  def block(part):
    return lambda m: f'{_NET}blocks.{int(m[1]) - 1}.{part}'

  return (
    ('backbone', _NET.removesuffix('.')),
    ('backbone/patch', f'{_NET}patch_embed.proj'),
    # Tables of relative positions.
    (r'backbone/block(\d+)', block('attn')),
    (r'backbone/block(\d+)/norm1', block('norm1')),
    (r'backbone/block(\d+)/qkv', block('attn.qkv')),
    (r'backbone/block(\d+)/output', block('attn.proj')),
    (r'backbone/block(\d+)/norm2', block('norm2')),
    (r'backbone/block(\d+)/expand', block('mlp.fc1')),
    (r'backbone/block(\d+)/project', block('mlp.fc2')),
  )


def _pyramid():
  # Place of the 1x1 convolution in the sequence of a level; the 3x3 is next.
  places = {'2': 4, '3': 1, '4': 0, '5': 1}

  def conv(match):
    place = places[match[2]] + (match[1] == 'output')
    norm = '.norm' if match[3] else ''
    return f'backbone.simfp_{match[2]}.{place}{norm}'

  return (
    ('fpn/upsample2a', 'backbone.simfp_2.0'),
    ('fpn/upsample2_norm', 'backbone.simfp_2.1'),
    ('fpn/upsample2b', 'backbone.simfp_2.3'),
    ('fpn/upsample3', 'backbone.simfp_3.0'),
    (r'fpn/(lateral|output)(\d)(_norm)?', conv),
  )


def _layout(name: str, array: np.ndarray, channels: int) -> np.ndarray:
  """An array in our layout; positions are a grid without the class token."""
  if name != 'backbone/pos_embed' or array.ndim != 3:
    return state_dicts.from_torch(name, array, channels)
  tokens = array.shape[1]
  side = math.isqrt(tokens)
  if side**2 not in (tokens, tokens - 1):
    return array
  return array[0, tokens - side**2 :].reshape(side, side, -1)


def _sizes(shapes: state_dicts.FileShapes) -> Mapping[str, Any]:
  width = shapes.width('backbone/patch')
  depth = shapes.count('backbone/block{}/qkv')
  tables = [
    shapes.shape(f'backbone/block{i + 1}/relative_rows') for i in range(depth)
  ]
  positions = shapes.shape('backbone/pos_embed')
  sizes = {
    'backbone.kind': 'vit',
    'backbone.vit.width': width,
    'backbone.vit.depth': depth,
    'backbone.vit.position_side': positions and positions[0],
    # The last block of each quarter.
    'backbone.vit.global_blocks': tuple(
      depth * i // 4 - 1 for i in range(1, 5)
    ),
  }
  if None in tables or not tables:
    head = _HEAD_WIDTHS.get(width, _HEAD_WIDTH)
    return sizes | {'backbone.vit.heads': width and max(width // head, 1)}
  sides = [(len_of + 1) // 2 for len_of, _ in tables]
  largest, smallest = max(sides), min(sides)
  if largest > smallest:
    sizes['backbone.vit.global_blocks'] = tuple(
      i for i, side in enumerate(sides) if side == largest
    )
  return sizes | {
    'backbone.vit.heads': width // tables[0][1],
    'backbone.vit.window': smallest,
    'backbone.vit.table_side': largest,
  }
