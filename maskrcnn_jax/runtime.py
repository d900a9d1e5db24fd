"""Picks the backend and the compilation cache, before any array is made."""

import logging
import pathlib

import jax

BACKENDS = ('auto', 'cpu', 'gpu', 'tpu', 'hpu')

# What brings each backend; JAX finds an installed one by itself.
_INSTALL = {
  'gpu': 'pip install "maskrcnn-jax[cuda]"',
  'tpu': 'pip install "maskrcnn-jax[tpu]"',
  'hpu': "install Intel Gaudi's JAX plugin",
}


def pick_backend(name: str = 'auto') -> str:
  """Makes JAX compute on a backend, and says which one.

  Args:
    name: `auto` takes the accelerator that JAX finds, and the CPU with a
      warning where there is none; every other name insists on that backend.

  Returns:
    The name of the backend in use, for example `cpu`.

  Raises:
    ValueError: the name is unknown or there is no such backend.
  """
  if name not in BACKENDS:
    raise ValueError(
      f'runtime.backend must be one of {", ".join(BACKENDS)}, got {name!r}.'
    )
  if name == 'cpu':  # Leaves an accelerator to others.
    jax.config.update('jax_platforms', 'cpu')
  found = jax.default_backend()
  if name == 'auto' and found == 'cpu':
    logging.warning(
      'JAX finds no accelerator here; computing on the CPU (%d devices).',
      jax.device_count(),
    )
  if name not in ('auto', found):
    raise ValueError(
      f'runtime.backend is {name!r}, but JAX finds only {_found()}.'
      + (f' To use it, {_INSTALL[name]}.' if name in _INSTALL else '')
      + ' Or set runtime.backend to auto.'
    )
  return found


def enable_compilation_cache(folder: str) -> None:
  """Keeps compiled programs, so that the next start does not compile again.

  A cache that is already set, as by `JAX_COMPILATION_CACHE_DIR`, stays.

  Args:
    folder: where to keep them; `~` is the home directory, '' keeps nothing.
  """
  if not folder or jax.config.jax_compilation_cache_dir:
    return
  path = pathlib.Path(folder).expanduser()
  jax.config.update('jax_compilation_cache_dir', str(path))


def _found() -> str:
  """Devices in words, for example `2 cpu (cpu)`."""
  devices = jax.devices()
  kinds = sorted({device.device_kind for device in devices})
  return f'{len(devices)} {devices[0].platform} ({", ".join(kinds)})'
