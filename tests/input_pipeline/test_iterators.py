"""Open iterators do not keep the interpreter from exiting."""

import subprocess
import sys
import weakref

import example_records
import pytest

from maskrcnn_jax import input_pipeline
from maskrcnn_jax.input_pipeline import iterators

# Planning sleeps, so that the threads are in Python when the script ends.
SCRIPT = """
import sys, time
from maskrcnn_jax import input_pipeline
from maskrcnn_jax.input_pipeline import order
host_rows = order.host_rows
def plan_slowly(*arguments):
  time.sleep(float(sys.argv[2]))
  return host_rows(*arguments)
order.host_rows = plan_slowly
left_open = input_pipeline.train_batches(
  sys.argv[1], ((64, 96),), 2, num_threads=2, cache='nothing')
also_open = input_pipeline.eval_batches(sys.argv[1], ((64, 96),), 2)
next(left_open), next(also_open)
print('end of the script', flush=True)
"""


@pytest.fixture
def path(tmp_path):
  return example_records.write(tmp_path / 'a.tfrecord', [(40, 60)] * 6)


@pytest.mark.slow
@pytest.mark.parametrize(
  'seconds',
  [0, 0.1, *(pytest.param(x, marks=pytest.mark.long) for x in (0.02, 0.2))],
)
def test_a_script_ends_wherever_its_open_iterators_are(path, seconds):
  """Threads wait for work, or sleep; the long tests try two more moments."""
  # A hang runs into the time limit.
  done = subprocess.run(
    [sys.executable, '-c', SCRIPT, path, str(seconds)],
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == 'end of the script\n'
  assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_closed_iterators_end(path, monkeypatch):
  # Without those that other tests left open.
  monkeypatch.setattr(iterators, '_OPEN', weakref.WeakSet())
  options = {'canvases': ((64, 96),), 'batch_size': 2}
  train = input_pipeline.train_batches(path, **options)
  evaluation = input_pipeline.eval_batches(path, **options)
  next(train), next(evaluation)
  iterators.close_all()
  for iterator in (train, evaluation):
    with pytest.raises(StopIteration):
      next(iterator)
  # Others can be opened after that.
  assert len(list(input_pipeline.eval_batches(path, **options))) == 3
