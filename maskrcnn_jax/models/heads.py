"""The three heads: region proposals, boxes with classes, masks.

Whatever the precision, outputs are float32: losses and box arithmetic start
here.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from maskrcnn_jax.models import layers
from maskrcnn_jax.ops import convolution


@flax.struct.dataclass
class RPNOutputs:
  """What the region proposal network says of every anchor, by level.

  Attributes:
    objectness_logits: `[batch, num_anchors]` per level.
    box_deltas: `[batch, num_anchors, 4]` per level, `(dy, dx, dh, dw)`.
  """

  objectness_logits: dict[int, jax.Array]
  box_deltas: dict[int, jax.Array]


@flax.struct.dataclass
class BoxOutputs:
  """What the box head says of every RoI.

  Attributes:
    class_logits: `[batch, num_rois, num_classes]`.
    box_deltas: `[batch, num_rois, num_classes, 4]`.
  """

  class_logits: jax.Array
  box_deltas: jax.Array


class RPNHead(nn.Module):
  """One small network slid over every level (Faster R-CNN, Sec. 3.1).

  Attributes:
    anchors_per_cell: anchors at every position.
    channels: of the hidden 3x3 convolution.
    dtype: precision, see `layers.PRECISIONS`.
  """

  anchors_per_cell: int = 3
  channels: int = 256
  dtype: str = 'float32'

  def setup(self):
    normal = nn.initializers.normal(0.01)
    self.conv = layers.Conv(
      self.channels, size=3, kernel_init=normal, dtype=self.dtype
    )
    self.objectness = layers.Conv(
      self.anchors_per_cell, kernel_init=normal, dtype=self.dtype
    )
    self.box_deltas = layers.Conv(
      4 * self.anchors_per_cell, kernel_init=normal, dtype=self.dtype
    )

  def __call__(self, pyramid: dict[int, jax.Array]) -> RPNOutputs:
    """Logits and deltas for a pyramid of `[batch, height, width, channels]`.

    Anchors are ordered by row, column, then anchor of the cell.
    """
    logits, deltas = {}, {}
    for level, features in pyramid.items():
      x = nn.relu(self.conv(features))
      batch = x.shape[0]
      logits[level] = _float32(self.objectness(x)).reshape(batch, -1)
      deltas[level] = _float32(self.box_deltas(x)).reshape(batch, -1, 4)
    return RPNOutputs(logits, deltas)


class BoxHead(nn.Module):
  """Two dense layers, then class logits and class-specific box deltas.

  Attributes:
    num_classes: with background.
    channels: of the two dense layers.
    dtype: precision, see `layers.PRECISIONS`.
  """

  num_classes: int = 91
  channels: int = 1024
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, features: jax.Array) -> BoxOutputs:
    """Outputs for RoI features `[batch, num_rois, size, size, channels]`."""
    batch, num_rois = features.shape[:2]
    x = features.reshape(batch, num_rois, -1)
    glorot = nn.initializers.xavier_uniform()
    x = nn.relu(self._dense(self.channels, glorot, 'fc6')(x))
    x = nn.relu(self._dense(self.channels, glorot, 'fc7')(x))
    logits = self._dense(
      self.num_classes, nn.initializers.normal(0.01), 'class_logits'
    )(x)
    deltas = self._dense(
      4 * self.num_classes, nn.initializers.normal(0.001), 'box_deltas'
    )(x)
    deltas = deltas.reshape(batch, num_rois, self.num_classes, 4)
    return BoxOutputs(_float32(logits), _float32(deltas))

  def _dense(self, features, kernel_init, name):
    return layers.Dense(
      features, kernel_init=kernel_init, dtype=self.dtype, name=name
    )


class MaskHead(nn.Module):
  """Convolutions, an upsampling by 2, one mask per class (Mask R-CNN, Fig. 4).

  Attributes:
    num_classes: with background.
    channels: of every hidden layer.
    num_convs: 3x3 convolutions before the upsampling.
    dtype: precision, see `layers.PRECISIONS`.
  """

  num_classes: int = 91
  channels: int = 256
  num_convs: int = 4
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, features: jax.Array, classes: jax.Array) -> jax.Array:
    """Mask logits of one class per RoI.

    Only the asked class's channel of the last layer is computed: with 91
    classes a ninetieth of its work and memory, and the same numbers.

    Args:
      features: `[batch, num_rois, size, size, channels]`.
      classes: `[batch, num_rois]` int32, the class of each mask.

    Returns:
      `[batch, num_rois, 2 * size, 2 * size]`.
    """
    batch, num_rois, size = features.shape[:3]
    x = features.reshape((batch * num_rois, *features.shape[2:]))
    he = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
    for index in range(self.num_convs):
      x = nn.relu(
        layers.Conv(
          self.channels,
          size=3,
          kernel_init=he,
          dtype=self.dtype,
          name=f'conv{index + 1}',
        )(x)
      )
    # He et al.'s MSRA fill, fan out, as both published systems start it.
    x = nn.relu(
      layers.UpsampleConv(
        self.channels, kernel_init=he, dtype=self.dtype, name='deconv'
      )(x)
    )
    logits = ClassMask(self.num_classes, dtype=self.dtype, name='mask_logits')(
      x, classes.reshape(-1)
    )
    logits = convolution.interleave(logits, 2)
    return logits.reshape(batch, num_rois, 2 * size, 2 * size)


class ClassMask(nn.Module):
  """1x1 convolution to one channel per class, for one class per RoI."""

  num_classes: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, classes):
    init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
    shape = (1, 1, x.shape[-1], self.num_classes)
    kernel = self.param('kernel', init, shape)
    bias = self.param('bias', nn.initializers.zeros, (self.num_classes,))
    products = layers.product_dtype(self.dtype)
    weights = jnp.take(kernel[0, 0].T, classes, axis=0).astype(products)
    logits = jnp.einsum('nhwpc,nc->nhwp', x.astype(products), weights)
    return _float32(logits) + jnp.take(bias, classes)[:, None, None, None]


def _float32(x):
  return x.astype(jnp.float32)
