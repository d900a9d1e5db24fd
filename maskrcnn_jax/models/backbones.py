"""Backbones by kind: options, modules, and rules for their parameters."""

import dataclasses
import operator

from maskrcnn_jax.errors import invalid
from maskrcnn_jax.models import convnext, vit
from maskrcnn_jax.models.convnext import ConvNeXt, ConvNeXtOptions
from maskrcnn_jax.models.fpn import FPN
from maskrcnn_jax.models.resnet import ResNet, ResNetOptions
from maskrcnn_jax.models.vit import SimpleFeaturePyramid, ViT, ViTOptions

# Kind -> options of the kind, its backbone, its feature pyramid.
KINDS = {
  'resnet': (lambda options: options, ResNet, FPN),
  'convnext': (operator.attrgetter('convnext'), ConvNeXt, FPN),
  'vit': (operator.attrgetter('vit'), ViT, SimpleFeaturePyramid),
}
# Kinds with a rule for layer-wise learning-rate decay.
_LAYERS = {'convnext': convnext, 'vit': vit}


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
    rule = _LAYERS.get(self.kind)
    return rule and rule.num_layers(KINDS[self.kind][0](self))

  def layer_of(self, names: tuple[str, ...]) -> int | None:
    """Layer of a parameter by its path below `backbone`, counted from 0.

    None for parameters that come after all layers.
    """
    return _LAYERS[self.kind].layer_of(names, KINDS[self.kind][0](self))
