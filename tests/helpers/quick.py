"""Short compilation, for programs that tests run a few times."""

import contextlib
import functools

import jax

_jit = jax.jit  # Tests may put `jit` of this file in its place.
_OPTIONS = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
  # The older way to compile fused loops takes half the time, if they are not
  # optimised. Numbers that are held to recorded ones are computed in neither.
  'xla_cpu_use_fusion_emitters': False,
}


@functools.cache
def options():
  """`compiler_options` for `jax.jit`: those that this XLA has."""
  known = {}
  for name, value in _OPTIONS.items():
    try:
      _jit(lambda: 0, compiler_options={name: value})()
    except jax.errors.JaxRuntimeError:
      continue
    known[name] = value
  return known


def jit(function, compiler_options=None, **more):
  """`jax.jit` that compiles quickly to a slower program."""
  chosen = compiler_options or options()
  return _jit(function, compiler_options=chosen, **more)


@contextlib.contextmanager
def compilation():
  """Quick compilation of everything in this process, as a context.

  Except for the fusion emitters, which are fixed when a process starts.
  """
  name = 'jax_disable_most_optimizations'
  before = jax.config.values[name]
  jax.config.update(name, True)
  try:
    yield
  finally:
    jax.config.update(name, before)


def xla_flags(num_devices=None):
  """`XLA_FLAGS` of a process that compiles quickly, with some CPU devices."""
  flags = [f'--{name}={str(x).lower()}' for name, x in options().items()]
  if num_devices:
    flags.append(f'--xla_force_host_platform_device_count={num_devices}')
  return ' '.join(flags)


if __name__ == '__main__':
  print(xla_flags())
