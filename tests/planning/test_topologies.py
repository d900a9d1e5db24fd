"""Topologies: known names, and errors for others."""

import importlib.util

import jax
import pytest

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.planning import topologies


@pytest.mark.parametrize(
  'name',
  ['here', 'cpu:8', 'v4:2x2x1', 'v5e:4x4', 'v5e:1x1', 'v5p:2x2x1', 'v7x:4x4x4'],
)
def test_known_names(name):
  topologies.check_names([name])


@pytest.mark.parametrize(
  'name, wanted',
  [
    ('v9:2x2', 'v5e:AxB'),
    ('v5e', 'v5e:AxB'),
    ('v5e:4x', 'v5e:AxB'),
    ('v5e:2x2x2', 'v5e:AxB'),
    ('v5p:0x2x2', 'v5p:AxBxC'),
    ('cpu:2x2', 'cpu:N'),
    ('v5e:32x32', '256'),
  ],
)
def test_an_unknown_name_is_refused(name, wanted):
  with pytest.raises(UserError) as error:
    topologies.check_names(['here', name])
  assert (error.value.argument, error.value.given) == ('topology', name)
  assert wanted in str(error.value.wanted) and wanted in str(error.value)


def test_no_topology_is_refused():
  with pytest.raises(UserError) as error:
    topologies.check_names([])
  assert error.value.argument == 'topology'


def test_devices_of_this_machine():
  topology = topologies.find('here')
  assert list(topology.devices) == jax.devices()
  assert topology.num_hosts == 1
  assert topology.chip is None
  assert len(topologies.find('here', 1).devices) == 1


def test_more_cpu_devices_than_jax_has():
  with pytest.raises(UserError, match='count=512') as error:
    topologies.find('cpu:512')
  assert error.value.wanted == jax.device_count()


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is not None, reason='libtpu is installed'
)
def test_the_missing_compiler_is_named():
  with pytest.raises(UserError, match=r'maskrcnn-jax\[tpu\]') as error:
    topologies.find('v5e:4x4')
  assert error.value.wanted == 'libtpu'
