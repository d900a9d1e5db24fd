"""Worker processes that encode and score masks beside the main process.

They are spawned, since threads of JAX and TensorFlow do not survive a fork, and
load neither: what is submitted must be a function of a module that does not
import them.
"""

import concurrent.futures
import contextlib
import os
import signal
from collections.abc import Callable
from concurrent.futures import process
from multiprocessing import context

from maskrcnn_jax.datasets.workers import end_with_parent, uninterrupted
from maskrcnn_jax.errors import UserError

# More would wait for the main process, which hands out the work.
_MAX_DEFAULT = 8
# Starting workers takes as long as the work on this many images.
_WORTHWHILE_IMAGES = 100
_SECONDS_TO_END = 5


def default_count(num_images: int) -> int:
  """Number of workers: one per core up to 8; 0 for fewer than 100 images."""
  if num_images < _WORTHWHILE_IMAGES:
    return 0
  # The cores that this process may use, where the system can say so.
  affinity = getattr(os, 'sched_getaffinity', None)
  cores = len(affinity(0)) if affinity else os.cpu_count() or 1
  return min(cores, _MAX_DEFAULT)


class Workers:
  """Pool of worker processes, started when there is work; a context manager.

  If the block ends with an error, such as Ctrl-C, the workers are killed and
  the rest of their work is dropped. They also end with the main process, even
  if it is killed.
  """

  def __init__(self, count: int):
    """Takes the largest number of workers; with 0 `submit` does the work."""
    self.count = count
    self._context = _Context()
    self._executor = None

  def submit(self, function: Callable, *args) -> concurrent.futures.Future:
    """A future result, for `wait`."""
    if not self.count:
      done = concurrent.futures.Future()
      done.set_result(function(*args))
      return done
    if self._executor is None:
      self._executor = concurrent.futures.ProcessPoolExecutor(
        self.count, self._context, end_with_parent
      )
    with self._explained(), uninterrupted():
      return self._executor.submit(function, *args)

  def wait(self, future: concurrent.futures.Future):
    """The result of `submit`; a UserError if a worker ended before it."""
    with self._explained():
      return future.result()

  @contextlib.contextmanager
  def _explained(self):
    """Turns the end of a worker into an error that says what to do."""
    try:
      yield
    except process.BrokenProcessPool as error:
      # All workers have ended then, and their exit codes are known.
      self._executor.shutdown()
      reason = self._describe_exit()
      raise UserError(
        f'A worker process of the evaluation ended early ({reason}). The '
        'system kills processes when memory runs out; a script that evaluates '
        "must do so under if __name__ == '__main__'. "
        'evaluation.num_processes=0 evaluates without workers.',
        argument='evaluation.num_processes',
        given=reason,
        wanted=0,
      ) from error

  def _describe_exit(self):
    """Exit codes of workers that were not asked to end."""
    codes = {each.exitcode for each in self._context.started} - {None, 0}
    # When one ends, the executor sends a SIGTERM to the others.
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
    # One that could not be started has no process id.
    started = [each for each in self._context.started if each.pid]
    for each in started:
      each.kill()
    for each in started:
      each.join(_SECONDS_TO_END)


class _Context(context.SpawnContext):
  """Spawns processes and keeps them, so that they can be killed."""

  def __init__(self):
    self.started = []

  def Process(self, *args, **kwargs):
    self.started.append(super().Process(*args, **kwargs))
    return self.started[-1]
