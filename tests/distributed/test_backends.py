"""Backends: the named one, an accelerator that works, or a clear error.

The plugins are real ones, loaded by new processes: a package that pip installs
into an environment of its own, and a library in C.
"""

import logging
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import jax
import plugin_environment
import pytest

from maskrcnn_jax.distributed import backends
from maskrcnn_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def only_the_cpu():
  if jax.default_backend() != 'cpu':
    pytest.skip('an accelerator is present')


@pytest.mark.parametrize('name, num_warnings', [('auto', 1), ('cpu', 0)])
def test_the_cpu_is_taken(only_the_cpu, caplog, name, num_warnings):
  with caplog.at_level(logging.WARNING):
    assert backends.pick_backend(name) == 'cpu'
  assert len(caplog.records) == num_warnings


@pytest.mark.parametrize('name', ['gpu', 'tpu', 'hpu'])
def test_a_missing_backend_is_an_error(only_the_cpu, name):
  before = jax.config.jax_platforms
  with pytest.raises(UserError) as error:
    backends.pick_backend(name)
  assert error.value.argument == 'runtime.backend'
  assert error.value.given == name
  assert f'{jax.device_count()} cpu' in str(error.value)
  assert jax.config.jax_platforms == before


def test_an_unknown_backend_lists_the_known_ones():
  with pytest.raises(UserError) as error:
    backends.pick_backend('cuda')
  assert error.value.given == 'cuda'
  assert 'auto, cpu, gpu, tpu, hpu' in error.value.wanted


@pytest.mark.parametrize(
  'name, path', [('gpu', __file__), ('hpu', '/no/such.so')]
)
def test_the_path_of_a_plugin_is_checked(name, path):
  with pytest.raises(UserError) as error:
    backends.pick_backend(name, plugin_path=path)
  assert error.value.argument == 'runtime.plugin_path'


@pytest.fixture(scope='module')
def with_plugin(tmp_path_factory):
  """The Python of an environment with the package of tests/plugins."""
  return plugin_environment.make(tmp_path_factory.mktemp('plugin'))


PICK = """
import logging, sys
logging.basicConfig(format='%(message)s')
from maskrcnn_jax.distributed import backends
backends._PROBE_SECONDS = float(sys.argv[3])
try:
  print(backends.pick_backend(sys.argv[1], plugin_path=sys.argv[2] or None))
except ValueError as error:
  print(error)
  sys.exit(2)
import jax, jax.numpy as jnp
print(jax.jit(jnp.sum)(jnp.ones(3)))
"""


def run(python, code, *arguments, behaviour='healthy', **variables):
  """A new process in which JAX chooses the backend."""
  names = ('JAX_PLATFORMS', 'XLA_FLAGS', 'PJRT_NAMES_AND_LIBRARY_PATHS')
  kept = {k: v for k, v in os.environ.items() if k not in names}
  return subprocess.run(
    [python, '-c', code, *arguments],
    env={**kept, 'PYTHONPATH': str(ROOT), 'FAKE_HPU': behaviour, **variables},
    capture_output=True,
    text=True,
    check=False,
    timeout=120,
  )


def pick(python, name, behaviour='healthy', path='', seconds=60, **variables):
  """A new process that picks a backend and computes 3.0 on it."""
  arguments = (PICK, name, path, str(seconds))
  return run(python, *arguments, behaviour=behaviour, **variables)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['auto', 'hpu'])
def test_a_plugin_that_registers_hpu_is_used(with_plugin, name):
  done = pick(with_plugin, name)
  assert done.stdout.split() == ['hpu', '3.0'], done.stderr
  assert 'CPU' not in done.stderr


@pytest.mark.parametrize(
  'behaviour, message',
  [
    ('initialize', 'the driver is too old'),
    (
      'client',
      "Unable to initialize backend 'hpu': the driver does not answer",
    ),
    ('devices', "Backend 'hpu' provides no devices"),
    ('crash', 'ended the process that tried it, signal 6'),
    ('hang', 'did not start within 5.0 s'),
  ],
)
def test_auto_falls_back_to_the_cpu_with_one_line(
  with_plugin, behaviour, message
):
  seconds = 5 if behaviour == 'hang' else 60
  done = pick(with_plugin, 'auto', behaviour, seconds=seconds)
  assert done.stdout.split() == ['cpu', '3.0'], done.stderr
  (line,) = done.stderr.splitlines()
  assert '(fake_hpu' in line
  assert message in line


