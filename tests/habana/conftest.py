"""A data set, and the environment of processes that share programs."""

import habana_runs
import pytest
import tiny_run


@pytest.fixture(scope='session')
def dataset(tmp_path_factory):
  return tiny_run.write_dataset(tmp_path_factory.mktemp('dataset'))


@pytest.fixture(scope='session')
def env(tmp_path_factory):
  return habana_runs.environment(tmp_path_factory.mktemp('programs'))
