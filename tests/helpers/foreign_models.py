"""Small models under the names of other systems, of random numbers."""

import functools

import jax
import numpy as np
import tiny_model

from maskrcnn_jax.training import train_step

WIDTH = 8
# Of torchvision's second version, and of Detectron2's long schedules.
SECOND = {
  'rpn_convs': 2,
  'box_convs': 4,
  'box_dense': 1,
  'head_norm': {'kind': 'batch'},
}


def make_model(depth=50, norm='frozen', frozen_stages=2, **options):
  """A bottleneck ResNet, 8 channels wide, and heads to match."""
  backbone = {
    'depth': depth,
    'width': WIDTH,
    'norm': norm,
    'frozen_stages': frozen_stages,
    'group_channels': 1,
  }
  return tiny_model.make_model(backbone=backbone, **options)


@functools.cache
def shapes(model):
  """Shapes of the variables of a model; tracing it takes a second."""
  return jax.eval_shape(
    lambda key: train_step.init_variables(model, key), jax.random.key(0)
  )


def random_variables(model, seed=0):
  """Variables of random numbers, variances above 0."""
  rng = np.random.default_rng(seed)

  def make(path, x):
    values = rng.normal(size=x.shape)
    if path[-1].key == 'variance':
      values = 1.0 + np.abs(values)
    return values.astype(np.float32)

  return jax.tree_util.tree_map_with_path(make, shapes(model))
