"""Signals wait until a save is handed over.

A handler that raises (as that of the command does, for SIGTERM) would leave
Orbax between two threads, and the process hanging at its end.
"""

import contextlib
import signal
import threading

_DEFERRED = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def deferred():
  """Calls Python's handlers of SIGTERM and SIGINT after the block only.

  Handlers that are not Python's, such as the default one, cannot raise and stay
  as they are; so does everything in other threads than the main one.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  came = []
  handlers = {number: signal.getsignal(number) for number in _DEFERRED}
  handlers = {
    n: handler for n, handler in handlers.items() if callable(handler)
  }
  for number in handlers:
    signal.signal(number, lambda *arguments: came.append(arguments))
  try:
    yield
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)
    for number, frame in came:
      handlers[number](number, frame)
