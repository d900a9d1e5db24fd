"""Processes that do parts of an evaluation beside this one.

They are spawned, since threads of JAX and TensorFlow do not survive a fork, and
import neither: what is submitted must be a function of a module that does not.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import process
from multiprocessing import connection, context

# More would wait for this process, which hands out the work.
_MAX_DEFAULT = 8
# Starting processes takes as long as the work on so many images.
_WORTHWHILE_IMAGES = 100
_SECONDS_TO_END = 5


def default_count(num_images: int) -> int:
  """Processes for an evaluation: one per core, or 0 where it is over at once.

  Args:
    num_images: of the evaluation.
  """
  if num_images < _WORTHWHILE_IMAGES:
    return 0
  # The cores that this process may use, where the system can say so.
  affinity = getattr(os, 'sched_getaffinity', None)
  cores = len(affinity(0)) if affinity else os.cpu_count() or 1
  return min(cores, _MAX_DEFAULT)


class Processes:
  """Runs functions in other processes; a context manager.

  Work that is left when the block ends with an error, such as Ctrl-C, is
  dropped and its processes are ended. They end with this process, too, however
  it ends.
  """

  def __init__(self, count: int):
    """Starts nothing yet: a process starts when there is work for it.

    Args:
      count: the most processes; with 0 `submit` does the work itself.
    """
    self.count = count
    self._context = _Context()
    self._executor = None

  def submit(self, function: Callable, *args) -> concurrent.futures.Future:
    """The result to be, to be asked for with `wait`."""
    if not self.count:
      done = concurrent.futures.Future()
      done.set_result(function(*args))
      return done
    if self._executor is None:
      self._executor = concurrent.futures.ProcessPoolExecutor(
        self.count, self._context, _start
      )
    with self._explained():
      return self._executor.submit(function, *args)

  def wait(self, future: concurrent.futures.Future):
    """The result of what was submitted.

    Raises:
      RuntimeError: a process ended before its work was done.
    """
    with self._explained():
      return future.result()

  @contextlib.contextmanager
  def _explained(self):
    """Turns the end of a process into an error that says what to do."""
    try:
      yield
    except process.BrokenProcessPool as error:
      # All have ended then, and their exit codes are known.
      self._executor.shutdown()
      raise RuntimeError(
        f'A process that helps to evaluate has ended ({self._last_words()}). '
        'The system kills processes when memory runs out; a script that '
        "evaluates must do so under if __name__ == '__main__'. With "
        'evaluation.num_processes=0 there are no such processes.'
      ) from error

  def _last_words(self):
    """Exit codes of processes that nobody asked to end."""
    codes = {each.exitcode for each in self._context.started} - {None, 0}
    # With one of them gone the others get a SIGTERM.
    codes = codes - {-signal.SIGTERM} or codes
    words = [
      f'signal {-code}' if code < 0 else f'exit code {code}'
      for code in sorted(codes)
    ]
    return ', '.join(words) or 'exit code unknown'

  def __enter__(self):
    return self

  def __exit__(self, kind, *unused_error):
    if self._executor is None:
      return
    if kind is None:
      self._executor.shutdown()
      return
    self._executor.shutdown(wait=False, cancel_futures=True)
    # One that could not be started has no number.
    started = [each for each in self._context.started if each.pid]
    for each in started:
      each.kill()
    for each in started:
      each.join(_SECONDS_TO_END)


class _Context(context.SpawnContext):
  """Spawns processes and knows them, to end what hangs or has long to go."""

  def __init__(self):
    self.started = []

  def Process(self, *args, **kwargs):
    self.started.append(super().Process(*args, **kwargs))
    return self.started[-1]


def _start():
  """What a new process does first."""
  # Ctrl-C goes to all processes of a terminal; this one's parent ends it.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
  """Ends this process when its parent is gone, which no queue would tell."""
  connection.wait([multiprocessing.parent_process().sentinel])
  os._exit(1)
