"""An environment with the plugin of tests/plugins/package installed."""

import pathlib
import shutil
import site
import subprocess
import sys
import sysconfig
import venv

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PLUGINS = ROOT / 'tests' / 'plugins'


def make(folder):
  """Makes it with pip; returns its Python.

  The packages of this environment are seen through a path file, so that
  nothing else is installed.
  """
  source = shutil.copytree(PLUGINS / 'package', folder / 'source')
  venv.create(folder / 'venv', symlinks=True)
  python = folder / 'venv' / 'bin' / 'python'
  variables = {'base': folder / 'venv', 'platbase': folder / 'venv'}
  packages = pathlib.Path(sysconfig.get_path('purelib', 'venv', variables))
  lines = [str(ROOT), *site.getsitepackages()]
  (packages / 'shared.pth').write_text('\n'.join(lines))
  pip = [sys.executable, '-m', 'pip', '--python', python, 'install', '-q']
  done = subprocess.run(
    [*pip, '--no-deps', '--no-build-isolation', '--no-index', source],
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    pytest.skip(f'pip did not install the plugin: {done.stderr[-500:]}')
  return python
