"""Worker processes: results, errors, and the ways they end."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import mask_pasting, scoring
from maskrcnn_jax.evaluation.workers import Workers, default_count

ROOT = pathlib.Path(__file__).parents[2]
# Seconds; what takes longer hangs.
PATIENCE = 60


@pytest.mark.parametrize('count', [0, 2])
def test_results_come_back(count):
  with Workers(count) as workers:
    futures = [workers.submit(divmod, number, 7) for number in range(20)]
    assert [workers.wait(future) for future in futures] == [
      divmod(number, 7) for number in range(20)
    ]


def test_an_error_of_the_work_is_raised():
  with Workers(1) as workers, pytest.raises(ZeroDivisionError):
    workers.wait(workers.submit(divmod, 1, 0))


def test_workers_do_not_import_jax():
  image = np.ones((1, 28, 28)), np.array([[0, 0, 9, 9]]), (9, 9)
  empty = {'images': [], 'annotations': [], 'categories': []}
  with Workers(1) as workers:
    # All that an evaluation submits.
    workers.wait(workers.submit(mask_pasting.encode_images, [image]))
    arguments = (empty, [], [], [], 'segm', 'pycocotools')
    workers.wait(workers.submit(scoring.make_tables, *arguments))
    names = workers.submit(eval, "[*__import__('sys').modules]")
    tops = {name.partition('.')[0] for name in workers.wait(names)}
  assert 'numpy' in tops
  assert not tops & {'jax', 'jaxlib', 'flax', 'tensorflow'}


def test_a_worker_that_dies_is_an_error():
  start = time.monotonic()
  # More than a pipe holds, so that some of it waits to be written.
  load = np.zeros(1_000_000)
  with pytest.raises(UserError) as error, Workers(2) as workers:
    futures = [workers.submit(np.sum, load) for _ in range(5)]
    futures.append(workers.submit(os.kill, _pid(workers), signal.SIGKILL))
    futures += [workers.submit(np.sum, load) for _ in range(5)]
    for future in futures:
      workers.wait(future)
  assert error.value.argument == 'evaluation.num_processes'
  assert error.value.given == f'signal {signal.SIGKILL:d}'
  assert time.monotonic() - start < PATIENCE
  assert not _spawned(os.getpid())


def test_a_worker_that_dies_later_is_an_error_of_the_next_work():
  with pytest.raises(UserError), Workers(1) as workers:
    os.kill(_pid(workers), signal.SIGKILL)
    for _ in range(PATIENCE):
      workers.wait(workers.submit(int, '7'))
      time.sleep(1)


def test_an_error_drops_the_work_that_is_left():
  start = time.monotonic()
  with pytest.raises(KeyError), Workers(2) as workers:
    assert psutil.pid_exists(_pid(workers))
    for _ in range(5):
      workers.submit(time.sleep, PATIENCE)
    raise KeyError
  assert time.monotonic() - start < PATIENCE / 2
  assert not _spawned(os.getpid())


def _pid(workers):
  return workers.wait(workers.submit(os.getpid))


def _spawned(pid):
  """Processes that a process spawned, but for the one that tracks memory."""
  return [
    child
    for child in psutil.Process(pid).children()
    if 'spawn_main' in ' '.join(child.cmdline())
  ]


# Sleeps when both have started: Ctrl-C before that has other tracebacks.
SLEEPERS = """
import os, time
from maskrcnn_jax.evaluation.workers import Workers
with Workers(2) as workers:
  started = set()
  while len(started) < 2:
    answers = [workers.submit(os.getpid) for _ in range(4)]
    started.update(workers.wait(answer) for answer in answers)
  futures = [workers.submit(time.sleep, 600) for _ in range(4)]
  print('asleep', flush=True)
  workers.wait(futures[0])
"""


# Those of a data set.
OTHERS = """
from maskrcnn_jax.datasets import workers
task = ('print("asleep", flush=True); import time; time.sleep(600)',)
if __name__ == '__main__':
  list(workers.map_images(exec, [task] * 64, 64, 2))
"""


@pytest.mark.parametrize(
  'script, number',
  [
    (SLEEPERS, signal.SIGINT),
    (SLEEPERS, signal.SIGKILL),
    (OTHERS, signal.SIGTERM),
  ],
)
def test_workers_end_with_their_parent(script, number):
  parent = subprocess.Popen(
    [sys.executable, '-c', script],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  # Two workers may have written before the first line ends.
  assert parent.stdout.readline().startswith('asleep')
  spawned = _spawned(parent.pid)
  assert spawned
  if number == signal.SIGINT:
    os.killpg(parent.pid, number)  # As a terminal does for Ctrl-C.
  else:
    parent.kill()
  _, errors = parent.communicate(timeout=PATIENCE)
  _, alive = psutil.wait_procs(spawned, timeout=PATIENCE)
  assert not alive
  if number == signal.SIGINT:
    assert parent.returncode == -signal.SIGINT
    # One traceback, of the parent.
    assert errors.count('Traceback') == 1
    assert errors.rstrip().endswith('KeyboardInterrupt')


def test_the_number_of_processes_by_default(monkeypatch):
  assert default_count(3) == 0
  for cores, expected in ((1, 1), (4, 4), (64, 8)):
    monkeypatch.setattr(
      os, 'sched_getaffinity', lambda pid, n=cores: range(n), raising=False
    )
    assert default_count(5000) == expected
