"""Backends: the one that the config names, or an accelerator that works.

JAX loads every installed plugin before it makes a device, and a plugin that
fails can end or hang the program. So `auto` first tries the installed plugins
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
from importlib import metadata

import jax
from jax.extend import backend as jax_backend

from maskrcnn_jax.errors import UserError, invalid

BACKENDS = ('auto', 'cpu', 'gpu', 'tpu', 'hpu')

# How to install each backend; JAX finds an installed one itself.
_INSTALL = {
  'gpu': 'pip install "maskrcnn-jax[cuda]"',
  'tpu': 'pip install "maskrcnn-jax[tpu]"',
  'hpu': "install Intel Gaudi's JAX plugin, or name it in runtime.plugin_path",
}
# JAX's names for GPUs; the alias `gpu` would require all of them.
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
  """Makes JAX compute on a backend; returns its name, for example `cpu`.

  Args:
    name: `auto` takes an accelerator that works, or the CPU with a warning if
      there is none; every other name requires that backend.
    num_processes: that must have joined, see `processes.start_distributed`;
      None takes any number.
    plugin_path: library of a PJRT plugin that is not installed, for `hpu`.

  Raises:
    UserError: the name is unknown, there is no such backend, or not all
      processes have it.
  """
  if name not in BACKENDS:
    raise invalid('runtime.backend', name, f'one of {", ".join(BACKENDS)}')
  if plugin_path:
    _add_plugin(name, plugin_path)
  found = _pick_any(num_processes) if name == 'auto' else _require(name)
  # A backend counts the processes that have it, so one that is missing in some
  # process, or does not join processes, is noticed without communication.
  if num_processes not in (None, jax.process_count()):
    raise UserError(
      f'{jax.process_count()} of {num_processes} processes compute together '
      f'on {found}: all of them need the same backend, and it must be able to '
      'join processes. Set runtime.backend to one that all have.',
      argument='runtime.backend',
      given=found,
    )
  return found


def installed_plugins() -> list[str]:
  """Plugins for accelerators that JAX would load, without loading them."""
  named = filter(None, os.environ.get(_PATHS, '').split(','))
  # JAX knows this one itself.
  tpu = ['libtpu'] if importlib.util.find_spec('libtpu') else []
  return [*_plugin_modules(), *named, *tpu]


def _plugin_modules() -> list[str]:
  """Plugin modules, which JAX imports and initializes."""
  modules = {entry.value for entry in metadata.entry_points(group=_PLUGINS)}
  spec = importlib.util.find_spec(_PLUGINS)
  found = pkgutil.iter_modules((spec and spec.submodule_search_locations) or ())
  return sorted(modules | {f'{_PLUGINS}.{module.name}' for module in found})


def _add_plugin(name: str, path: str) -> None:
  """Registers a plugin's library with JAX under the name `hpu`."""
  if name not in ('auto', 'hpu'):
    wanted = f'empty where runtime.backend is {name!r}, not hpu or auto'
    raise invalid('runtime.plugin_path', path, wanted)
  if not pathlib.Path(path).is_file():
    raise invalid('runtime.plugin_path', path, 'a file that exists')
  entry = f'hpu{os.pathsep}{path}'
  named = os.environ.get(_PATHS, '')
  if entry not in named.split(','):
    os.environ[_PATHS] = f'{named},{entry}'.strip(',')


def _pick_any(num_processes: int | None) -> str:
  """An accelerator that works; the CPU, with a warning, if there is none."""
  plugins, reason = installed_plugins(), ''
  chosen = jax.config.jax_platforms  # By JAX_PLATFORMS.
  if chosen == 'cpu':
    found = _start_cpu()
  elif plugins and not chosen:
    if num_processes not in (None, 1):
      raise UserError(
        'runtime.backend must be named in a job of several processes where a '
        f'plugin for an accelerator is installed ({", ".join(plugins)}): what '
        'works could differ between them. Set runtime.backend to cpu, gpu, '
        'tpu or hpu.',
        argument='runtime.backend',
        given='auto',
      )
    reason = _try_plugins(plugins)
    found = _start_cpu() if reason else _default_name()
  else:
    found = _default_name()
  if found == 'cpu' and jax.process_index() == 0:
    logging.warning(
      'JAX finds no accelerator here%s; computing on the CPU (%d devices).',
      f' ({reason})' if reason else '',
      jax.device_count(),
    )
  return found


