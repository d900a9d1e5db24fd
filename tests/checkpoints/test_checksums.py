"""Corrupt checkpoints are found, named, and cost one checkpoint at most."""

import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_checkpoint import (
  CLASSES,
  POSITION,
  assert_same,
  make_config,
  make_state,
  save,
  save_state,
)

from maskrcnn_jax.checkpoints import checksums, retention, store

# Tensors of more than 1024 bytes lie in files of their own.
WIDTH = 300
DTYPES = ['float32', 'bfloat16', 'int32', 'uint8', 'bool']


def checksum(x):
  return checksums.compute({'x': jnp.asarray(x)}, {})['tensors']['x'][1]


def mixed(x):
  x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
  x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
  return x ^ x >> 16


def slow_checksum(x):
  """The definition, word by word, in Python's numbers."""
  x = np.ascontiguousarray(x)
  words = x.view(f'u{x.dtype.itemsize}').ravel().tolist()
  return sum(mixed(w ^ mixed(i)) for i, w in enumerate(words)) % 2**32


@pytest.mark.parametrize('shape', [(), (0,), (7,), (3, 5, 2)])
@pytest.mark.parametrize('dtype', DTYPES)
def test_checksums_follow_their_definition(shape, dtype):
  values = np.random.default_rng(0).integers(0, 200, shape)
  values = np.asarray(values, jnp.dtype(dtype))
  assert checksum(values) == slow_checksum(values)


@pytest.mark.parametrize('dtype', DTYPES[:-1])
def test_every_flipped_bit_changes_the_checksum(dtype):
  values = np.random.default_rng(0).integers(0, 99, (3, 4)).astype(dtype)
  seen = {checksum(values)}
  flat = values.view(np.uint8).reshape(-1)
  for byte in range(flat.size):
    for bit in range(8):
      flat[byte] ^= 1 << bit
      seen.add(checksum(values))
      flat[byte] ^= 1 << bit
  # No two flips look alike either.
  assert len(seen) == 1 + 8 * flat.size


def test_a_checksum_depends_on_positions():
  values = jnp.arange(12.0).reshape(3, 4)
  others = (values.T.reshape(3, 4), values[::-1], jnp.roll(values, 1, axis=1))
  zeros = (jnp.zeros((3, 4)), jnp.zeros((4, 4)))
  assert len({checksum(x) for x in (values, *others, *zeros)}) == 6


def test_two_changed_signs_do_not_cancel():
  values = np.random.default_rng(0).normal(size=(6, 50))
  assert checksum(values) != checksum(-values)
  values[0, :2] *= -1
  assert checksum(values) != checksum(np.abs(values))


def test_a_checksum_does_not_depend_on_the_devices():
  count = jax.device_count()
  values = jax.random.normal(jax.random.key(0), (2 * count, 3))
  mesh = jax.make_mesh((count,), ('data',))
  for spec in (jax.P(), jax.P('data')):
    sharded = jax.device_put(values, jax.NamedSharding(mesh, spec))
    assert checksum(sharded) == checksum(values)


