"""Memory of a CPU that one step frees, kept for the next one.

XLA allocates the temporaries of every step anew. glibc maps blocks of their
size when they are allocated, unmaps them when they are freed, and the kernel
fills every page with zeros again: 265,000 page faults for a step of one
image of 512x512.
"""

import ctypes
import os
import sys

import jax

# Parameters of glibc's mallopt, in malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1
# Who sets one of these, or one that starts so, has chosen.
_CHOICES = ('GLIBC_TUNABLES', 'LD_PRELOAD', 'MALLOC_')
_ASYNCHRONOUS = 'jax_cpu_enable_async_dispatch'


def run_in_calling_thread() -> None:
  """Makes a CPU run programs in the thread that calls them.

  Only the heap of the main thread can hold large blocks; those of other threads
  end at 64 MB. Has no effect once JAX has a CPU device, nor on several devices
  in a process, which need a thread each, nor where `keep_freed_memory` has
  none.
  """
  if _mallopt():
    jax.config.update(_ASYNCHRONOUS, False)


def keep_freed_memory() -> bool:
  """Makes glibc keep what this process frees; returns whether it does.

  To be called once a step is compiled: what the compiler has freed would stay
  too. Large blocks are then taken from the heap, which never shrinks, so the
  process keeps the memory of its largest step. Does nothing without
  `run_in_calling_thread`, on an accelerator, where the C library is another
  one, or where the environment has chosen an allocator or its settings.
  """
  if jax.config.values.get(_ASYNCHRONOUS, True):
    return False
  if jax.default_backend() != 'cpu' or not (mallopt := _mallopt()):
    return False
  return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))


def _mallopt():
  """The function of glibc, or None."""
  is_chosen = any(name.startswith(_CHOICES) for name in os.environ)
  if sys.platform != 'linux' or is_chosen:
    return None
  return getattr(ctypes.CDLL(None), 'mallopt', None)
