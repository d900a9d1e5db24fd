"""A disk of a few pages that a test can fill up."""

import contextlib
import shutil
import subprocess

import pytest

PAGE = 4096


@contextlib.contextmanager
def mounted(folder, num_bytes):
  """Makes a folder a disk of that size; skips where this is not allowed."""
  folder.mkdir()
  options = ['-t', 'tmpfs', '-o', f'size={num_bytes}', 'tmpfs', str(folder)]
  try:
    subprocess.run(['mount', *options], check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError) as error:
    pytest.skip(f'A small disk cannot be mounted here: {error}.')
  try:
    yield folder
  finally:
    subprocess.run(['umount', '--lazy', str(folder)], check=True)


@contextlib.contextmanager
def nearly_full(folder, free):
  """Leaves only so many bytes, until the block ends."""
  ballast = folder / 'ballast'
  room = shutil.disk_usage(folder).free - free
  assert room > 0
  ballast.write_bytes(bytes(room // PAGE * PAGE))
  yield
  ballast.unlink()
