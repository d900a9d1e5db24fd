"""Worker processes over the images of a data set, results in order."""

import collections
import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import process
from multiprocessing import connection
from typing import Any

from maskrcnn_jax.datasets import images
from maskrcnn_jax.errors import UserError, brief

_CHUNK = 8  # Images a worker takes at a time.
# Images that take about as long as a worker takes to import TensorFlow.
_WORTH_A_WORKER = 64
_IN_FLIGHT_PER_WORKER = 4  # Chunks, so that memory stays bounded.


def map_images(
  function: Callable,
  tasks: Iterable[tuple],
  total: int,
  num_workers: int | None = None,
) -> Iterator[Any]:
  """Yields the result of every task in order, with a progress bar.

  Args:
    function: called with the arguments in a task; must be picklable.
    tasks: one per image.
    total: number of tasks.
    num_workers: processes; by default one per core, or per 64 images where
      those are fewer. With 1, or few images, everything runs in this process.

  Raises:
    UserError: a worker process died; `item` is the image, if it dies again.
  """
  import tqdm

  useful = -(-total // (_CHUNK if num_workers else _WORTH_A_WORKER))
  num_workers = min(num_workers or os.cpu_count() or 1, useful)
  chunks = _run_chunks(function, iter(tasks), num_workers)
  with tqdm.tqdm(total=total, unit='image', disable=None) as bar:
    for chunk in chunks:
      for result in chunk:
        bar.update()
        yield result


def _call_all(function, tasks):
  return [function(*task) for task in tasks]


def _run_chunks(function, tasks, num_workers):
  """Results of chunks of tasks in their order, a bounded number ahead."""
  chunks = iter(lambda: list(itertools.islice(tasks, _CHUNK)), [])
  if num_workers <= 1:
    yield from (_call_all(function, chunk) for chunk in chunks)
    return
  waiting = collections.deque()
  with _start(num_workers) as pool:
    try:
      for chunk in itertools.chain(chunks, itertools.repeat(None)):
        if chunk:
          with uninterrupted():
            task = pool.submit(_call_all, function, chunk)
          waiting.append((chunk, task))
        elif not waiting:
          return
        if not chunk or len(waiting) >= num_workers * _IN_FLIGHT_PER_WORKER:
          yield waiting[0][1].result()
          waiting.popleft()
    except (process.BrokenProcessPool, RecursionError):
      suspects = [task for chunk, _ in waiting for task in chunk]
    except BaseException:  # Such as Ctrl-C.
      pool.shutdown(wait=False, cancel_futures=True)
      raise
  raise _find_killer(function, suspects)


def _start(num_workers) -> process.ProcessPoolExecutor:
  # TensorFlow's threads do not survive a fork.
  context = multiprocessing.get_context('spawn')
  return process.ProcessPoolExecutor(
    num_workers,
    mp_context=context,
    initializer=_start_worker,
    initargs=[images.max_pixels()],
  )


def _start_worker(max_pixels):
  end_with_parent()
  images.set_max_pixels(max_pixels)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
  """Delays Ctrl-C; processes that start in the block never notice it.

  It reaches all processes of a terminal, of which the main one ends the others.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
  """Makes this worker process end with the main one, even if that is killed."""

  def watch():
    # No queue would report it.
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _find_killer(function, tasks) -> UserError:
  """The error that names the image at which a worker process dies."""
  reason = 'A worker process died; is there too little memory? One of'
  with _start(1) as pool:
    for task in tasks:
      try:
        pool.submit(function, *task).result()
      except process.BrokenProcessPool:
        tasks, reason = [task], 'A worker process dies of'
        break
      except RecursionError:  # Of pickle.
        tasks, reason = [task], 'Labels are nested too deeply of'
        break
  names = [str(getattr(task[0], 'file_name', task[0])) for task in tasks]
  shown = ', '.join(map(brief, names[:3]))
  return UserError(f'{reason} the image {shown}.', item=names[0])
