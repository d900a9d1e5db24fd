"""Work in other processes, and how they end."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from maskrcnn_jax.evaluation import processes, run_lengths, scoring

ROOT = pathlib.Path(__file__).parents[2]
# What takes longer than this hangs.
PATIENCE = 60


@pytest.mark.parametrize('count', [0, 2])
def test_results_come_back(count):
  with processes.Processes(count) as workers:
    futures = [workers.submit(divmod, number, 7) for number in range(20)]
    assert [workers.wait(future) for future in futures] == [
      divmod(number, 7) for number in range(20)
    ]


def test_an_error_of_the_work_is_raised():
  with (
    processes.Processes(1) as workers,
    pytest.raises(ValueError, match='invalid literal for int'),
  ):
    workers.wait(workers.submit(int, 'seven'))


def test_helpers_do_not_import_jax():
  masks, boxes = np.ones((1, 28, 28)), np.array([[0, 0, 9, 9]])
  empty = {'images': [], 'annotations': [], 'categories': []}
  with processes.Processes(1) as workers:
    # What they are asked to do in an evaluation.
    workers.wait(
      workers.submit(run_lengths.encode_images, [masks], [boxes], [(9, 9)])
    )
    arguments = (empty, [], [], [], 'segm', 'pycocotools')
    workers.wait(workers.submit(scoring.make_tables, *arguments))
    names = workers.submit(eval, "[*__import__('sys').modules]")
    tops = {name.partition('.')[0] for name in workers.wait(names)}
  assert 'numpy' in tops
  assert not tops & {'jax', 'jaxlib', 'flax', 'tensorflow'}


def test_a_process_that_dies_is_an_error():
  start = time.monotonic()
  # More than a pipe holds, so that some of it waits to be written.
  load = np.zeros(1_000_000)
  with (
    pytest.raises(
      RuntimeError, match=r'has ended \(signal 9\).*num_processes=0'
    ),
    processes.Processes(2) as workers,
  ):
    futures = [workers.submit(np.sum, load) for _ in range(5)]
    futures.append(workers.submit(os.kill, _pid(workers), signal.SIGKILL))
    futures += [workers.submit(np.sum, load) for _ in range(5)]
    for future in futures:
      workers.wait(future)
  assert time.monotonic() - start < PATIENCE
  assert not _helpers(os.getpid())


def test_a_helper_that_dies_later_is_an_error_of_the_next_work():
  with (
    pytest.raises(RuntimeError, match='has ended'),
    processes.Processes(1) as workers,
  ):
    os.kill(_pid(workers), signal.SIGKILL)
    for _ in range(PATIENCE):
      workers.wait(workers.submit(int, '7'))
      time.sleep(1)


def test_an_error_drops_the_work_that_is_left():
  start = time.monotonic()
  with pytest.raises(KeyError), processes.Processes(2) as workers:
    assert psutil.pid_exists(_pid(workers))
    for _ in range(5):
      workers.submit(time.sleep, PATIENCE)
    raise KeyError
  assert time.monotonic() - start < PATIENCE / 2
  assert not _helpers(os.getpid())


def _pid(workers):
  return workers.wait(workers.submit(os.getpid))


def _helpers(pid):
  """Processes that a process spawned, but for the one that tracks memory."""
  return [
    child
    for child in psutil.Process(pid).children()
    if 'spawn_main' in ' '.join(child.cmdline())
  ]


# Both have started: Python has words of its own for Ctrl-C before that.
SLEEPERS = """
import os, time
from maskrcnn_jax.evaluation import processes
with processes.Processes(2) as workers:
  started = set()
  while len(started) < 2:
    answers = [workers.submit(os.getpid) for _ in range(4)]
    started.update(workers.wait(answer) for answer in answers)
  futures = [workers.submit(time.sleep, 600) for _ in range(4)]
  print('asleep', flush=True)
  workers.wait(futures[0])
"""


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_helpers_end_with_their_parent(number):
  parent = subprocess.Popen(
    [sys.executable, '-c', SLEEPERS],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  assert parent.stdout.readline() == 'asleep\n'
  helpers = _helpers(parent.pid)
  assert helpers
  if number == signal.SIGINT:
    os.killpg(parent.pid, number)  # As a terminal does for Ctrl-C.
  else:
    parent.kill()
  _, errors = parent.communicate(timeout=PATIENCE)
  _, alive = psutil.wait_procs(helpers, timeout=PATIENCE)
  assert not alive
  if number == signal.SIGINT:
    assert parent.returncode == -signal.SIGINT
    # One traceback, that of the parent.
    assert errors.count('Traceback') == 1
    assert errors.rstrip().endswith('KeyboardInterrupt')


def test_the_number_of_processes_by_default(monkeypatch):
  assert processes.default_count(3) == 0
  for cores, expected in ((1, 1), (4, 4), (64, 8)):
    monkeypatch.setattr(
      os, 'sched_getaffinity', lambda pid, n=cores: range(n), raising=False
    )
    assert processes.default_count(5000) == expected
