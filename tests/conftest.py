"""Signals, fixtures and the order of tests."""

import pathlib
import signal
import sys

import pytest

TESTS = pathlib.Path(__file__).parent

# Background jobs of a shell ignore SIGINT; the processes that tests interrupt
# would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope='module')
def _free_programs():
  """Programs compiled for a file go with it: they would add up to gigabytes."""
  yield
  if 'jax' in sys.modules:
    sys.modules['jax'].clear_caches()


@pytest.fixture(scope='module')
def recorded(request):
  """Arrays of one recording, see `golden_files.each`."""
  import golden_files  # Only golden tests pay for NumPy.

  return golden_files.load(*request.param)


def pytest_collection_modifyitems(items):
  """Files with slow tests come first, so that workers end at the same time."""
  slow = {x.path for x in items if x.get_closest_marker('slow')}
  items.sort(key=lambda x: (x.path not in slow, x.path.parent != TESTS))
