"""What all tests of this folder share."""

import jax
import pytest


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
  """Compiles without much thought: the programs run only a few times."""
  name = 'jax_disable_most_optimizations'
  before = jax.config.values[name]
  jax.config.update(name, True)
  yield
  jax.config.update(name, before)
