"""Progress of downloads as lines of text, for terminals and log files."""

import sys
import threading
import time

_SECONDS_ON_TERMINAL, _SECONDS_IN_LOG = 0.5, 30


def size_text(count: float) -> str:
  """A number of bytes for people, such as `27.1 GB`."""
  for unit in ('bytes', 'kB', 'MB'):
    if abs(count) < 999.5:
      return f'{count:.3g} {unit}'
    count /= 1000
  return f'{count:.1f} GB'


class Progress:
  """Counts bytes from several threads and prints how far they are.

  On a terminal one line is written over and over; a log file gets a line every
  half minute.
  """

  def __init__(self, total: int | None, done: int = 0):
    """Starts the clock.

    Args:
      total: bytes that will be there in the end, None if that is not known.
      done: bytes that are there already.
    """
    self._total = total
    self._done = self._begin = done
    self._lock = threading.Lock()
    self._start = self._shown = time.monotonic()
    self._terminal = sys.stdout.isatty()
    self._wait = _SECONDS_ON_TERMINAL if self._terminal else _SECONDS_IN_LOG

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    if self._terminal:
      self._write('')

  def add(self, count: int) -> None:
    """Counts bytes; a negative number takes some back."""
    with self._lock:
      self._done += count
      now = time.monotonic()
      if now - self._shown < self._wait:
        return
      self._shown = now
      self._write(self._text(now), '' if self._terminal else '\n')

  def say(self, text: str) -> None:
    """Prints a line of its own."""
    with self._lock:
      self._write(text, '\n')

  def _text(self, now):
    rate = (self._done - self._begin) / max(now - self._start, 1e-3)
    if self._total is None:
      return f'{size_text(self._done)}, {size_text(rate)}/s'
    minutes = max(self._total - self._done, 0) / max(rate, 1) / 60
    return (
      f'{size_text(self._done)} of {size_text(self._total)}, '
      f'{size_text(rate)}/s, {minutes:.0f} min left'
    )

  def _write(self, text, end=''):
    # Back to the start of the line and clear it.
    sys.stdout.write(('\r\x1b[K' if self._terminal else '') + text + end)
    sys.stdout.flush()
