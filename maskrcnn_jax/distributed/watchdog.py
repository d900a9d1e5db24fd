"""Ends a job that does not get on, and says where each process of it stood.

A collective that does not return raises nothing: devices wait for a process
that reads from a dead disk, runs another program, or was stopped. JAX sees only
processes that are gone.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from maskrcnn_jax.distributed import roll_call
from maskrcnn_jax.errors import UserError

# For the watchdogs of the other processes, which started their clocks in
# another moment, to say where they are.
_ANSWER_SECONDS = 15
_HESITATION_SECONDS = 3
_EXIT_CODE = 3


class Watchdog:
  """A thread that ends the process when it is not fed in time."""

  def __init__(
    self,
    seconds: float,
    answer_seconds: float = _ANSWER_SECONDS,
    end: Callable[[int], None] = os._exit,
  ):
    """Starts nothing yet; see `__enter__`.

    Args:
      seconds: without progress, until the job is ended; 0: never.
      answer_seconds: to wait for other processes to say where they are.
      end: ends the process, given an exit code; an ordinary exit would wait
        for the other processes.

    Raises:
      ValueError: seconds is negative.
    """
    if seconds < 0:
      raise UserError(
        f'runtime.watchdog_seconds must not be negative, got {seconds}.'
      )
    self._seconds = seconds
    self._answer_seconds = answer_seconds
    self._end = end
    self._doing, self._fed = 'starting', time.monotonic()
    self._pauses = 0
    self._stopped = threading.Event()
    self._thread = threading.Thread(
      target=self._watch, name='watchdog', daemon=True
    )

  def __enter__(self) -> 'Watchdog':
    if self._seconds:
      self._fed = time.monotonic()
      self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    self._stopped.set()
    if self._thread.is_alive():
      self._thread.join()

  def feed(self, doing: str) -> None:
    """Tells of progress.

    Args:
      doing: what is begun, such as `step 12: reading`.
    """
    self._doing, self._fed = doing, time.monotonic()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """For what takes long and cannot hang, such as compiling."""
    self._pauses += 1
    try:
      yield
    finally:
      self._fed = time.monotonic()
      self._pauses -= 1

  def _watch(self) -> None:
    while not self._stopped.wait(min(1.0, self._seconds / 4)):
      late = time.monotonic() - self._fed - self._seconds
      if late > 0 and not self._pauses:
        self._report()
        self._end(_EXIT_CODE)
        return

  def _report(self) -> None:
    waited = f'{self._doing} for {time.monotonic() - self._fed:.0f} s'
    lines = roll_call.call(waited, self._answer_seconds)
    lines = lines or [f'process 0, alone: {waited}']
    stderr = sys.__stderr__
    print(
      f'No progress within runtime.watchdog_seconds, {self._seconds:g} s. '
      'Where each process is:',
      *lines,
      'What this one does:',
      sep='\n',
      file=stderr,
      flush=True,
    )
    faulthandler.dump_traceback(stderr, all_threads=True)
    stderr.flush()
    # The first one to end ends the others, which have something to say too.
    if len(lines) > 1:
      time.sleep(_HESITATION_SECONDS)
