"""Runs code where this package, and much else, cannot be imported."""

import os
import subprocess
import sys

import quick


def run(code, blocked, folder):
  """What the code printed; the test fails with it if the code does.

  Args:
    code: Python.
    blocked: top-level packages whose import fails.
    folder: to run in.
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
