"""A disk that is full or read-only: an early error, and nothing lost."""

import contextlib
import errno
import logging
import os
import resource
import shutil
import subprocess

import jax
import pytest
import small_disk
from tiny_checkpoint import assert_same, make_config, make_state, save_state

from maskrcnn_jax.checkpoints import checksums, store
from maskrcnn_jax.checkpoints.disk_space import checkpoint_bytes

MEBIBYTE = 2**20


def large_state(step):
  """A state whose numbers take a mebibyte, and cannot be compressed much."""
  numbers = jax.random.normal(jax.random.key(step), (16, 16384))
  return make_state(step=step).replace(params={'kernel': numbers})


def save(writer, step):
  return save_state(writer, step, large_state(step))


def restore_latest(workdir):
  return store.restore_latest(workdir, large_state(0), make_config())


@pytest.fixture
def disk(tmp_path):
  with small_disk.mounted(tmp_path / 'disk', 8 * MEBIBYTE) as folder:
    yield folder


@pytest.fixture(autouse=True)
def quiet_orbax(monkeypatch):
  """A thread that fails logs its traceback many times over."""
  monkeypatch.setattr(logging.getLogger('absl'), 'disabled', True)


def test_a_checkpoint_is_not_larger_than_said(disk):
  before = shutil.disk_usage(disk).used
  with store.CheckpointWriter(disk / 'run') as writer:
    save(writer, 1)
  used = shutil.disk_usage(disk).used - before
  assert used > 0.8 * MEBIBYTE
  assert used < checkpoint_bytes(large_state(1))


def test_a_disk_that_is_too_small_is_an_error_at_the_start(disk):
  size = checkpoint_bytes(large_state(0))
  store.check_can_save(disk / 'run', large_state(0), keep=5)
  with pytest.raises(store.SaveError) as error:
    store.check_can_save(disk / 'run', large_state(0), keep=9)
  free = shutil.disk_usage(disk).free
  assert error.value.code == errno.ENOSPC
  assert (error.value.given, error.value.wanted) == (free, 10 * size)
  assert f'{free:,}' in str(error.value)
  assert f'{10 * size:,}' in str(error.value)
  # The checkpoints on disk will be replaced.
  with store.CheckpointWriter(disk / 'run', keep=4) as writer:
    for step in range(4):
      save(writer, step)
  with small_disk.nearly_full(disk, 2 * MEBIBYTE):
    store.check_can_save(disk / 'run', large_state(0), keep=4)
    with pytest.raises(store.SaveError) as error:
      store.check_can_save(disk / 'run', large_state(0), keep=5)
  assert error.value.wanted == 2 * size


def test_without_space_training_goes_on_and_saves_later(disk, caplog):
  with store.CheckpointWriter(disk / 'run', keep=1) as writer:
    assert save(writer, 1)
    writer.wait()
    with small_disk.nearly_full(disk, MEBIBYTE):
      assert not save(writer, 2)
      (record,) = caplog.records
      assert record.args[0] == 2
      assert record.args[1] == f'{checkpoint_bytes(large_state(2)):,}'
      assert_same(restore_latest(disk / 'run').state, large_state(1))
    assert save(writer, 3)
  assert_same(restore_latest(disk / 'run').state, large_state(3))


