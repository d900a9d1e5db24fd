"""A PJRT plugin without a library: the CPU under the name hpu.

FAKE_HPU says how it behaves: healthy, or which part of it does not work.
"""

import os
import time

from jax._src import xla_bridge
from jax.extend import backend


class _NoDevices:
  """As much of a client as JAX looks at before it gives up."""

  def device_count(self):
    return 0

  def _get_all_devices(self):
    return []


def _create():
  behaviour = os.environ['FAKE_HPU']
  if behaviour == 'client':
    raise RuntimeError('the driver does not answer')
  if behaviour == 'devices':
    return _NoDevices()
  return xla_bridge.make_cpu_client()


def initialize():
  """Called by JAX whatever platform is chosen."""
  behaviour = os.environ['FAKE_HPU']
  if behaviour == 'initialize':
    raise RuntimeError('the driver is too old')
  if behaviour == 'crash':
    os.abort()
  if behaviour == 'hang':
    time.sleep(1000)
  # As `register_plugin` does for a library.
  backend.register_backend_factory(
    'hpu', _create, priority=400, fail_quietly=False, experimental=True
  )
