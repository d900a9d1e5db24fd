"""Plain vision transformer and its feature pyramid (ViTDet, Li et al. 2022)."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from maskrcnn_jax.errors import invalid
from maskrcnn_jax.models import fpn, layers, norms
from maskrcnn_jax.models.layout import Layout
from maskrcnn_jax.ops import attention, convolution

# Pixels of the side of a patch; the map of a ViT is level 4.
_PATCH, _LEVEL = 16, 4
_EPSILON = 1e-6
_PATH = 'model.backbone.vit'
# PyTorch's truncated normal cuts at 2, a hundred deviations.
_normal = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class ViTOptions:
  """Sizes of a vision transformer; the defaults are ViTDet-B's.

  Attributes:
    width: number of channels of a token.
    depth: number of blocks.
    heads: number of attention heads.
    window: side of the windows of local attention, in tokens.
    global_blocks: blocks whose attention sees the whole image, from 0.
    position_side: side of the grid of absolute positions, 14 for pretraining at
      224 pixels; it is resized to the image.
    table_side: side of the maps that the relative positions of global blocks
      are stored for, 64 for 1024 pixels; they are resized to the image.
    drop_path: chance that each branch of the last block is skipped in training;
      that of the others grows linearly from 0.
    remat: blocks are computed again in the backward pass, instead of storing
      their activations.
  """

  width: int = 768
  depth: int = 12
  heads: int = 12
  window: int = 14
  global_blocks: tuple[int, ...] = (2, 5, 8, 11)
  position_side: int = 14
  table_side: int = 64
  drop_path: float = 0.0
  remat: bool = False

  def __post_init__(self):
    if self.width % self.heads:
      wanted = f'a divisor of {_PATH}.width, {self.width}'
      raise invalid(f'{_PATH}.heads', self.heads, wanted)
    if any(not 0 <= block < self.depth for block in self.global_blocks):
      wanted = f'numbers from 0 to {self.depth - 1}'
      raise invalid(f'{_PATH}.global_blocks', self.global_blocks, wanted)
    if not 0.0 <= self.drop_path < 1.0:
      wanted = 'at least 0 and below 1'
      raise invalid(f'{_PATH}.drop_path', self.drop_path, wanted)


class ViT(nn.Module):
  """Vision transformer that returns one map, of stride 16.

  Cells outside an image are tokens as others: Detectron2 pads images with zeros
  to a square and masks nothing, so its weights know only that.

  Attributes:
    options: see `ViTOptions`.
    dtype: precision, see `layers.PRECISIONS`.
  """

  options: ViTOptions = ViTOptions()
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self, images: jax.Array, valid: jax.Array | None = None, train: bool = False
  ) -> dict[int, jax.Array]:
    """The map by its level.

    Args:
      images: `[batch, height, width, 3]`, normalised, sides divisible by 16.
      valid: unused; no norm has statistics of a batch.
      train: whether branches are dropped, with the `drop_path` stream.

    Returns:
      Level 4, `[batch, height / 16, width / 16, channels]`.
    """
    del valid
    options = self.options
    x = layers.PatchConv(
      options.width, _PATCH, _normal, self.dtype, name='patch'
    )(images)
    side = options.position_side
    positions = self.param('pos_embed', _normal, (side, side, options.width))
    x = x + attention.resize_positions(positions, x.shape[1:3]).astype(x.dtype)
    paths = [None] * options.depth
    if train and options.drop_path:
      paths = layers.drop_path_factors(
        self.make_rng('drop_path'), options.drop_path, len(paths), len(images)
      )
    block = nn.remat(Block) if options.remat else Block
    for index, path in enumerate(paths):
      is_global = index in options.global_blocks
      x = block(
        options.heads,
        window=None if is_global else options.window,
        table_side=options.table_side if is_global else options.window,
        dtype=self.dtype,
        name=f'block{index + 1}',
      )(x, path)
    return {_LEVEL: x}


class Block(nn.Module):
  """Attention, then two dense layers; each with a norm before and a shortcut.

  Attributes:
    heads: number of attention heads.
    window: side of the windows; None: one window is the whole image.
    table_side: side of the map that relative positions are stored for.
    dtype: precision, see `layers.PRECISIONS`.
  """

  heads: int
  window: int | None
  table_side: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array, path: jax.Array | None = None) -> jax.Array:
    """Tokens `[batch, height, width, channels]`; `path` is `[2, batch]`."""
    branch = norms.Norm('layer', _EPSILON, dtype=self.dtype, name='norm1')(x)
    size = branch.shape[1:3]
    if self.window:
      branch = attention.split_windows(branch, self.window)
    branch = self._attend(branch)
    if self.window:
      branch = attention.join_windows(branch, size)
    x = x + _scaled(branch, path, 0)
    branch = norms.Norm('layer', _EPSILON, dtype=self.dtype, name='norm2')(x)
    branch = self._dense(4 * x.shape[-1], 'expand')(branch)
    branch = layers.gelu(branch)
    branch = self._dense(x.shape[-1], 'project')(branch)
    return x + _scaled(branch, path, 1)

  def _attend(self, x):
    """Attention among all tokens of `[windows, height, width, channels]`."""
    width = x.shape[-1]
    head = width // self.heads
    qkv = self._dense(3 * width, 'qkv')(x)
    tables = [
      self.param(
        f'relative_{axis}',
        nn.initializers.zeros,
        (2 * self.table_side - 1, head),
      )
      for axis in ('rows', 'columns')
    ]
    products = layers.product_dtype(self.dtype)
    outputs = attention.attend(
      qkv.reshape(*x.shape[:3], 3, self.heads, head).astype(products),
      *(table.astype(products) for table in tables),
    )
    return self._dense(width, 'output')(outputs.reshape(x.shape))

  def _dense(self, features, name):
    return layers.Dense(features, _normal, self.dtype, name=name)


def _scaled(branch, path, index):
  """A branch times its factors of drop path, if any."""
  if path is None:
    return branch
  factors = path[index][:, None, None, None]
  return (branch * factors).astype(branch.dtype)


class SimpleFeaturePyramid(nn.Module):
  """Feature pyramid of the one map of a ViT (ViTDet, Sec. 3).

  Attributes are those of `fpn.FPN`.
  """

  channels: int = 256
  max_level: int = 6
  dtype: str = 'float32'
  layout: Layout = Layout()
  norm: norms.NormOptions = norms.NormOptions('layer', _EPSILON)

  @nn.compact
  def __call__(
    self,
    features: dict[int, jax.Array],
    valid: jax.Array | None = None,
    train: bool = False,
  ) -> dict[int, jax.Array]:
    """Pyramid levels from the map; arguments and result as of `fpn.FPN`."""
    x = features[_LEVEL]
    conv = functools.partial(fpn.pyramid_conv, self, valid=valid, train=train)
    width = x.shape[-1]
    norm = norms.Norm(
      'layer', _EPSILON, dtype=self.dtype, name='upsample2_norm'
    )
    fine = norm(self._upsample(x, width // 2, 'upsample2a'))
    fine = layers.gelu(fine)
    maps = {
      2: self._upsample(fine, width // 4, 'upsample2b'),
      3: self._upsample(x, width // 2, 'upsample3'),
      4: x,
      5: _halve(x),
    }
    pyramid = {
      level: conv(conv(x, 1, f'lateral{level}'), 3, f'output{level}')
      for level, x in maps.items()
      if level <= self.max_level
    }
    return fpn.with_coarse_levels(pyramid, self.max_level, self.layout)

  def _upsample(self, x, features, name):
    blocks = layers.UpsampleConv(features, _normal, self.dtype, name=name)(x)
    return convolution.interleave(blocks, 2)


def _halve(x):
  """2x2 max-pooling with stride 2.

  Not a maximum over axes: its gradient compares the inputs with the maximum,
  and divides by 0 where XLA has rounded the two differently.
  """
  window = (1, 2, 2, 1)
  return lax.reduce_window(x, -jnp.inf, lax.max, window, window, 'VALID')


def num_layers(options: ViTOptions) -> int:
  """Number of layers that layer-wise learning-rate decay counts."""
  return options.depth + 1


def layer_of(names: tuple[str, ...], options: ViTOptions) -> int | None:
  """Layer of a parameter for layer-wise decay, as Detectron2's.

  Patches and positions are 0, block i from 1 is i.

  Args:
    names: path below `backbone`, such as `('block2', 'norm1', 'bias')`.
    options: of the backbone.
  """
  del options
  if names[0].startswith('block'):
    return int(names[0].removeprefix('block'))
  return 0