@contextlib.contextmanager
def taken(disk, monkeypatch):
  """Another program takes the space after it was checked."""
  with small_disk.nearly_full(disk, MEBIBYTE // 2), monkeypatch.context() as m:
    roomy = shutil.disk_usage(disk)._replace(free=2**40)
    m.setattr(shutil, 'disk_usage', lambda _: roomy)
    yield


def test_a_disk_that_fills_up_during_a_save_costs_that_save(
  disk, caplog, monkeypatch
):
  run = disk / 'run'
  with store.CheckpointWriter(run, keep=1) as writer:
    assert save(writer, 1)
    writer.wait()
    with taken(disk, monkeypatch):
      assert save(writer, 2)
      assert save(writer, 3)
      assert f'{run}/checkpoints/2: No space left on device' in caplog.text
      with pytest.raises(store.SaveError) as error:
        writer.wait()
      assert error.value.path == f'{run}/checkpoints/3'
      assert error.value.code == errno.ENOSPC
      # What a failed save wrote does not fill the disk for the next one.
      assert [p.name for p in (run / 'checkpoints').iterdir()] == ['1']
      assert_same(restore_latest(run).state, large_state(1))
    assert save(writer, 4)
  assert_same(restore_latest(run).state, large_state(4))
  assert [p.name for p in (run / 'checkpoints').iterdir()] == ['4']


def test_a_last_save_that_fails_is_an_error(disk, monkeypatch):
  with (
    taken(disk, monkeypatch),
    pytest.raises(store.SaveError) as error,
    store.CheckpointWriter(disk / 'run') as writer,
  ):
    save(writer, 1)
  assert error.value.code == errno.ENOSPC
  with (
    taken(disk, monkeypatch),
    pytest.raises(KeyError, match='of the run'),
    store.CheckpointWriter(disk / 'run') as writer,
  ):
    save(writer, 1)
    raise KeyError('The error of the run matters more.')


@pytest.mark.parametrize('length', [0, 50, 110, 170, 230])
def test_another_failure_stops_the_run_at_the_next_save(tmp_path, length):
  """The reason is given however long the paths in Orbax's message are."""
  workdir = tmp_path / ('x' * length)
  with store.CheckpointWriter(workdir) as writer:
    save(writer, 1)
    writer.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEBIBYTE // 4, before[1]))
    try:
      save(writer, 2)
      with pytest.raises(store.SaveError) as error:
        save(writer, 3)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.path == f'{workdir}/checkpoints/2'
    assert error.value.code == errno.EFBIG
    assert os.strerror(errno.EFBIG) in str(error.value)
    save(writer, 3)
  assert store.latest_step(workdir) == 3
  assert_same(restore_latest(workdir).state, large_state(3))


# As TensorStore writes them: the reason at the end, or before its own words.
MESSAGES = (
  "Failed to write 707264 bytes to file 4: {reason} [os_error_code='{code}']",
  "file 4: {reason} [os_error_code='{code}'] [source='tensorstore/a.cc:1']"
  ' [tensorstore_spec=\'{{"driver":"ocdbt","path":"a\\":{{"}}\']',
  'Failed to write 707264 bytes to file 4: {reason}',
)


@pytest.mark.parametrize('code', [errno.EFBIG, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize('message', MESSAGES)
@pytest.mark.parametrize('length', [0, 300, 1000])
def test_the_reason_of_a_failure_is_found(code, message, length):
  reason = os.strerror(code)
  text = message.format(reason=reason, code=code)
  error = ValueError(f'{"x" * length} {text} {"y" * length}')
  assert checksums.system_code(error) == code
  assert checksums.summary(error).startswith(reason)
  assert len(checksums.summary(error)) < 500
  wrapped = RuntimeError('Thread failed.')
  wrapped.__cause__ = OSError(code, reason)
  assert checksums.system_code(wrapped) == code
  assert checksums.system_code(ValueError('y' * length)) is None


def test_a_folder_that_cannot_be_written_is_an_error_at_the_start(disk):
  with store.CheckpointWriter(disk / 'run') as writer:
    save(writer, 1)
  subprocess.run(['mount', '-o', 'remount,ro', disk], check=True)
  for workdir in (disk / 'run', disk / 'new'):
    with pytest.raises(store.SaveError) as error:
      store.check_can_save(workdir, large_state(0))
    assert error.value.path == f'{workdir}/checkpoints'
    assert error.value.code == errno.EROFS
    assert os.strerror(errno.EROFS) in str(error.value)
  # Checkpoints on it can still be read.
  store.check_workdir(disk / 'run', make_config())
  store.restore(disk / 'run')


def test_a_file_in_place_of_the_workdir_is_an_error(tmp_path):
  (tmp_path / 'run').write_text('A file.')
  with pytest.raises(store.SaveError) as error:
    store.check_can_save(tmp_path / 'run', large_state(0))
  assert error.value.path == str(tmp_path / 'run/checkpoints')
  assert error.value.code == errno.ENOTDIR
