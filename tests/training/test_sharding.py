"""Devices: eight compute what one computes; what they send each other."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from maskrcnn_jax.training import sharding

ROOT = pathlib.Path(__file__).parents[2]
NUM_DEVICES = 8
# Of the largest entry of each array.
TOLERANCE = 1e-5

# Options of the tiny model.
CASES = {
  'group': {'norm': 'group'},
  'batch': {'norm': 'batch'},
  'frozen': {'norm': 'frozen', 'frozen_stages': 2},
}

SETUP = """
import functools, json, re, sys
import jax
import numpy as np
import tiny_model
from maskrcnn_jax.training import sharding, train_step
"""

# A step with random sampling, on one device and on eight with one image each:
# the largest difference of every metric, gradient, parameter and statistic.
COMPARE = r"""
model = tiny_model.make_model(**json.loads(sys.argv[1]))
# One image a device, one of them a filler, one without objects.
batch = tiny_model.make_batch((2, 3, 1, 0, 4, 2, 1, 3))
batch['valid'][6] = False
state, optimizer = tiny_model.make_state(model, batch)
results = []
for num_devices in (1, 8):
  mesh = sharding.make_mesh(num_devices)
  replicated = sharding.replicated(mesh)
  step = jax.jit(
    functools.partial(train_step.train_step, model, optimizer),
    in_shardings=(replicated, sharding.batch_sharding(mesh), replicated),
    out_shardings=replicated,
  )
  inputs = jax.device_put(state, replicated), sharding.put_batch(batch, mesh)
  key = jax.device_put(jax.random.key(1), replicated)
  # Not tiny_model.jit: sums that are not vectorised lose digits.
  compiled = step.lower(*inputs, key).compile()
  results.append(jax.device_get(compiled(*inputs, key)))


def difference(expected, actual):
  expected, actual = np.float64(expected), np.float64(actual)
  largest = max(np.max(np.abs(expected)), 1e-30)
  return np.max(np.abs(expected - actual)) / largest


differences = jax.tree_util.tree_leaves_with_path(
  jax.tree.map(difference, *results)
)
print(json.dumps({
  'differences': {jax.tree_util.keystr(k): float(x) for k, x in differences},
  'metrics': {k: float(x) for k, x in results[0][1].items()},
  'collectives': [
    line.strip() for line in compiled.as_text().splitlines()
    if re.search(r' (all-|collective-|reduce-scatter)[a-z-]*\(', line)
  ],
}))
"""


def run_on_eight(script, *args):
  """What a script prints, as JSON, where the CPU shows itself as 8 devices."""
  paths = [str(ROOT), str(ROOT / 'tests'), os.environ.get('PYTHONPATH', '')]
  env = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={NUM_DEVICES}',
    'PYTHONPATH': os.pathsep.join(filter(None, paths)),
  }
  done = subprocess.run(
    [sys.executable, '-c', SETUP + script, *map(json.dumps, args)],
    env=env,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.fixture(scope='module', params=CASES.values(), ids=CASES)
def compared(request):
  return run_on_eight(COMPARE, request.param)


@pytest.mark.slow
def test_losses_gradients_and_updates_are_those_of_one_device(compared):
  assert compared['metrics']['finite']
  for name in ('rpn_box', 'box', 'mask', 'learning_rate'):
    assert compared['metrics'][name] > 0, name
  differences = compared['differences']
  # The momentum of the first step is the gradient.
  assert sum('trace' in name for name in differences) > 30
  assert sum('params' in name for name in differences) > 40
  wrong = {k: x for k, x in differences.items() if not x <= TOLERANCE}
  assert not wrong


@pytest.mark.slow
def test_devices_send_sums_and_scores_only(compared):
  """Neither images nor activations travel."""
  for line in compared['collectives']:
    if ' all-reduce(' in line:
      continue
    # XLA has top_k see the whole batch: a score per anchor or candidate.
    assert ' all-gather(' in line, line
    assert re.search(r'op_name="[^"]*/top_k"', line), line
    shape = re.search(r'= \w+\[(\d+),(\d+)\]', line)
    assert int(shape[1]) == NUM_DEVICES, line
    assert int(shape[2]) <= 1020, line  # Anchors of all levels.


PLACE = """
mesh = sharding.make_mesh()
batch = tiny_model.make_batch((0, 1, 2, 3, 4, 0, 1, 2))
batch['image_ids'] = np.arange(8)
batch['scales'] = np.ones([8, 2], np.float32)
placed = sharding.put_batch(batch, mesh)
same = jax.tree.map(
  lambda x, y: bool(np.array_equal(x, y)), placed, {k: batch[k] for k in placed}
)
try:
  sharding.put_batch(jax.tree.map(lambda x: x[:6], batch), mesh)
except ValueError as error:
  message = str(error)
draw = lambda key: jax.random.uniform(key, (8, 5))
draws = [
  jax.device_get(
    jax.jit(draw, out_shardings=sharding.batch_sharding(mesh))(
      jax.random.key(3)
    )
  ).tolist()
  for mesh in (sharding.make_mesh(1), mesh)
]
print(json.dumps({
  'keys': sorted(placed),
  'same': jax.tree.leaves(same),
  'rows': [
    [len(shard.data) for shard in x.addressable_shards]
    for x in jax.tree.leaves(placed)
  ],
  'message': message,
  'partitionable': jax.config.jax_threefry_partitionable,
  'draws': draws,
}))
"""


@pytest.fixture(scope='module')
def placed():
  return run_on_eight(PLACE)


def test_each_device_gets_its_rows_of_what_devices_need(placed):
  assert placed['keys'] == ['image_sizes', 'images', 'instances', 'valid']
  assert all(placed['same'])
  for rows in placed['rows']:
    assert rows == [1] * NUM_DEVICES


def test_rows_must_split_evenly(placed):
  assert 'batch_size' in placed['message']
  assert '6 rows on this host for 8 devices' in placed['message']


def test_draws_do_not_depend_on_the_number_of_devices(placed):
  assert placed['partitionable']
  one, eight = placed['draws']
  assert one == eight


def test_a_mesh_has_some_of_the_devices_there_are():
  assert sharding.make_mesh().size == jax.device_count()
  assert sharding.make_mesh(1).size == 1
  for num_devices in (0, jax.device_count() + 1):
    with pytest.raises(ValueError, match=f'got {num_devices}'):
      sharding.make_mesh(num_devices)
