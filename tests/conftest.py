"""What holds for all tests."""

import sys

import pytest


@pytest.fixture(autouse=True, scope='module')
def _free_programs():
  """Programs compiled for a file go with it: they would add up to gigabytes."""
  yield
  if 'jax' in sys.modules:
    sys.modules['jax'].clear_caches()
