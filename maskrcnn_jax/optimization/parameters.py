"""Groups of parameters: trained or frozen, decayed or not, rate by layer.

All functions return trees in the structure of the parameters.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

# Values of `optimizer.decayed`, see `decayed_parameters`.
DECAYED = ('kernels', 'all_but_norms', 'all_but_backbone_norms', 'all')
_POSITIONS = 'pos_embed'


def trainable_parameters(
  params: Mapping[str, Any], frozen_stages: int
) -> Mapping[str, Any]:
  """Bools: False in frozen backbone stages.

  They are counted as in `ResNetOptions.frozen_stages`.
  """
  stages = ['stem'] + [f'stage{level}' for level in range(2, 6)]
  frozen = [('backbone', stage) for stage in stages[:frozen_stages]]
  return _map(lambda names: names[:2] not in frozen, params)


def decayed_parameters(
  params: Mapping[str, Any], kind: str
) -> Mapping[str, Any]:
  """Bools: True for parameters that weight decay makes smaller.

  Args:
    params: of the model.
    kind: `kernels`: kernels only (Habana; ConvNeXt, whose rule is two axes and
      more). `all_but_norms`: all but scales and biases of norms and position
      embeddings (Detectron2). `all_but_backbone_norms`: the same, and norms
      outside the backbone decay too (ViTDet, where Detectron2 does not take
      them for norms). `all` (torchvision).
  """
  if kind == 'all':
    return _map(lambda _: True, params)
  if kind == 'kernels':
    return _map(lambda names: names[-1] == 'kernel', params)
  leaves = jax.tree.leaves_with_path(params)
  norms = {_names(path)[:-1] for path, _ in leaves if path[-1].key == 'scale'}
  if kind == 'all_but_backbone_norms':
    norms = {names for names in norms if names[0] == 'backbone'}
  return _map(
    lambda names: names[:-1] not in norms and names[-1] != _POSITIONS, params
  )


def rate_factors(
  params: Mapping[str, Any],
  decay: float,
  num_layers: int,
  layer_of: Callable[[tuple[str, ...]], int | None],
) -> Mapping[str, Any]:
  """Floats: factors of the learning rate, smaller towards the input.

  Args:
    params: of the model.
    decay: factor from a layer to the one before it.
    num_layers: of the backbone; all other parameters come after them.
    layer_of: layer of a parameter, counted from 0, by its path below
      `backbone`; None: it comes after all layers.

  ELECTRA, Clark et al. 2020; ViTDet, Li et al. 2022.
  """

  def factor(names):
    layer = layer_of(names[1:]) if names[0] == 'backbone' else None
    return 1.0 if layer is None else decay ** (num_layers - layer)

  return _map(factor, params)


def _map(function, params):
  return jax.tree.map_with_path(lambda path, _: function(_names(path)), params)


def _names(path) -> tuple[str, ...]:
  return tuple(key.key for key in path)
