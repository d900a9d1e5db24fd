"""Sharded train states: less memory on each device, the same updates."""

import numpy as np
import pytest
import tiny_run
from eight_devices import NUM_DEVICES, check_same, compare, run_on_eight

# Of the largest entry of each array.
TOLERANCE = 1e-5
KINDS = ('optimizer', 'all')


@pytest.fixture(scope='module')
def compared():
  meshes = [{'num_devices': NUM_DEVICES, 'shard_state': k} for k in KINDS]
  return compare({}, (2, 3, 1, 0, 4, 2, 1, 3), (64, 64), meshes)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize('kind', KINDS)
def test_updates_are_those_of_one_device(compared, kind):
  report = compared['reports'][KINDS.index(kind)]
  check_same(compared, report, TOLERANCE)
  assert report['donated']
  assert report['kept']


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize('kind', KINDS)
def test_a_step_that_is_not_finite_changes_nothing(compared, kind):
  assert compared['reports'][KINDS.index(kind)]['skipped']


@pytest.mark.slow
@pytest.mark.long
def test_momentum_is_on_one_device_or_another(compared):
  one = compared['optimizer_bytes']
  for report in compared['reports']:
    assert len(report['optimizer_bytes']) == NUM_DEVICES
    for size in report['optimizer_bytes']:
      # Some arrays are too small, or have no axis that 8 divides.
      assert one / NUM_DEVICES <= size < 1.1 * one / NUM_DEVICES


SIZES = """
from maskrcnn_jax.optimization import optimizer as optimizer_lib
model = mask_rcnn.MaskRCNN()


def make_state(key):
  variables = train_state.init_variables(model, key)
  params = variables['params']
  optimizer = optimizer_lib.Optimizer(
    optimizer_lib.OptimizerOptions(), model.backbone.frozen_stages
  )
  opt_state = optimizer.transformation(params).init(params)
  return train_state.start_average(
    train_state.TrainState(
      jax.numpy.int32(0), params, variables['batch_stats'], opt_state
    )
  )


state = jax.eval_shape(make_state, jax.random.key(0))


def megabytes(tree, shardings):
  sizes = jax.tree.map(
    lambda x, s: 4 * np.prod(s.shard_shape(x.shape)), tree, shardings
  )
  return float(sum(jax.tree.leaves(sizes)) / 2**20)


sizes = {}
for kind in mesh_lib.SHARD_STATE:
  shardings = mesh_lib.state_shardings(state, mesh_lib.make_mesh(), kind)
  assert shardings.ema == shardings.params, kind
  sizes[kind] = [
    megabytes(state.params, shardings.params),
    megabytes(state.opt_state, shardings.opt_state),
  ]
print(json.dumps(sizes))
"""


@pytest.mark.slow
def test_the_default_model_needs_an_eighth_on_each_of_eight():
  sizes = run_on_eight(SIZES)
  params, momentum = sizes['none']
  np.testing.assert_allclose(
    [sizes['optimizer'], sizes['all']],
    [[params, momentum / 8], [params / 8, momentum / 8]],
    rtol=0.01,
  )


SAVE = """
random = np.random.default_rng(0)
params = {
  'kernel': random.normal(size=(3, 3, 16, 8)).astype('float32'),
  'odd': random.normal(size=(3, 33)).astype('float32'),
  'bias': random.normal(size=24).astype('float32'),
}
state = train_state.TrainState(
  step=np.int32(7),
  params=params,
  batch_stats={'mean': params['bias'] + 1},
  opt_state={'trace': jax.tree.map(lambda x: x * 2, params)},
)
state = jax.tree.map(jax.numpy.asarray, state)
config = {'model': {}}


def place(state, num_devices, kind):
  mesh = mesh_lib.make_mesh(num_devices)
  return arrays.put(state, mesh_lib.state_shardings(state, mesh, kind, 64))


saved = place(state, 8, 'all')
with store.CheckpointWriter(arguments[0]) as writer:
  writer.save(1, saved, {'examples': 8, 'salt': 0}, config, {})
report = []
for num_devices, kind in arguments[1]:
  target = place(jax.tree.map(jax.numpy.zeros_like, state), num_devices, kind)
  restored = store.restore_latest(arguments[0], target, config).state
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(
    lambda x: x.sharding, target
  )
  report.append({k: [*x.sharding.spec] for k, x in restored.params.items()})
variables, _ = store.restore(arguments[0])
jax.tree.map(np.testing.assert_array_equal, variables, state.variables())
print(json.dumps(report))
"""


@pytest.mark.slow
def test_parts_are_restored_bit_by_bit_on_other_devices(tmp_path):
  layouts = [(1, 'none'), (4, 'none'), (4, 'all'), (8, 'optimizer')]
  specs = run_on_eight(SAVE, str(tmp_path), layouts)
  whole = {'kernel': [], 'odd': [], 'bias': []}
  # No axis of `odd` can be split, and `bias` is too small.
  part = {**whole, 'kernel': [None, None, 'data']}
  assert specs == [whole, whole, part, whole]


RUN = """
import contextlib, pathlib
import tiny_run
from maskrcnn_jax.training import loop
folder = pathlib.Path(arguments[0])
jax.config.update('jax_disable_most_optimizations', True)
jax.config.update('jax_compilation_cache_dir', str(folder / 'programs'))
config = tiny_run.make_config(*tiny_run.write_dataset(folder))
config.model.box_channels = 64  # Large enough to be split.
config.input.canvases = ((128, 64),)
config.input.batch_size = config.evaluation.batch_size = 4
config.evaluation.every_steps = 3
ONE = {'num_devices': 1}
SPLIT = {'num_devices': 8, 'spatial': 2, 'shard_state': 'all'}
for name, num_steps, runtime in (
  ('one', 4, ONE),
  ('split', 4, SPLIT),
  ('both', 2, SPLIT),
  ('both', 4, ONE),
):
  config.runtime = runtime
  config.training.num_steps = num_steps
  with contextlib.redirect_stdout(sys.stderr):
    loop.train_and_evaluate(config, folder / name)
print('0')
"""


@pytest.mark.slow
@pytest.mark.long
def test_runs_of_all_layouts_are_one_run(tmp_path):
  """In parts, and begun in parts to be continued by one device."""
  run_on_eight(RUN, str(tmp_path))
  one, split, both = (
    lines(tmp_path / name) for name in ('one', 'split', 'both')
  )
  losses = [(step, 'train/total_loss') for step in (1, 2, 3, 4)]
  assert sorted(one) == sorted([*losses, (3, 'eval/AP'), (4, 'eval/AP')])
  assert {*split} == {*one}
  # It was evaluated at its first end as well.
  assert {*both} == {*one, (2, 'eval/AP')}
  for other in (split, both):
    for key, line in one.items():
      for name, value in line.items():
        np.testing.assert_allclose(
          other[key][name], value, rtol=1e-4, atol=1e-6, err_msg=name
        )


def lines(workdir):
  """(step, `train/total_loss` or `eval/AP`) -> what was written then."""
  return {
    (step, key): line
    for key in ('train/total_loss', 'eval/AP')
    for step, line in tiny_run.lines(workdir, key).items()
  }
