"""Termination: SIGTERM, by which schedulers end a job, saves and ends a run."""

import contextlib
import signal
import threading

import jax

from maskrcnn_jax.distributed import collectives


class Stopped(SystemExit):
  """The run got SIGTERM, and its state is saved: exit code 0."""

  def __init__(self, message: str):
    super().__init__(0)
    self.message = message


class Termination:
  """Handler of SIGTERM; a context manager.

  In a job of several processes JAX notices the signal in any of them and finds
  a step that all of them stop at.
  """

  def __init__(self):
    self._requested = self._may_exit_now = False
    self._handler_before = None

  def requested(self, step: int) -> bool:
    """Whether to save and end after this step; all processes must ask."""
    if jax.process_count() == 1:
      return self._requested
    return collectives.preempted(step)

  @contextlib.contextmanager
  def exiting_at_once(self):
    """Exits at once on SIGTERM; for phases in which everything is saved."""
    self._may_exit_now = True
    try:
      if self._requested:
        raise Stopped('SIGTERM')
      yield
    finally:
      self._may_exit_now = False

  def _handle(self, *unused_signal):
    self._requested = True
    if self._may_exit_now:
      raise Stopped('SIGTERM')

  def __enter__(self):
    is_main = threading.current_thread() is threading.main_thread()
    if jax.process_count() == 1 and is_main:
      self._handler_before = signal.signal(signal.SIGTERM, self._handle)
    return self

  def __exit__(self, *unused_error):
    if self._handler_before is not None:
      signal.signal(signal.SIGTERM, self._handler_before)
