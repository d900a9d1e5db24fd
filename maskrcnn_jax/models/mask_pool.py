"""Which RoIs masks are learnt from: places that neighbouring images share.

A mask head of fixed shape pays for its places, used or not: 128 of an image,
where few images have so many foreground RoIs. Images of a group share fewer.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.proposals import take_rows
from maskrcnn_jax.models.targets import SamplingOptions
from maskrcnn_jax.structures import Instances, SampledRois


@flax.struct.dataclass
class PooledRois:
  """Foreground RoIs of groups of images.

  Attributes:
    rois: `[groups, places]`; `instance_indices` count through the instances of
      the group, `valid` says that a place is taken.
    images: `[groups, places]` int32, the image in its group.
    num_left_out: int32, foreground RoIs of the batch that found no place.
  """

  rois: SampledRois
  images: jax.Array
  num_left_out: jax.Array


def pool_foreground(
  rois: SampledRois, num_instances: int, options: SamplingOptions
) -> PooledRois:
  """Puts the foreground RoIs of every group of images into its places.

  Where there are too few, each image in turn gets one, so that those with many
  RoIs lose some. Which ones does not depend on their scores.

  Args:
    rois: `[batch, num_rois]`, foreground first.
    num_instances: of an image, padding included.
    options: `mask_pool_group` and `mask_pool_size`.

  Raises:
    ValueError: the groups do not divide the batch.
  """
  first = rois.first(options.num_foreground)
  batch, num_foreground = first.valid.shape
  group = options.mask_pool_group
  if batch % group:
    raise UserError(
      f'sampling.mask_pool_group {group} does not divide the batch of {batch}.'
    )
  foreground = first.valid & (first.classes > 0)
  images = np.arange(batch, dtype=np.int32)[:, None] % group
  if options.mask_pool_size is None and group == 1:
    images = jnp.broadcast_to(jnp.asarray(images), foreground.shape)
    return PooledRois(first.replace(valid=foreground), images, jnp.int32(0))
  first = first.replace(
    instance_indices=first.instance_indices + images * num_instances
  )
  images = np.broadcast_to(images, foreground.shape)
  # Foreground has the order of its scores; this one is random, but fixed.
  turns = np.random.RandomState(0).permutation(num_foreground)
  order = jnp.asarray(turns * group + images)
  last = np.iinfo(np.int32).max
  order = jnp.where(foreground, order, last).reshape(batch // group, -1)
  places = min(options.mask_pool_size or order.shape[1], order.shape[1])
  _, rows = jax.lax.top_k(-order, places)
  pooled, images, taken = (
    jax.tree.map(lambda x: take_rows(merge(x, group), rows), tree)
    for tree in (first, jnp.asarray(images), foreground)
  )
  num_left_out = jnp.sum(foreground) - jnp.sum(taken)
  return PooledRois(pooled.replace(valid=taken), images, num_left_out)


def merge_instances(instances: Instances, options: SamplingOptions):
  """Instances `[groups, num_instances of all images of a group]`."""
  return jax.tree.map(lambda x: merge(x, options.mask_pool_group), instances)


def merge(x: jax.Array, group: int) -> jax.Array:
  """`[batch / group, group * n, ...]` of x `[batch, n, ...]`."""
  return x.reshape(x.shape[0] // group, group * x.shape[1], *x.shape[2:])