def test_errors_outside_the_files_pass_through(tmp_path):
  for error in (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
    with pytest.raises(error), checksums.reading(tmp_path):
      raise error('Not the fault of a file.')


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('saved')
  with store.CheckpointWriter(workdir) as writer:
    for step in (2, 4):
      save_state(writer, step, random_state(step))
  return workdir


def random_state(step):
  state = make_state(width=WIDTH, step=step)
  kernel = jax.random.normal(jax.random.key(step), (2, WIDTH))
  return state.replace(params={**state.params, 'fpn': {'kernel': kernel}})


def restore_latest(workdir, config=None):
  target = make_state(width=WIDTH)
  return store.restore_latest(workdir, target, config or make_config())


def corruption(function, *arguments):
  """The error of a function that finds a corrupt checkpoint."""
  with pytest.raises(store.CorruptCheckpointError) as error:
    function(*arguments)
  return error.value


def flip(path, offset, bit):
  data = bytearray(path.read_bytes())
  data[offset] ^= 1 << bit
  path.write_bytes(data)


@pytest.mark.parametrize(
  'flips_per_file', [1, pytest.param(4, marks=pytest.mark.slow)]
)
def test_no_flipped_bit_gives_wrong_values(saved, tmp_path, flips_per_file):
  """Flips bits of every file in turn, and restores."""
  draw = random.Random(0)
  newest = saved / 'checkpoints' / '4'
  files = sorted(p for p in newest.rglob('*') if p.is_file())
  assert len(files) > 20
  found = set()
  for file in files:
    size = file.stat().st_size
    for _ in range(flips_per_file):
      workdir = tmp_path / 'run'
      shutil.copytree(saved, workdir)
      flip(
        workdir / file.relative_to(saved),
        draw.randrange(size),
        draw.randrange(8),
      )
      store.check_workdir(workdir, make_config())
      restored = restore_latest(workdir)
      assert_same(restored.state, random_state(restored.step))
      assert restored.position == POSITION
      assert restored.classes == CLASSES
      aside = [p.name for p in (workdir / 'checkpoints').glob('*.damaged')]
      assert aside == ([] if restored.step == 4 else ['4.damaged'])
      found |= {file.relative_to(newest).parts[0]} if aside else set()
      shutil.rmtree(workdir)
  assert found == {'state', 'position', 'config', 'classes', 'health'}


@pytest.fixture
def run(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'run')
  return tmp_path / 'run'


def flip_in_kernel(workdir, step):
  """Flips a bit among the numbers of the largest tensor."""
  files = (workdir / 'checkpoints' / str(step) / 'state').rglob('d/*')
  file = max(files, key=lambda path: path.stat().st_size)
  flip(file, file.stat().st_size // 2, bit=3)


def test_the_previous_checkpoint_replaces_a_corrupt_one(run, caplog):
  flip_in_kernel(run, 4)
  assert restore_latest(run).step == 2
  # Orbax itself does not notice this one.
  reason = (run / 'checkpoints/4.damaged/damage.txt').read_text().strip()
  assert 'params/fpn/kernel' in reason
  (record,) = caplog.records
  aside = run / 'checkpoints' / '4.damaged'
  assert record.args == (4, reason, aside)
  assert store.latest_step(run) == 2
  # A run that goes on reaches the step again, which may be corrupt again.
  with store.CheckpointWriter(run) as writer:
    save_state(writer, 4, random_state(4))
  assert_same(restore_latest(run).state, random_state(4))
  shutil.rmtree(run / 'checkpoints' / '4' / 'position')
  assert restore_latest(run).step == 2
  assert (run / 'checkpoints' / '4.damaged-2').is_dir()
  assert aside.is_dir()


def test_wrong_numbers_in_valid_files_are_named(run):
  """As a bad memory chip leaves them: no file is wrong in itself."""
  with store.CheckpointWriter(run / 'other') as writer:
    save_state(writer, 4, random_state(5).replace(step=jnp.int32(4)))
  state = run / 'checkpoints' / '4' / 'state'
  shutil.rmtree(state)
  shutil.copytree(run / 'other' / 'checkpoints' / '4' / 'state', state)
  error = corruption(store.restore, run)
  assert (error.item, error.path) == ('params/fpn/kernel', str(state))
  assert restore_latest(run).step == 2


def test_a_missing_item_is_named(run):
  item = run / 'checkpoints' / '4' / 'health'
  shutil.rmtree(item)
  assert corruption(store.read_position, run).path == str(item)
  assert restore_latest(run).step == 2


def test_without_a_valid_one_nothing_is_trained_from_the_start(run):
  for step in (2, 4):
    flip_in_kernel(run, step)
  error = corruption(restore_latest, run)
  assert error.path == str(run)
  steps = [line.partition(':')[0] for line in error.given]
  assert steps == ['step 4', 'step 2']
  error = corruption(restore_latest, run)
  assert error.given == [str(path) for path in retention.corrupt(run)]
  assert len(error.given) == 2


def test_another_model_is_not_corrupt(run):
  before = sorted(run.rglob('*'))
  with pytest.raises(store.WorkdirError):
    restore_latest(run, make_config(depth=50))
  with pytest.raises(store.WorkdirError):
    store.restore_latest(run, make_state(width=3), make_config())
  assert sorted(run.rglob('*')) == before


def test_a_checkpoint_that_is_only_read_stays_where_it_is(run):
  flip_in_kernel(run, 4)
  newest = run / 'checkpoints' / '4'
  assert corruption(store.restore, run).path == str(newest / 'state')
  assert store.latest_step(run) == 4
  store.restore(run, step=2)
  flip(newest / 'position' / 'metadata', 14, 0)
  error = corruption(store.read_position, run)
  assert error.path == str(newest / 'position')


def test_a_checkpoint_without_checksums_is_taken_with_a_warning(
  tmp_path, caplog
):
  save(tmp_path, width=WIDTH)
  newest = tmp_path / 'checkpoints' / '4'
  shutil.rmtree(newest / 'health')
  metadata = newest / '_CHECKPOINT_METADATA'
  metadata.write_text(metadata.read_text().replace('"health"', '"other"'))
  assert restore_latest(tmp_path).step == 4
  (record,) = caplog.records
  assert record.args == (newest,)
  store.restore(tmp_path)
