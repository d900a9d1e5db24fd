"""Watchdog: aborts a job that makes no progress; reports where each process is.

A collective that does not return raises nothing: devices wait for a process
that reads from a dead disk, runs another program, or was stopped. JAX notices
only processes that are gone.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from maskrcnn_jax.distributed import collectives
from maskrcnn_jax.errors import invalid

# For the watchdogs of the other processes, whose clocks started at another
# moment, to report where they are.
_ANSWER_SECONDS = 15
_DELAY_SECONDS = 3
_EXIT_CODE = 3


class Watchdog:
  """A thread that ends the process when no heartbeat comes in time."""

  def __init__(
    self,
    seconds: float,
    answer_seconds: float = _ANSWER_SECONDS,
    end: Callable[[int], None] = os._exit,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts nothing yet; see `__enter__`.

    Args:
      seconds: without a heartbeat, until the job is aborted; 0: never.
      answer_seconds: to wait for other processes to report where they are.
      end: ends the process, given an exit code; an ordinary exit would wait
        for the other processes.

    Raises:
      UserError: seconds is negative.
    """
    if seconds < 0:
      raise invalid('runtime.watchdog_seconds', seconds, 'at least 0')
    self._seconds = seconds
    self._answer_seconds = answer_seconds
    self._end, self._clock = end, clock
    self._status, self._last_beat, self._pauses = 'starting', clock(), 0
    self._stopped = threading.Event()
    self._thread = threading.Thread(
      target=self._watch, name='watchdog', daemon=True
    )

  def __enter__(self) -> 'Watchdog':
    if self._seconds:
      self._last_beat = self._clock()
      self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    self._stopped.set()
    if self._thread.is_alive():
      self._thread.join()

  def heartbeat(self, status: str) -> None:
    """Reports what begins now, such as `step 12: reading`."""
    self._status, self._last_beat = status, self._clock()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Stops the clock for slow work that cannot hang, such as compiling."""
    self._pauses += 1
    try:
      yield
    finally:
      self._last_beat = self._clock()
      self._pauses -= 1

  def _watch(self) -> None:
    while not self._stopped.wait(min(1.0, self._seconds / 4)):
      late = self._clock() - self._last_beat - self._seconds
      if late > 0 and not self._pauses:
        self._report()
        self._end(_EXIT_CODE)
        return

  def _report(self) -> None:
    waited = f'{self._status} for {self._clock() - self._last_beat:.0f} s'
    lines = collectives.all_statuses(waited, self._answer_seconds)
    lines = lines or [f'process 0, alone: {waited}']
    stderr = sys.__stderr__
    print(
      f'No progress within runtime.watchdog_seconds, {self._seconds:g} s. '
      'Where each process is:',
      *lines,
      'Stack of this one:',
      sep='\n',
      file=stderr,
      flush=True,
    )
    faulthandler.dump_traceback(stderr, all_threads=True)
    stderr.flush()
    # The first process to end ends the others, which report too.
    if len(lines) > 1:
      time.sleep(_DELAY_SECONDS)


def config_watchdog(config) -> Watchdog:
  """The watchdog of a run, see `runtime.watchdog_seconds`."""
  return Watchdog(config.get('runtime', {}).get('watchdog_seconds', 0))
