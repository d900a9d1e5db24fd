"""Checkpoints of processes that are killed, or have other devices."""

import random
import signal
import time

import checkpoint_process
import jax
import pytest
from tiny_checkpoint import assert_same, make_config

from maskrcnn_jax.checkpoints import store
from maskrcnn_jax.distributed.termination import deferred_signals

# A save of such a process takes about so long.
SAVE_SECONDS = 0.2


def interrupted(workdir, number, moment):
  """Sends a signal some time after a process began to save; what was begun."""
  process, told = checkpoint_process.start(workdir)
  deadline = time.monotonic() + 120
  while told.value < 0 and time.monotonic() < deadline:
    assert process.is_alive()
    time.sleep(0.01)
  time.sleep(moment)
  begun = told.value
  (process.kill if number == signal.SIGKILL else process.terminate)()
  process.join(60)
  assert process.exitcode in (-signal.SIGKILL, 128 + signal.SIGTERM)
  return begun


def check_newest(workdir):
  """The newest checkpoint holds exactly what was saved; its step."""
  restored = store.restore_latest(
    workdir, checkpoint_process.state_of(0), make_config()
  )
  wanted = checkpoint_process.state_of(restored.step)
  assert_same(restored.state, wanted)
  assert restored.position == {'examples': 4 * restored.step, 'salt': 0}
  assert not list((workdir / 'checkpoints').glob('*.damaged*'))
  return restored.step


def unfinished(workdir):
  return list((workdir / 'checkpoints').glob('*.orbax-checkpoint-tmp*'))


@pytest.mark.slow
def test_a_killed_save_costs_only_itself(tmp_path):
  draw = random.Random(0)
  cut = 0
  for number in range(60):
    if number >= 12 and cut:
      break
    moment = draw.uniform(0.0, 3 * SAVE_SECONDS)
    begun = interrupted(tmp_path, signal.SIGKILL, moment)
    # A step that is told was handed over when the one before was on disk.
    assert check_newest(tmp_path) >= begun - 1
    cut += len(unfinished(tmp_path))
  # Some of the kills met a save that was under way.
  assert cut


@pytest.mark.slow
def test_a_terminated_save_is_finished_or_absent(tmp_path):
  draw = random.Random(0)
  for _ in range(6):
    moment = draw.uniform(0.0, 3 * SAVE_SECONDS)
    begun = interrupted(tmp_path, signal.SIGTERM, moment)
    assert check_newest(tmp_path) >= begun
    assert not unfinished(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('layout', ['replicated', 'sharded'])
def test_a_state_moves_to_other_numbers_of_devices(tmp_path, layout):
  for num_devices in (8, 1, 4):
    checkpoint_process.run(tmp_path, num_devices, layout)
  restored = store.restore_latest(
    tmp_path, checkpoint_process.state_of(0), make_config()
  )
  assert restored.step == 3
  assert_same(restored.state, checkpoint_process.state_of(0))


def test_a_sharded_state_comes_back_whole_and_the_other_way(tmp_path):
  count = jax.device_count()
  mesh = jax.make_mesh((count,), ('data',))
  layouts = [jax.NamedSharding(mesh, s) for s in (jax.P(None, 'data'), jax.P())]
  for step, (first, second) in enumerate((layouts, layouts[::-1]), start=1):
    state = checkpoint_process.state_of(step)
    saved, target = (
      checkpoint_process.put(state, matrices, layouts[1])
      for matrices in (first, second)
    )
    with store.CheckpointWriter(tmp_path) as writer:
      checkpoint_process.save(writer, step, saved)
    restored = store.restore_latest(tmp_path, target, make_config())
    assert restored.step == step
    assert_same(restored.state, state)
    assert restored.state.params['fpn']['kernel'].sharding == second


def test_a_signal_waits_until_the_save_is_handed_over(tmp_path):
  def leave(number, frame):
    raise SystemExit(number)

  before = signal.signal(signal.SIGTERM, leave)
  try:
    with (
      pytest.raises(SystemExit),
      store.CheckpointWriter(tmp_path) as writer,
      deferred_signals(),
    ):
      signal.raise_signal(signal.SIGTERM)
      checkpoint_process.save(writer, 1, checkpoint_process.state_of(1))
    assert signal.getsignal(signal.SIGTERM) is leave
  finally:
    signal.signal(signal.SIGTERM, before)
  assert check_newest(tmp_path) == 1
