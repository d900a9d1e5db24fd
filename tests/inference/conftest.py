"""What all tests of this folder share."""

import pytest
import quick


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
  with quick.compilation():
    yield
