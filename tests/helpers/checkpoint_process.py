"""What tests do with checkpoints in processes of their own.

Those that are to be killed are started by `start`; those with other numbers of
devices run this file: `checkpoint_process.py WORKDIR DEVICES LAYOUT`.
"""

import multiprocessing
import os
import signal
import subprocess
import sys

# Set before JAX is imported: it counts the devices once.
if __name__ == '__main__':
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = (
    f'--xla_force_host_platform_device_count={sys.argv[2]}'
  )

import jax
import pytest
import tiny_checkpoint

from maskrcnn_jax.checkpoints import store

# Every number of devices divides it.
WIDTH = 8 * 1024
PATH = os.pathsep.join(sys.path)


def state_of(step):
  """The state that is saved after a step."""
  return tiny_checkpoint.make_state(WIDTH, step, scale=float(step) + 0.1)


def save_for_ever(workdir, told):
  """Saves step after step, telling each, until a signal comes."""
  signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
  first = store.latest_step(workdir) or 0
  with store.CheckpointWriter(workdir, keep=2) as writer:
    for step in range(first + 1, first + 10_000):
      save(writer, step, state_of(step))
      told.value = step


def save(writer, step, state):
  """Saves with all that belongs to a step."""
  position = {'examples': 4 * step, 'salt': 0}
  config, classes = tiny_checkpoint.make_config(), tiny_checkpoint.CLASSES
  return writer.save(step, state, position, config, classes)


def put(state, matrices, others):
  """A state with one sharding for matrices and another for the rest."""
  return jax.tree.map(
    lambda x: jax.device_put(x, matrices if x.ndim == 2 else others), state
  )


def start(workdir):
  """A process that saves, and where it tells the last step it has begun."""
  context = multiprocessing.get_context('forkserver')
  # Importing takes longer than everything else here.
  context.set_forkserver_preload(['checkpoint_process'])
  told = context.Value('i', -1)
  process = context.Process(target=save_for_ever, args=(workdir, told))
  # The server of the first one looks for the module there.
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('PYTHONPATH', PATH)
    process.start()
  return process, told


def run(workdir, num_devices, layout):
  """Restores (or makes) a state on so many devices and saves the next step.

  Args:
    workdir: of the run.
    num_devices: forced on the CPU.
    layout: 'replicated', or 'sharded' over the devices.
  """
  arguments = [sys.executable, __file__, workdir, str(num_devices), layout]
  subprocess.run(arguments, check=True, env={**os.environ, 'PYTHONPATH': PATH})


def _restore_and_save(workdir, num_devices, layout):
  assert jax.device_count() == num_devices
  mesh = jax.make_mesh((num_devices,), ('data',))
  whole = jax.NamedSharding(mesh, jax.P())
  split = jax.NamedSharding(mesh, jax.P(None, 'data'))
  matrices = split if layout == 'sharded' else whole
  fresh = put(state_of(0), matrices, whole)
  config = tiny_checkpoint.make_config()
  restored = store.restore_latest(workdir, fresh, config)
  step, state = (restored.step, restored.state) if restored else (0, fresh)
  for x, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(fresh)):
    assert x.sharding == wanted.sharding
  with store.CheckpointWriter(workdir) as writer:
    save(writer, step + 1, state)


if __name__ == '__main__':
  _restore_and_save(sys.argv[1], int(sys.argv[2]), sys.argv[3])
