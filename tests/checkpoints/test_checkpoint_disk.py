"""A disk that is full or may not be written: told early, nothing lost."""

import contextlib
import logging
import resource
import shutil
import subprocess

import jax
import pytest
import small_disk
from tiny_checkpoint import (
  CLASSES,
  POSITION,
  assert_same,
  make_config,
  make_state,
)

from maskrcnn_jax.checkpoints import store as checkpoint
from maskrcnn_jax.checkpoints import writer as checkpoint_writer

MEBIBYTE = 2**20


def large_state(step):
  """A state whose numbers take a mebibyte, and cannot be compressed much."""
  numbers = jax.random.normal(jax.random.key(step), (16, 16384))
  return make_state(step=step).replace(params={'kernel': numbers})


def save(writer, step):
  state = large_state(step)
  return writer.save(step, state, POSITION, make_config(), CLASSES)


def restore_latest(workdir):
  return checkpoint.restore_latest(workdir, large_state(0), make_config())


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
  with checkpoint.CheckpointWriter(disk / 'run') as writer:
    save(writer, 1)
  used = shutil.disk_usage(disk).used - before
  assert used > 0.8 * MEBIBYTE
  assert used < checkpoint_writer.checkpoint_bytes(large_state(1))


def test_a_disk_that_is_too_small_is_told_at_the_start(disk):
  size = checkpoint_writer.checkpoint_bytes(large_state(0))
  checkpoint.check_can_save(disk / 'run', large_state(0), keep=5)
  with pytest.raises(checkpoint.SaveError) as error:
    checkpoint.check_can_save(disk / 'run', large_state(0), keep=9)
  free = shutil.disk_usage(disk).free
  message = str(error.value)
  assert f'has {free:,} bytes left, and 10 more checkpoints' in message
  assert f'need {10 * size:,}' in message
  # Those that are there already will be replaced.
  with checkpoint.CheckpointWriter(disk / 'run', keep=4) as writer:
    for step in range(4):
      save(writer, step)
  with small_disk.nearly_full(disk, 2 * MEBIBYTE):
    checkpoint.check_can_save(disk / 'run', large_state(0), keep=4)
    with pytest.raises(checkpoint.SaveError, match='2 more checkpoints'):
      checkpoint.check_can_save(disk / 'run', large_state(0), keep=5)


def test_without_space_training_goes_on_and_saves_later(disk, caplog):
  with checkpoint.CheckpointWriter(disk / 'run', keep=1) as writer:
    assert save(writer, 1)
    writer.wait()
    with small_disk.nearly_full(disk, MEBIBYTE):
      assert not save(writer, 2)
      assert 'Step 2 is not saved: a checkpoint needs' in caplog.text
      assert_same(restore_latest(disk / 'run').state, large_state(1))
    assert save(writer, 3)
  assert_same(restore_latest(disk / 'run').state, large_state(3))


@contextlib.contextmanager
def taken(disk, monkeypatch):
  """Another program takes the space after it was looked at."""
  with small_disk.nearly_full(disk, MEBIBYTE // 2), monkeypatch.context() as m:
    roomy = shutil.disk_usage(disk)._replace(free=2**40)
    m.setattr(shutil, 'disk_usage', lambda _: roomy)
    yield


def test_a_disk_that_fills_up_during_a_save_costs_that_save(
  disk, caplog, monkeypatch
):
  run = disk / 'run'
  with checkpoint.CheckpointWriter(run, keep=1) as writer:
    assert save(writer, 1)
    writer.wait()
    with taken(disk, monkeypatch):
      assert save(writer, 2)
      assert save(writer, 3)
      assert f'Step 2 could not be saved as {run}/checkpoints/2' in caplog.text
      assert 'No space left on device' in caplog.text
      with pytest.raises(checkpoint.SaveError, match='Step 3 could not'):
        writer.wait()
      # What a failed save wrote does not fill the disk for the next one.
      assert [p.name for p in (run / 'checkpoints').iterdir()] == ['1']
      assert_same(restore_latest(run).state, large_state(1))
    assert save(writer, 4)
  assert_same(restore_latest(run).state, large_state(4))
  assert [p.name for p in (run / 'checkpoints').iterdir()] == ['4']


def test_a_last_save_that_fails_is_an_error(disk, monkeypatch):
  with (
    taken(disk, monkeypatch),
    pytest.raises(checkpoint.SaveError, match='Step 1 could not be saved'),
    checkpoint.CheckpointWriter(disk / 'run') as writer,
  ):
    save(writer, 1)
  with (
    taken(disk, monkeypatch),
    pytest.raises(KeyError, match='of the run'),
    checkpoint.CheckpointWriter(disk / 'run') as writer,
  ):
    save(writer, 1)
    raise KeyError('The error of the run matters more.')


def test_another_failure_stops_the_run_at_the_next_save(tmp_path):
  with checkpoint.CheckpointWriter(tmp_path) as writer:
    save(writer, 1)
    writer.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEBIBYTE // 4, before[1]))
    try:
      save(writer, 2)
      with pytest.raises(
        checkpoint.SaveError, match=r'2 could .*File too large'
      ):
        save(writer, 3)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, before)
    save(writer, 3)
  assert checkpoint.latest_step(tmp_path) == 3
  assert_same(restore_latest(tmp_path).state, large_state(3))


def test_a_folder_that_cannot_be_written_is_told_at_the_start(disk):
  with checkpoint.CheckpointWriter(disk / 'run') as writer:
    save(writer, 1)
  subprocess.run(['mount', '-o', 'remount,ro', disk], check=True)
  for workdir in (disk / 'run', disk / 'new'):
    with pytest.raises(checkpoint.SaveError) as error:
      checkpoint.check_can_save(workdir, large_state(0))
    assert f'{workdir}/checkpoints cannot be written' in str(error.value)
    assert 'Read-only file system' in str(error.value)
  # What is there can still be looked at.
  checkpoint.check_workdir(disk / 'run', make_config())
  checkpoint.restore(disk / 'run')


def test_a_file_in_the_place_of_the_workdir_is_told(tmp_path):
  (tmp_path / 'run').write_text('A file.')
  with pytest.raises(checkpoint.SaveError, match='cannot be written'):
    checkpoint.check_can_save(tmp_path / 'run', large_state(0))
