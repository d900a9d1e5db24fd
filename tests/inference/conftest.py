"""Fast compilation for the tests of this folder."""

import pytest
import quick


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
  with quick.compilation():
    yield
