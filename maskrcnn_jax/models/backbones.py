"""Backbones by kind: options, modules, and rules for their parameters.

Another backbone is a file beside this one, a row of `KINDS`, and a field of
`BackboneOptions` for its options; `weights.external` has a row for its files.
"""

import dataclasses
import operator
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn

from maskrcnn_jax.errors import invalid
from maskrcnn_jax.models import convnext, vit
from maskrcnn_jax.models.convnext import ConvNeXt, ConvNeXtOptions
from maskrcnn_jax.models.fpn import FPN
from maskrcnn_jax.models.resnet import ResNet, ResNetOptions
from maskrcnn_jax.models.vit import SimpleFeaturePyramid, ViT, ViTOptions


class Kind(NamedTuple):
  """A kind of backbone.

  Attributes:
    options: `BackboneOptions` -> the options of the kind.
    body: the module.
    pyramid: the module of its feature pyramid.
    layers: has `num_layers` and `layer_of`, the rule for layer-wise
      learning-rate decay; None: there is none.
  """

  options: Callable[[Any], Any]
  body: type[nn.Module]
  pyramid: type[nn.Module]
  layers: types.ModuleType | None = None


KINDS = {
  'resnet': Kind(lambda options: options, ResNet, FPN),
  'convnext': Kind(operator.attrgetter('convnext'), ConvNeXt, FPN, convnext),
  'vit': Kind(operator.attrgetter('vit'), ViT, SimpleFeaturePyramid, vit),
}


@dataclasses.dataclass(frozen=True)
class BackboneOptions(ResNetOptions):
  """The kind of the backbone, and options of each kind.

  Attributes:
    kind: `resnet`, whose options are fields of this class, `convnext` or `vit`.
    convnext: options of a ConvNeXt.
    vit: options of a vision transformer.
  """

  kind: str = 'resnet'
  convnext: ConvNeXtOptions = ConvNeXtOptions()
  vit: ViTOptions = ViTOptions()

  def __post_init__(self):
    super().__post_init__()
    if self.kind not in KINDS:
      wanted = f'one of {", ".join(KINDS)}'
      raise invalid('model.backbone.kind', self.kind, wanted)

  @property
  def num_frozen(self) -> int:
    """Number of frozen stages, counted from the stem; only of a ResNet."""
    return self.frozen_stages if self.kind == 'resnet' else 0

  @property
  def has_frozen_parts(self) -> bool:
    """Whether parts keep their initial values; only of a ResNet."""
    return self.kind == 'resnet' and (
      self.norm == 'frozen' or self.frozen_stages > 0
    )

  @property
  def num_layers(self) -> int | None:
    """Layers of the backbone that `layer_of` counts; None if it has no rule."""
    kind = KINDS[self.kind]
    return kind.layers and kind.layers.num_layers(kind.options(self))

  def layer_of(self, names: tuple[str, ...]) -> int | None:
    """Layer of a parameter by its path below `backbone`, counted from 0.

    None for parameters that come after all layers.
    """
    kind = KINDS[self.kind]
    return kind.layers.layer_of(names, kind.options(self))