def _require(name: str) -> str:
  """The named backend, with the CPU beside it; raises if there is none."""
  if name == 'cpu':
    if _start_cpu() == 'cpu':
      return 'cpu'
    raise UserError(
      f'runtime.backend is cpu, but JAX already computes on {_devices()}.',
      argument='runtime.backend',
      given='cpu',
    )
  before, plugins = jax.config.jax_platforms, installed_plugins()
  listed, platform = ', '.join(plugins), name
  if name == 'gpu':
    platform = next((gpu for gpu in _GPUS if gpu in listed), _GPUS[0])
  # A list is no fallback: JAX fails where one of it does not start.
  jax.config.update('jax_platforms', f'{platform},cpu')
  try:
    jax.devices(name)
    if _default_name() == name:
      return name
    reason = 'it is not the first backend'
  except Exception as error:  # A plugin may raise anything.
    reason = _without_advice(str(error))
    _start_cpu()
  found = _devices()
  jax.config.update('jax_platforms', before)
  advice = '' if platform in listed else f' To use it, {_INSTALL[name]}.'
  raise UserError(
    f'runtime.backend is {name!r}, but JAX finds only {found}: {reason}. '
    f'Installed plugins: {listed or "none"}.{advice} Or set runtime.backend to '
    'auto.',
    argument='runtime.backend',
    given=name,
    wanted=plugins,
  )


def _default_name() -> str:
  """The name under which the backend in use was registered.

  `jax.default_backend` gives the name that the plugin has for itself.
  """
  default = jax_backend.get_backend()
  backends = jax_backend.backends()
  (name,) = (n for n, known in backends.items() if known is default)
  return 'gpu' if name in _GPUS else name


def _start_cpu() -> str:
  """Starts JAX on the CPU alone, without plugins; returns the backend in use.

  It is another one if JAX was started before. JAX loads plugins whatever the
  platform: one that hangs would hang the CPU too, one that fails would be
  logged with a traceback. There is no option against it (0.10), but JAX goes
  on, with a warning, where the import of a plugin fails, as Python makes it for
  None in `sys.modules`.
  """
  jax.config.update('jax_platforms', 'cpu')
  os.environ.pop(_PATHS, None)
  blocked = {x: None for x in _plugin_modules() if x not in sys.modules}
  sys.modules.update(blocked)
  before = logging.root.manager.disable
  logging.disable(logging.WARNING)
  try:
    return _default_name()
  finally:
    logging.disable(before)
    for module in blocked:
      del sys.modules[module]


def _try_plugins(plugins: list[str]) -> str:
  """Tries plugins in a process of its own; the failure, '' if one works."""
  names = ', '.join(plugins)
  try:
    done = subprocess.run(
      [sys.executable, '-c', _PROBE],
      env={**os.environ, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'},
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
  # Where JAX continues without a plugin, it may still have logged why.
  if done.returncode == 0 and 'plugin configuration error' not in done.stderr:
    return f'{names}: no device'
  lines = done.stderr.strip().splitlines() or ['no reason given']
  return f'{names}: {_without_advice(lines[-1])}'


def _without_advice(message: str) -> str:
  """An error of JAX without its hints, which are about other settings."""
  return re.sub(r' \((set|you may) .*\)$', '', message.strip()).rstrip('.')


def _devices() -> str:
  """Devices in use, for example `2 cpu (cpu)`."""
  devices = jax.devices()
  kinds = sorted({device.device_kind for device in devices})
  return f'{len(devices)} {devices[0].platform} ({", ".join(kinds)})'
