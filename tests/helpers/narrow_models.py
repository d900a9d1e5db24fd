"""Narrow bottleneck models with random weights, for tests of weight files."""

import functools

import jax
import numpy as np
import tiny_model

from maskrcnn_jax.training import train_state

WIDTH = 8
# Options of torchvision's second version and of Detectron2's LSJ models.
SECOND = {
  'rpn_convs': 2,
  'box_convs': 4,
  'box_dense': 1,
  'head_norm': {'kind': 'batch'},
}


def make_model(depth=50, norm='frozen', frozen_stages=2, **options):
  """Mask R-CNN with a bottleneck ResNet, 8 channels wide."""
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
  """Shapes of the variables of a model; cached, since tracing is slow."""
  return jax.eval_shape(
    lambda key: train_state.init_variables(model, key), jax.random.key(0)
  )


def random_variables(model, seed=0):
  """Random variables; variances are positive."""
  rng = np.random.default_rng(seed)

  def make(path, x):
    values = rng.normal(size=x.shape)
    if path[-1].key == 'variance':
      values = 1.0 + np.abs(values)
    return values.astype(np.float32)

  return jax.tree_util.tree_map_with_path(make, shapes(model))
