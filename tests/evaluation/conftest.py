import pytest

from maskrcnn_jax.evaluation import scoring


@pytest.fixture(params=scoring.SCORERS)
def scorer(request):
  """Each scorer that is installed."""
  pytest.importorskip(request.param)
  return request.param
