"""Topologies: known names, and errors for others."""

import importlib.util

import jax
import pytest

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.planning import chips, topologies


@pytest.mark.parametrize(
  'name',
  [
    *('here', 'cpu:8', 'v4:2x2x1', 'v5e:4x4', 'v5e:1x1', 'v5p:2x2x1'),
    *('v7x:4x4x4', 'h100:8', 'h200:2x8', 'a100-40:1', 'l4:1', 'rtx4090:1'),
  ],
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
    ('h100', 'h100:N'),
    ('h100:1x2x3', 'h100:N'),
    ('h10:8', 'h100:N'),
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


@pytest.mark.skipif(
  importlib.util.find_spec('jax_plugins') is not None
  and importlib.util.find_spec('jax_plugins.xla_cuda12') is not None,
  reason='the compiler for GPUs is installed',
)
def test_the_missing_compiler_for_gpus_is_named():
  with pytest.raises(UserError, match=r'maskrcnn-jax\[plan-gpu\]') as error:
    topologies.find('h100:8')
  assert error.value.wanted == 'jax-cuda12-plugin'


def test_description_of_a_gpu():
  target = chips.GPUS['l4'].target
  assert 'core_count: 58\n' in target
  assert 'cuda_compute_capability { major: 8 minor: 9 }' in target
  assert f'device_memory_size: {23034 * 2**20}\n' in target
  assert 'device_description_str: "NVIDIA L4"' in target
