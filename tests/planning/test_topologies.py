"""Topologies: what is known, and what is said of what is not."""

import importlib.util

import jax
import pytest

from maskrcnn_jax.planning import topologies


@pytest.mark.parametrize(
  'name',
  ['here', 'cpu:8', 'v4:2x2x1', 'v5e:4x4', 'v5e:1x1', 'v5p:2x2x1', 'v7x:4x4x4'],
)
def test_known_names(name):
  topologies.check_names([name])


@pytest.mark.parametrize(
  'name, message',
  [
    ('v9:2x2', "no topology 'v9:2x2'. Known are here"),
    ('v5e', "'v5e' is no topology. Known are"),
    ('v5e:4x', 'v5e:AxB'),
    ('v5e:2x2x2', 'v5e:AxB'),
    ('v5p:0x2x2', 'v5p:AxBxC'),
    ('cpu:2x2', 'cpu:N'),
    ('v5e:32x32', 'v5e:32x32 has 1024 chips; the largest slice of v5e has 256'),
  ],
)
def test_an_unknown_name_says_what_is_known(name, message):
  with pytest.raises(ValueError, match=r'opology|slice') as raised:
    topologies.check_names(['here', name])
  assert message in str(raised.value)


def test_devices_that_are_here():
  topology = topologies.find('here')
  assert list(topology.devices) == jax.devices()
  assert topology.num_hosts == 1
  assert topology.chip is None
  assert len(topologies.find('here', 1).devices) == 1


def test_more_cpu_devices_than_jax_has():
  with pytest.raises(ValueError, match='needs 512 CPU devices'):
    topologies.find('cpu:512')


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is not None, reason='libtpu is installed'
)
def test_what_is_missing_is_named():
  with pytest.raises(RuntimeError, match=r'maskrcnn-jax\[tpu\]'):
    topologies.find('v5e:4x4')
