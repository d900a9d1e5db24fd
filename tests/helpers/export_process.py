"""Runs code in a process that cannot import given packages."""

import os
import subprocess
import sys

import quick


def run(code, blocked, folder):
  """Standard output of the code; the test fails if the code does.

  Args:
    code: Python.
    blocked: top-level packages that cannot be imported.
    folder: working directory.
  """
  setup = (
    f'import sys\nfor name in {tuple(blocked)!r}:\n  sys.modules[name] = None\n'
  )
  environment = {
    **os.environ,
    'PYTHONPATH': '',
    'TF_CPP_MIN_LOG_LEVEL': '3',
    'XLA_FLAGS': quick.xla_flags(),
  }
  done = subprocess.run(
    [sys.executable, '-c', setup + code],
    cwd=folder,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
  return done.stdout
