"""Worker processes over the images of a data set, results in order."""

import collections
import concurrent.futures
import functools
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_CHUNK = 8  # Images a worker takes at a time.
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
    num_workers: processes; by default one per core. With 1, or few images,
      everything runs in this process.
  """
  import tqdm

  num_workers = min(num_workers or os.cpu_count() or 1, -(-total // _CHUNK))
  call = functools.partial(_call_all, function)
  chunks = _run_chunks(call, iter(tasks), num_workers)
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
    yield from map(function, chunks)
    return
  # TensorFlow's threads do not survive a fork.
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(
    num_workers, mp_context=context
  ) as pool:
    waiting = collections.deque()
    for chunk in chunks:
      waiting.append(pool.submit(function, chunk))
      if len(waiting) >= num_workers * _IN_FLIGHT_PER_WORKER:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