@pytest.mark.slow
@pytest.mark.parametrize(
  'behaviour, reason',
  [
    ('initialize', "Backend 'hpu' is not in the list of known backends"),
    ('client', 'the driver does not answer'),
    ('devices', "Backend 'hpu' provides no devices"),
  ],
)
def test_a_named_plugin_that_fails_is_an_error(with_plugin, behaviour, reason):
  done = pick(with_plugin, 'hpu', behaviour)
  assert done.returncode == 2
  for text in ("'hpu'", '1 cpu', 'fake_hpu', reason):
    assert text in done.stdout


@pytest.mark.parametrize(
  'name, variables', [('cpu', {}), ('auto', {'JAX_PLATFORMS': 'cpu'})]
)
def test_the_cpu_loads_no_plugin(with_plugin, name, variables):
  """Loaded, it would hang."""
  done = pick(with_plugin, name, 'hang', **variables)
  assert done.stdout.split() == ['cpu', '3.0'], done.stderr


IMPORT = 'from maskrcnn_jax.distributed import backends\n'


def test_several_processes_must_name_the_backend(with_plugin):
  done = run(with_plugin, IMPORT + 'backends.pick_backend("auto", 2)')
  last = done.stderr.splitlines()[-1]
  assert 'UserError: runtime.backend' in last
  assert '(fake_hpu)' in last


@pytest.fixture(scope='module')
def library(tmp_path_factory):
  """A PJRT plugin in C that loads and finds no device."""
  compiler = shutil.which('cc')
  if compiler is None:
    pytest.skip('there is no C compiler')
  header = 'xla/pjrt/c/pjrt_c_api.h'
  package = pathlib.Path(sysconfig.get_path('purelib')) / 'tensorflow'
  roots = [package / 'include' / sub for sub in ('', 'tensorflow/compiler')]
  roots = [root for root in roots if (root / header).is_file()]
  if not roots:
    pytest.skip(f'TensorFlow brings no {header}')
  path = tmp_path_factory.mktemp('library') / 'no_device.so'
  source = str(plugin_environment.PLUGINS / 'no_device.c')
  subprocess.run(
    [compiler, '-shared', '-fPIC', f'-I{roots[0]}', '-o', str(path), source],
    check=True,
  )
  return path


def test_auto_goes_on_without_the_device_of_a_library(library):
  done = pick(sys.executable, 'auto', path=str(library))
  assert done.stdout.split() == ['cpu', '3.0'], done.stderr
  (line,) = done.stderr.splitlines()
  assert f'(hpu:{library}: ' in line
  assert 'NOT_FOUND: no Gaudi device was found)' in line


def test_a_named_library_without_a_device_is_an_error(library):
  done = pick(sys.executable, 'hpu', path=str(library))
  assert done.returncode == 2
  assert 'NOT_FOUND: no Gaudi device was found' in done.stdout


def test_a_file_that_is_no_library_is_an_error(tmp_path):
  path = tmp_path / 'text.so'
  path.write_bytes(b'text')
  done = pick(sys.executable, 'hpu', path=str(path))
  assert done.returncode == 2
  assert f'Failed to open {path}' in done.stdout


def test_installed_plugins_are_found_without_loading_them(with_plugin):
  code = 'print(backends.installed_plugins(), "fake_hpu" in sys.modules)'
  done = run(with_plugin, f'import sys\n{IMPORT}{code}')
  assert done.stdout == "['fake_hpu'] False\n"


def test_a_plugin_can_be_imported_once_the_cpu_is_started(with_plugin):
  code = IMPORT + 'print(backends.pick_backend("cpu")); import fake_hpu'
  done = run(with_plugin, code, behaviour='hang')
  assert (done.stdout, done.stderr) == ('cpu\n', '')
