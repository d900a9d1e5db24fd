"""Picks the backend: the one that is named, or what works here.

JAX loads every installed plugin before it makes a device, and one plugin that
fails ends the program or hangs it. So `auto` first tries the installed plugins
in a process of its own, and keeps JAX from loading them where that fails.
"""

import importlib.util
import logging
import os
import pathlib
import pkgutil
import re
import subprocess
import sys
import types
from importlib import metadata

import jax
from jax.extend import backend as jax_backend

from maskrcnn_jax.errors import UserError

BACKENDS = ('auto', 'cpu', 'gpu', 'tpu', 'hpu')

# What brings each backend; JAX finds an installed one by itself.
_INSTALL = {
  'gpu': 'pip install "maskrcnn-jax[cuda]"',
  'tpu': 'pip install "maskrcnn-jax[tpu]"',
  'hpu': "install Intel Gaudi's JAX plugin, or name it in runtime.plugin_path",
}
# JAX's names for a GPU; the alias `gpu` would insist on all of them.
_GPUS = ('cuda', 'rocm', 'oneapi')
# Where JAX looks for plugins: a group of entry points, a namespace package of
# the same name, and a variable with NAME:PATH,NAME:PATH.
_PLUGINS = 'jax_plugins'
_PATHS = 'PJRT_NAMES_AND_LIBRARY_PATHS'
# A machine with eight GPUs takes tens of seconds to start all of them.
_PROBE_SECONDS = 120
_PROBE = """
from jax.extend import backend
default = backend.get_backend()
print(*(n for n, known in backend.backends().items() if known is default))
"""


def pick_backend(
  name: str = 'auto',
  num_processes: int | None = None,
  plugin_path: str | None = None,
) -> str:
  """Makes JAX compute on a backend, and says which one.

  Args:
    name: `auto` takes the accelerator that works, and the CPU with a warning
      where there is none; every other name insists on that backend.
    num_processes: how many must have joined, see `runtime.start_distributed`;
      None takes any number.
    plugin_path: library of a PJRT plugin that is not installed, for `hpu`.

  Returns:
    The name of the backend in use, for example `cpu`.

  Raises:
    ValueError: the name is unknown, there is no such backend, or not all
      processes have it.
  """
  if name not in BACKENDS:
    raise UserError(
      f'runtime.backend must be one of {", ".join(BACKENDS)}, got {name!r}.'
    )
  if plugin_path:
    _announce(name, plugin_path)
  found = _take_any(num_processes) if name == 'auto' else _insist(name)
  # A backend counts the processes that have it, so one that is missing
  # anywhere, or does not join processes, is seen here without communication.
  if num_processes not in (None, jax.process_count()):
    raise UserError(
      f'{jax.process_count()} of {num_processes} processes compute together '
      f'on {found}: all of them need the same backend, and it must be able to '
      'join processes. Set runtime.backend to one that all have.'
    )
  return found


def installed_plugins() -> list[str]:
  """Plugins for accelerators that JAX would load, without loading them."""
  plugins = _plugin_modules()
  named = os.environ.get(_PATHS)
  plugins += named.split(',') if named else []
  # JAX knows this one by itself.
  plugins += ['libtpu'] if importlib.util.find_spec('libtpu') else []
  return plugins


def _plugin_modules() -> list[str]:
  """Modules that JAX imports, and calls their `initialize`."""
  modules = {entry.value for entry in metadata.entry_points(group=_PLUGINS)}
  spec = importlib.util.find_spec(_PLUGINS)
  if spec and spec.submodule_search_locations:
    found = pkgutil.iter_modules(spec.submodule_search_locations)
    modules |= {f'{_PLUGINS}.{module.name}' for module in found}
  return sorted(modules)


def _announce(name: str, path: str) -> None:
  """Tells JAX of a plugin's library, under the name `hpu`."""
  if name not in ('auto', 'hpu'):
    raise UserError(
      'runtime.plugin_path is for runtime.backend hpu or auto, got it for '
      f'{name!r}.'
    )
  if not pathlib.Path(path).is_file():
    raise UserError(f'runtime.plugin_path {path} does not exist.')
  entry = f'hpu{os.pathsep}{path}'
  named = os.environ.get(_PATHS, '')
  if entry not in named.split(','):
    os.environ[_PATHS] = f'{named},{entry}'.strip(',')


