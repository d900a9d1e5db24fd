"""Runs code in a process that cannot import given packages."""

import sys

import job_process


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
  done = job_process.execute(
    [sys.executable, '-c', setup + code], 1800, folder, PYTHONPATH=''
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
  return done.stdout
