"""Device mesh: eight devices compute what one computes; what they exchange."""

import jax
import pytest
from eight_devices import NUM_DEVICES, check_same, compare, run_on_eight

from maskrcnn_jax.distributed import mesh as mesh_lib
from maskrcnn_jax.errors import UserError

# Of the largest entry of each array.
TOLERANCE = 1e-5

# Options of the tiny model.
CASES = {
  'group': {'norm': 'group'},
  'batch': {'norm': 'batch'},
  'frozen': {'norm': 'frozen', 'frozen_stages': 2},
}


@pytest.fixture(
  scope='module',
  # Group norm looks at one image alone: the others say more.
  params=[
    pytest.param(name, marks=[pytest.mark.long] * (name != 'batch'))
    for name in CASES
  ],
)
def compared(request):
  # One image a device.
  counts = (2, 3, 1, 0, 4, 2, 1, 3)
  return compare(CASES[request.param], counts, (64, 64), [{'num_devices': 8}])


@pytest.mark.slow
def test_losses_gradients_and_updates_are_those_of_one_device(compared):
  check_same(compared, compared['reports'][0], TOLERANCE)


@pytest.mark.slow
def test_devices_send_sums_only(compared):
  """Neither images nor activations, boxes or scores travel."""
  lines = compared['reports'][0]['collectives']
  assert lines
  assert [line for line in lines if ' all-reduce(' not in line] == []


@pytest.mark.slow
def test_no_loop_asks_other_devices(compared):
  assert compared['reports'][0]['repeated'] == []


PLACE = """
mesh = mesh_lib.make_mesh()
batch = tiny_model.make_batch((0, 1, 2, 3, 4, 0, 1, 2))
batch['image_ids'] = np.arange(8)
batch['scales'] = np.ones([8, 2], np.float32)
placed = arrays.put_batch(batch, mesh)
same = jax.tree.map(
  lambda x, y: bool(np.array_equal(x, y)), placed, {k: batch[k] for k in placed}
)
try:
  arrays.put_batch(jax.tree.map(lambda x: x[:6], batch), mesh)
except ValueError as error:
  fields = error.argument, error.given, error.wanted
draw = lambda key: jax.random.uniform(key, (8, 5))
draws = [
  jax.device_get(
    jax.jit(draw, out_shardings=mesh_lib.batch_sharding(mesh))(
      jax.random.key(3)
    )
  ).tolist()
  for mesh in (mesh_lib.make_mesh(1), mesh)
]
print(json.dumps({
  'keys': sorted(placed),
  'same': jax.tree.leaves(same),
  'rows': [
    [len(shard.data) for shard in x.addressable_shards]
    for x in jax.tree.leaves(placed)
  ],
  'error': fields,
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
  assert placed['error'] == ['batch_size', 6, 8]


def test_draws_do_not_depend_on_the_number_of_devices(placed):
  assert placed['partitionable']
  one, eight = placed['draws']
  assert one == eight


def test_a_mesh_has_all_devices_or_the_first_ones():
  assert mesh_lib.make_mesh().size == jax.device_count()
  assert mesh_lib.make_mesh(1).size == 1
  for num_devices in (0, jax.device_count() + 1):
    with pytest.raises(UserError) as error:
      mesh_lib.make_mesh(num_devices)
    assert error.value.argument == 'num_devices'
    assert error.value.given == num_devices


def test_options_that_the_compiler_does_not_know_are_left_out(
  monkeypatch, caplog
):
  """The compiler for CPUs refuses those of TPUs, as another libtpu may."""
  mesh = mesh_lib.make_mesh(1)
  assert mesh_lib.compiler_options(mesh) is None
  unknown = mesh_lib._COMPILER_OPTIONS['tpu']
  known = {'xla_backend_optimization_level': '1'}
  table = {'cpu': {**unknown, **known}}
  monkeypatch.setattr(mesh_lib, '_COMPILER_OPTIONS', table)
  assert mesh_lib.compiler_options(mesh) == known
  assert all(name in caplog.text for name in unknown)
  assert not any(name in caplog.text for name in known)
  monkeypatch.setattr(mesh_lib, '_COMPILER_OPTIONS', {'cpu': unknown})
  assert mesh_lib.compiler_options(mesh) is None
  jax.jit(abs, compiler_options=mesh_lib.compiler_options(mesh))(-1.0)


def test_other_errors_of_the_compiler_are_not_hidden(monkeypatch):
  def fail(*unused, **unused_options):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: no memory')

  options = {'xla_backend_optimization_level': '0'}
  monkeypatch.setattr(mesh_lib, '_COMPILER_OPTIONS', {'cpu': options})
  monkeypatch.setattr(jax.stages.Lowered, 'compile', fail)
  with pytest.raises(jax.errors.JaxRuntimeError, match='RESOURCE_EXHAUSTED'):
    mesh_lib.compiler_options(mesh_lib.make_mesh(1))
