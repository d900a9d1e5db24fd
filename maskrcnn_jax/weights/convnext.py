"""State dicts of ConvNeXt: names of torchvision, timm and the original."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from maskrcnn_jax.weights import state_dicts
from maskrcnn_jax.weights.state_dicts import Format

# Kernel of the stem -> names of the stem, of what is before stage {s} > 0, of a
# block, of its layers, and of its scale. Stages and blocks count from 0; torch-
# vision counts stages and what is before them in one row.
_SYSTEMS = {
  'features.0.0.weight': (
    'features.0.{i}',
    'features.{even}.{i}',
    'features.{odd}.{b}',
    ('block.0', 'block.2', 'block.3', 'block.5'),
    'layer_scale',
  ),
  'stem.0.weight': (
    'stem.{i}',
    'stages.{s}.downsample.{i}',
    'stages.{s}.blocks.{b}',
    ('conv_dw', 'norm', 'mlp.fc1', 'mlp.fc2'),
    'gamma',
  ),
  'downsample_layers.0.0.weight': (
    'downsample_layers.0.{i}',
    'downsample_layers.{s}.{i}',
    'stages.{s}.{b}',
    ('dwconv', 'norm', 'pwconv1', 'pwconv2'),
    'gamma',
  ),
}
# A layer of the first block, which other networks with such a stem lack.
_BLOCK_LAYER = {
  'features.0.0.weight': 'features.1.0.layer_scale',
  'stem.0.weight': 'stages.0.blocks.0.conv_dw.weight',
  'downsample_layers.0.0.weight': 'stages.0.0.dwconv.weight',
}
_LAYERS = ('depthwise', 'norm', 'expand', 'project')


def find_format(names: Collection[str]) -> Format | None:
  """Format of a state dict with these names; None if unknown."""
  for first, system in _SYSTEMS.items():
    if first in names and _BLOCK_LAYER[first] in names:
      return Format(
        kind='backbone',
        config='coco:convnext_tiny',
        name=state_dicts.namer(
          _patterns(*system[:4]),
          'ConvNeXt',
          {**state_dicts.LEAVES, 'layer_scale': system[4]},
        ),
        layout=_layout,
        is_layer=lambda name: name.startswith(
          ('features.', 'stem.', 'stages.', 'downsample_layers.')
        ),
        backbone_sizes=_sizes,
        lacks=lambda name: (
          'norm0.weight' not in names
          and bool(re.fullmatch(r'backbone/norm\d/.*', name))
        ),
      )
  return None


def _patterns(stem, before, block, layers):
  def stage(name, **more):
    def replacement(match):
      s = int(match[1]) - 2
      b = int(match[2]) - 1 if match.re.groups > 1 else None
      return name.format(s=s, b=b, even=2 * s, odd=2 * s + 1, **more)

    return replacement

  in_block = r'backbone/stage(\d)/block(\d+)'
  return (
    ('backbone/stem', stem.format(i=0)),
    ('backbone/stem_norm', stem.format(i=1)),
    (r'backbone/stage(\d)/downsample_norm', stage(before, i=0)),
    (r'backbone/stage(\d)/downsample', stage(before, i=1)),
    (in_block, stage(block)),
    *(
      (f'{in_block}/{ours}', stage(f'{block}.{theirs}'))
      for ours, theirs in zip(_LAYERS, layers)
    ),
    (r'backbone/norm(\d)', stage('norm{s}')),
  )


def _layout(name: str, array: np.ndarray, channels: int) -> np.ndarray:
  """An array in our layout; torchvision's scales have two more axes."""
  if name.endswith('/layer_scale') and array.ndim == 3:
    return array.reshape(-1)
  return state_dicts.from_torch(name, array, channels)


def _sizes(shapes: state_dicts.FileShapes) -> Mapping[str, Any]:
  stages = [f'backbone/stage{level}/block' for level in range(2, 6)]
  blocks = tuple(shapes.count(x + '{}/project') for x in stages)
  return {
    'backbone.kind': 'convnext',
    'backbone.convnext.blocks': blocks,
    'backbone.convnext.widths': tuple(
      shapes.width(f'{x}1/project') for x in stages
    ),
  }