def _take_any(num_processes: int | None) -> str:
  """The accelerator that works; the CPU, with one line, where none does."""
  plugins, reason = installed_plugins(), ''
  chosen = jax.config.jax_platforms  # By JAX_PLATFORMS.
  if chosen == 'cpu':
    _leave_out_plugins()
  elif plugins and not chosen:
    if num_processes not in (None, 1):
      raise UserError(
        'runtime.backend must be named in a job of several processes where a '
        f'plugin for an accelerator is installed ({", ".join(plugins)}): what '
        'works could differ between them. Set runtime.backend to cpu, gpu, '
        'tpu or hpu.'
      )
    reason = _why_not(plugins)
    if reason:
      _use_the_cpu()
  found = _default_name()
  if found == 'cpu' and jax.process_index() == 0:
    logging.warning(
      'JAX finds no accelerator here%s; computing on the CPU (%d devices).',
      f' ({reason})' if reason else '',
      jax.device_count(),
    )
  return found


def _insist(name: str) -> str:
  """The named backend, with the CPU beside it; raises if there is none."""
  if name == 'cpu':
    _use_the_cpu()
    if _default_name() == 'cpu':
      return 'cpu'
    raise UserError(
      f'runtime.backend is cpu, but JAX already computes on {_found()}.'
    )
  before, plugins = jax.config.jax_platforms, installed_plugins()
  platform = _platform(name, plugins)
  # A list is no fallback: JAX fails where one of it does not start.
  jax.config.update('jax_platforms', f'{platform},cpu')
  try:
    jax.devices(name)
    if _default_name() == name:
      return name
    reason = 'it is not the first backend'
  except Exception as error:  # A plugin may raise anything.
    reason = _without_advice(str(error))
    _use_the_cpu()
  found = _found()
  jax.config.update('jax_platforms', before)
  listed = ', '.join(plugins)
  advice = '' if platform in listed else f' To use it, {_INSTALL[name]}.'
  raise UserError(
    f'runtime.backend is {name!r}, but JAX finds only {found}: {reason}. '
    f'Installed plugins: {listed or "none"}.{advice} Or set runtime.backend to '
    'auto.'
  )


def _platform(name: str, plugins: list[str]) -> str:
  """JAX's name of a backend."""
  if name != 'gpu':
    return name
  text = ' '.join(plugins)
  return next((gpu for gpu in _GPUS if gpu in text), _GPUS[0])


def _default_name() -> str:
  """The name under which the backend in use was registered.

  `jax.default_backend` gives the name that the plugin has for itself.
  """
  default = jax_backend.get_backend()
  backends = jax_backend.backends()
  (name,) = (n for n, known in backends.items() if known is default)
  return 'gpu' if name in _GPUS else name


def _use_the_cpu() -> None:
  """Leaves accelerators to others, and their plugins alone."""
  jax.config.update('jax_platforms', 'cpu')
  _leave_out_plugins()


def _leave_out_plugins() -> None:
  """Keeps JAX from loading plugins, which it does whatever the platform.

  One that hangs would hang the CPU too; one that fails would be logged with a
  traceback. JAX imports modules by name, so an empty one stands in.
  """
  os.environ.pop(_PATHS, None)
  for module in _plugin_modules():
    if module not in sys.modules:
      sys.modules[module] = types.ModuleType(module)
      sys.modules[module].initialize = lambda: None


def _why_not(plugins: list[str]) -> str:
  """Why no plugin gives an accelerator, tried in a process of its own.

  Returns:
    '' if one does.
  """
  environment = {**os.environ, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
  names = ', '.join(plugins)
  try:
    done = subprocess.run(
      [sys.executable, '-c', _PROBE],
      env=environment,
      capture_output=True,
      text=True,
      check=False,
      timeout=_PROBE_SECONDS,
    )
  except subprocess.TimeoutExpired:
    return f'{names} did not start within {_PROBE_SECONDS} s'
  if done.returncode == 0 and done.stdout.split()[-1:] not in ([], ['cpu']):
    return ''
  if done.returncode < 0:
    return f'{names} ended the process that tried it, signal {-done.returncode}'
  # Where JAX goes on without a plugin, it may still have logged why.
  if done.returncode == 0 and 'plugin configuration error' not in done.stderr:
    return f'{names}: no device'
  lines = done.stderr.strip().splitlines() or ['no reason given']
  return f'{names}: {_without_advice(lines[-1])}'


def _without_advice(message: str) -> str:
  """An error of JAX without its hints, which are about other settings."""
  return re.sub(r' \((set|you may) .*\)$', '', message.strip()).rstrip('.')


def _found() -> str:
  """Devices in words, for example `2 cpu (cpu)`."""
  devices = jax.devices()
  kinds = sorted({device.device_kind for device in devices})
  return f'{len(devices)} {devices[0].platform} ({", ".join(kinds)})'
