"""Termination: SIGTERM, by which schedulers end a job, or Ctrl-C ends a run."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax

from maskrcnn_jax.distributed import collectives

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
  """The run got SIGTERM or SIGINT, its `signal_name`; exit code 0."""

  def __init__(self, signal_name: str):
    super().__init__(0)
    self.signal_name = signal_name


class Termination:
  """Handler of SIGTERM and SIGINT; a context manager.

  The first signal lets the run save and end, a second one ends it at once. In a
  job of several processes JAX notices SIGTERM in any of them and finds a step
  that all of them stop at; SIGINT is passed on as SIGTERM.

  Attributes:
    name: of the signal.
  """

  def __init__(self):
    self.name, self._received = 'SIGTERM', False
    self._may_exit_now, self._before = False, {}

  def requested(self, step: int) -> bool:
    """Whether to save and end after this step; all processes must ask."""
    if jax.process_count() == 1:
      return self._received
    return collectives.preempted(step)

  @contextlib.contextmanager
  def exiting_at_once(self) -> Iterator[None]:
    """Exits at once on a signal; for phases in which everything is saved."""
    self._may_exit_now = jax.process_count() == 1
    try:
      if self._may_exit_now and self._received:
        raise Stopped(self.name)
      yield
    finally:
      self._may_exit_now = False

  def _handle(self, number: int, unused_frame) -> None:
    # Written without a lock that the interrupted code may hold.
    if self._received:
      os.write(2, b'A second signal: ending at once.\n')
      os._exit(128 + number)
    self._received, self.name = True, signal.Signals(number).name
    text = f'{self.name}: saving and ending; a second one ends at once.\n'
    os.write(2, text.encode())
    if jax.process_count() > 1:
      signal.raise_signal(signal.SIGTERM)
    elif self._may_exit_now:
      raise Stopped(self.name)

  def __enter__(self) -> 'Termination':
    if threading.current_thread() is threading.main_thread():
      for number in _SIGNALS[jax.process_count() > 1 :]:
        self._before[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *unused_error) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def deferred_signals() -> Iterator[None]:
  """Runs Python's handlers of SIGTERM and SIGINT after the block only.

  A handler that raises, as that of Ctrl-C does, would leave Orbax between two
  threads, and the process hanging at its end. Handlers that are not Python's
  stay, and so do that of `Termination` and those of other threads.
  """
  handlers, received = {}, []
  if threading.current_thread() is threading.main_thread():
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
  handlers = {
    number: handler
    for number, handler in handlers.items()
    if callable(handler)
    and not isinstance(getattr(handler, '__self__', None), Termination)
  }
  for number in handlers:
    signal.signal(number, lambda *arguments: received.append(arguments))
  try:
    yield
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)
    for number, frame in received:
      handlers[number](number, frame)
