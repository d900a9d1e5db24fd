"""A state and a config as small as they can be, and how they are saved."""

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from maskrcnn_jax.checkpoints import store

POSITION = {'examples': 24, 'salt': 1}
CLASSES = {1: 'disc', 7: 'star'}


@flax.struct.dataclass
class State:
  step: jax.Array
  params: dict
  batch_stats: dict
  opt_state: tuple


def make_state(width=3, step=0, scale=1.0):
  """A train state with a rank of every kind."""
  params = {
    'fpn': {'kernel': scale * jnp.arange(2.0 * width).reshape(2, width)},
    'head': {'bias': jnp.full((width,), scale)},
  }
  decayed = {'fpn': {'kernel': True}, 'head': {'bias': False}}
  optimizer = optax.chain(
    optax.masked(optax.add_decayed_weights(1e-4), decayed), optax.trace(0.9)
  )
  return State(
    step=jnp.asarray(step, jnp.int32),
    params=params,
    batch_stats={'norm': {'mean': jnp.full((width,), 2.0)}},
    opt_state=optimizer.init(params),
  )


def make_config(depth=18, num_steps=10):
  return ml_collections.ConfigDict(
    {
      'model': {
        'depth': depth,
        'anchors': {'aspect_ratios': ((1, 1), (1.4, 0.7))},
      },
      'training': {'num_steps': num_steps},
    }
  )


def save(workdir, steps=(4,), config=None, keep=3, **kwargs):
  """Saves states that differ in their step alone."""
  with store.CheckpointWriter(workdir, keep) as writer:
    for step in steps:
      save_state(writer, step, make_state(step=step, **kwargs), config)


def save_state(writer, step, state, config=None):
  return writer.save(step, state, POSITION, config or make_config(), CLASSES)


def assert_same(left, right):
  """Same structure, same numbers."""
  assert jax.tree.structure(left) == jax.tree.structure(right)
  jax.tree.map(np.testing.assert_array_equal, left, right)
