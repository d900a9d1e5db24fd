"""Moving average of the parameters: by hand, in NumPy, saved, sharded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_checkpoint import CLASSES, POSITION, assert_same, make_config
from tiny_checkpoint import make_state as make_plain_state

from maskrcnn_jax.checkpoints import store
from maskrcnn_jax.training import train_state


def make_state(**kwargs):
  """A state whose average differs from its parameters."""
  plain = make_plain_state(**kwargs)
  state = train_state.start_average(
    train_state.TrainState(
      plain.step, plain.params, plain.batch_stats, plain.opt_state
    )
  )
  return state.replace(ema=jax.tree.map(lambda x: 2 * x + 1, state.ema))


def advance(old, new, step, decay):
  state = train_state.AveragedTrainState(
    step=jnp.int32(step), params=new, batch_stats={}, opt_state=(), ema=old
  )
  return np.asarray(train_state.advance_average(state, decay).ema)


@pytest.mark.parametrize(
  'step, decay, expected',
  [
    (0, 0.5, 18.0),  # The ramp: 0.1 * 0 + 0.9 * 20.
    (8, 0.9, 10.0),  # 9 / 18 new.
    (8, 0.25, 15.0),  # The decay is lower than the ramp's 0.5.
    (80, 0.5, 10.0),
    (80, 0.999, 2.0),  # 9 / 90 new.
  ],
)
def test_one_step_by_hand(step, decay, expected):
  given = advance(jnp.float32(0.0), jnp.float32(20.0), step, decay)
  np.testing.assert_allclose(given, expected, rtol=1e-6)
  assert given.dtype == np.float32


def test_many_steps_match_the_definition():
  rng = np.random.default_rng(0)
  values = rng.normal(size=(300, 5)).astype(np.float32)
  ema, expected = jnp.asarray(values[0]), values[0].astype(np.float64)
  for step, value in enumerate(values):
    ema = advance(ema, value, step, 0.98)
    decay = min(0.98, (1 + step) / (10 + step))
    expected = decay * expected + (1 - decay) * value
  np.testing.assert_allclose(ema, expected, atol=1e-6)


def test_unchanged_parameters_stay_exact():
  value = np.random.default_rng(0).normal(size=1000).astype(np.float32)
  ema = value
  for step in range(20):
    ema = advance(ema, value, step, 0.9)
  np.testing.assert_array_equal(ema, value)


def test_the_average_is_used_to_detect_and_starts_at_the_parameters():
  state = make_state()
  assert state.variables()['params'] is state.ema
  restarted = train_state.restart_average(state)
  assert_same(restarted.ema, state.params)
  # The step donates each array once.
  pairs = zip(jax.tree.leaves(restarted.ema), jax.tree.leaves(state.params))
  assert all(a is not b for a, b in pairs)
  plain = make_plain_state()
  assert train_state.restart_average(plain) is plain
  assert train_state.advance_average(plain, None) is plain


def test_restore_returns_the_average_and_resume_both(tmp_path):
  state = make_state(step=4)
  with store.CheckpointWriter(tmp_path) as writer:
    writer.save(4, state, POSITION, make_config(), CLASSES)
  variables, _ = store.restore(tmp_path)
  assert_same(variables, state.variables())
  assert_same(variables['params'], state.ema)
  target = jax.eval_shape(lambda: make_state())
  restored = store.restore_latest(tmp_path, target, make_config())
  assert_same(restored.state, state)


def test_settings_that_changed_are_said(tmp_path, caplog):
  caplog.set_level('INFO')
  config = make_config()
  with store.CheckpointWriter(tmp_path) as writer:
    writer.save(4, make_state(step=4), POSITION, config, CLASSES)
  store.restore_latest(tmp_path, make_state(), config)
  assert 'Settings' not in caplog.text
  config.optimizer = {'learning_rate': 0.25}
  config.input = dict.fromkeys('abcdefgh', 1)  # More than an error lists.
  store.restore_latest(tmp_path, make_state(), config)
  assert 'optimizer' in caplog.text and '0.25' in caplog.text


def test_a_run_without_an_average_does_not_resume_with_one(tmp_path):
  config = make_config()
  with store.CheckpointWriter(tmp_path) as writer:
    writer.save(4, make_plain_state(step=4), POSITION, config, CLASSES)
  given = make_config()
  given.optimizer = {'ema_decay': 0.9}
  with pytest.raises(store.WorkdirError) as error:
    store.restore_latest(tmp_path, make_state(), given)
  assert 'ema/fpn/kernel' in str(error.value)
  assert 'optimizer' in str(error.value)
