"""SIGTERM, by which schedulers take a machine back: save, and end in peace."""

import contextlib
import signal
import threading

import jax

from maskrcnn_jax.distributed import collectives


class Stopped(SystemExit):
  """The run was asked to end, and its state is saved: exit code 0."""

  def __init__(self, message: str):
    super().__init__(0)
    self.message = message


class Termination:
  """Notices SIGTERM; a context manager.

  In a job of several processes JAX notices it in any of them and finds a step
  that all of them stop at.
  """

  def __init__(self):
    self._asked = self._may_end_at_once = False
    self._before = None

  def requested(self, step: int) -> bool:
    """Whether to save and end after this step; all processes ask."""
    if jax.process_count() == 1:
      return self._asked
    return collectives.preempted(step)

  @contextlib.contextmanager
  def at_once(self):
    """Where everything is saved, ends without waiting for the next step."""
    self._may_end_at_once = True
    try:
      if self._asked:
        self._end()
      yield
    finally:
      self._may_end_at_once = False

  def _note(self, *unused_signal):
    self._asked = True
    if self._may_end_at_once:
      self._end()

  def _end(self):
    raise Stopped('SIGTERM')

  def __enter__(self):
    is_main = threading.current_thread() is threading.main_thread()
    if jax.process_count() == 1 and is_main:
      self._before = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(self, *unused_error):
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)
