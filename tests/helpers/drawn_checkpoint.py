"""A workdir whose weights are drawn, without training or compiling anything."""

import jax
import numpy as np
import tiny_checkpoint

from maskrcnn_jax.checkpoints import store
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.training import train_state

CLASSES = {1: 'disc', 2: 'star <b>&</b>'}
# Fresh heads answer alike everywhere; these tell places apart.
_SHARPER = {
  'objectness': 0.5,
  'box_deltas': 0.05,
  'class_logits': 0.3,
  'mask_logits': 0.5,
}


def write(workdir, config, step=4, seed=0, classes=None, variables=None):
  """Writes `config.json` and one store.

  Args:
    workdir: to be made.
    config: of `tiny_run.make_config`.
    step: of the store.
    seed: of the weights.
    classes: names by number; by default `CLASSES`.
    variables: of the model; by default drawn.

  Returns:
    The workdir.
  """
  if variables is None:
    variables = draw_variables(MaskRCNN.from_config(config.model), seed)
  state = tiny_checkpoint.State(
    step=np.int32(step),
    opt_state=(),
    **jax.tree.map(jax.numpy.asarray, variables),
  )
  store.claim_workdir(workdir, config)
  with store.CheckpointWriter(workdir) as writer:
    writer.save(
      step, state, tiny_checkpoint.POSITION, config, classes or CLASSES
    )
  return workdir


def draw_variables(model, seed=0):
  """Variables of a model whose heads tell places apart."""
  shapes = jax.eval_shape(
    lambda key: train_state.init_variables(model, key), jax.random.key(0)
  )
  rng = np.random.default_rng(seed)
  return jax.tree_util.tree_map_with_path(
    lambda path, x: _draw([str(p.key) for p in path], x.shape, rng), shapes
  )


def draw_calm_variables(model):
  """The same; residual branches and heads do not amplify rounding."""

  def calm(path, x):
    *_, layer, leaf = (key.key for key in path)
    factors = {'norm2': 0.4, 'class_logits': 0.1, 'box_deltas': 0.5}
    return x * np.float32(
      factors.get(layer, 1.0) if leaf in ('scale', 'kernel') else 1.0
    )

  return jax.tree_util.tree_map_with_path(calm, draw_variables(model))


def _draw(path, shape, rng):
  if path[-1] != 'kernel':
    is_one = path[-1] in ('scale', 'variance')
    return np.full(shape, float(is_one), np.float32)
  fan_in = np.prod(shape[:-1])
  deviation = np.sqrt(2 / fan_in) * _SHARPER.get(path[-2], 1.0)
  return rng.normal(0, deviation, shape).astype(np.float32)
