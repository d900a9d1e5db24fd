"""ConvNeXt backbone (Liu et al. 2022)."""

import dataclasses

import flax.linen as nn
import jax

from maskrcnn_jax.errors import invalid
from maskrcnn_jax.models import layers, norms
from maskrcnn_jax.ops import depthwise_convolution

_PATH = 'model.backbone.convnext'
_EPSILON = 1e-6
# PyTorch's truncated normal cuts at 2, a hundred deviations.
_normal = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class ConvNeXtOptions:
  """Sizes of a ConvNeXt; the defaults are ConvNeXt-T's.

  Attributes:
    blocks: number of blocks of stages 2 to 5.
    widths: number of channels of these stages.
    output_norms: every map that leaves the backbone has a layer norm of its
      own, as in the original's detectors; it starts as 1 and 0, since
      classifiers lack it.
    drop_path: chance that the last block is skipped in training; that of the
      others grows linearly from 0.
    remat: blocks are computed again in the backward pass, instead of storing
      their activations.
  """

  blocks: tuple[int, int, int, int] = (3, 3, 9, 3)
  widths: tuple[int, int, int, int] = (96, 192, 384, 768)
  output_norms: bool = True
  drop_path: float = 0.0
  remat: bool = False

  def __post_init__(self):
    for name in ('blocks', 'widths'):
      if len(getattr(self, name)) != 4:
        raise invalid(f'{_PATH}.{name}', getattr(self, name), 'four numbers')
    if not 0.0 <= self.drop_path < 1.0:
      wanted = 'at least 0 and below 1'
      raise invalid(f'{_PATH}.drop_path', self.drop_path, wanted)


class ConvNeXt(nn.Module):
  """ConvNeXt that returns feature maps of strides 4, 8, 16 and 32.

  Cells outside an image take part as in the originals, which pad images with
  zeros: a layer norm is of one cell, so they affect cells within reach of the
  convolutions only.

  Attributes:
    options: see `ConvNeXtOptions`.
    dtype: precision, see `layers.PRECISIONS`.
  """

  options: ConvNeXtOptions = ConvNeXtOptions()
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self, images: jax.Array, valid: jax.Array | None = None, train: bool = False
  ) -> dict[int, jax.Array]:
    """Feature maps by level.

    Args:
      images: `[batch, height, width, 3]`, normalised, sides divisible by 32.
      valid: unused; no norm has statistics of a batch.
      train: whether blocks are dropped, with the `drop_path` stream.

    Returns:
      Levels 2 to 5, each `[batch, height / 2**l, width / 2**l, channels]`.
    """
    del valid
    options = self.options
    paths = [None] * sum(options.blocks)
    if train and options.drop_path:
      key, count = self.make_rng('drop_path'), len(paths)
      paths = layers.drop_path_factors(
        key, options.drop_path, count, len(images)
      )[:, 0]
    x = _patches(options.widths[0], 4, self.dtype, 'stem')(images)
    x = _norm(self.dtype, 'stem_norm')(x)
    features, first = {}, 0
    for level, num in enumerate(options.blocks, start=2):
      stage = Stage(
        options.widths[level - 2],
        has_downsample=level > 2,
        remat=options.remat,
        dtype=self.dtype,
        name=f'stage{level}',
      )
      x = stage(x, paths[first : first + num])
      first += num
      features[level] = x
      if options.output_norms:
        features[level] = _norm(self.dtype, f'norm{level}')(x)
    return features


class Stage(nn.Module):
  """Norm and 2x2 patches, except in the first stage; blocks.

  Attributes:
    width: number of channels.
    has_downsample: whether the resolution is halved first.
    remat: see `ConvNeXtOptions`.
    dtype: precision, see `layers.PRECISIONS`.
  """

  width: int
  has_downsample: bool
  remat: bool
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array, paths) -> jax.Array:
    """Activations of the stage; `paths` has an entry for each block."""
    if self.has_downsample:
      x = _norm(self.dtype, 'downsample_norm')(x)
      x = _patches(self.width, 2, self.dtype, 'downsample')(x)
    block = nn.remat(Block) if self.remat else Block
    for index, path in enumerate(paths, start=1):
      x = block(self.dtype, name=f'block{index}')(x, path)
    return x


class Block(nn.Module):
  """Depthwise 7x7, layer norm, two dense layers, scale; shortcut.

  Attributes:
    dtype: precision, see `layers.PRECISIONS`.
  """

  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array, path: jax.Array | None = None) -> jax.Array:
    """Activations of the same shape; `path` is `[batch]` factors, if any."""
    shortcut, width = x, x.shape[-1]
    x = DepthwiseConv(dtype=self.dtype, name='depthwise')(x)
    x = _norm(self.dtype, 'norm')(x)
    x = layers.Dense(4 * width, _normal, self.dtype, name='expand')(x)
    x = layers.gelu(x)
    x = layers.Dense(width, _normal, self.dtype, name='project')(x)
    x = x * self.param('layer_scale', nn.initializers.constant(1e-6), (width,))
    if path is not None:
      x = x * path[:, None, None, None]
    return shortcut + x.astype(shortcut.dtype)


class DepthwiseConv(nn.Module):
  """7x7 convolution with one kernel per channel and a bias."""

  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    width = x.shape[-1]
    kernel = self.param('kernel', _normal, (7, 7, 1, width))
    bias = self.param('bias', nn.initializers.zeros, (width,))
    products = layers.product_dtype(self.dtype)
    x = depthwise_convolution.convolve_depthwise(
      x.astype(products), kernel.astype(products)
    )
    return (x + bias).astype(layers.output_dtype(self.dtype))


def _norm(dtype, name):
  return norms.Norm('layer', _EPSILON, dtype=dtype, name=name)


def _patches(width, size, dtype, name):
  return layers.PatchConv(width, size, _normal, dtype, name=name)


def num_layers(options: ConvNeXtOptions) -> int:
  """Number of layers that layer-wise learning-rate decay counts."""
  return 7 if options.blocks[2] <= 9 else 13


def layer_of(names: tuple[str, ...], options: ConvNeXtOptions) -> int | None:
  """Layer of a parameter for layer-wise learning-rate decay, as the original's.

  The stem is 0; stages 2 and 3 have a layer each, three blocks of stage 4 have
  one, stage 5 has the last.

  Args:
    names: path below `backbone`, such as `('stage4', 'block2', 'layer_scale')`.
    options: of the backbone.

  Returns:
    None for the norms of outputs, which come after all layers.
  """
  part, inner = names[0], names[1]
  if part.startswith('stem'):
    return 0
  if not part.startswith('stage'):
    return None
  level = int(part.removeprefix('stage'))
  block = int(inner.removeprefix('block')) if inner.startswith('block') else 1
  return {4: 3 + (block - 1) // 3, 5: num_layers(options) - 1}.get(
    level, level - 1
  )
