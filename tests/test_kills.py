"""A run that is disturbed again and again ends in the bits of a quiet one.

MASKRCNN_KILLS=20 MASKRCNN_INTERRUPTS=5 python -m pytest -s tests/test_kills.py

kills it twenty times (`kill -9`) and presses Ctrl-C five times at random
moments, in one process and in two; by default it kills one process once.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import job_process
import psutil
import pytest
import tiny_run

from maskrcnn_jax.checkpoints import checksums, store, workdir_lock

KILLS = int(os.environ.get('MASKRCNN_KILLS', '1'))
INTERRUPTS = int(os.environ.get('MASKRCNN_INTERRUPTS', '0'))
STEPS = max(24, 12 * (KILLS + INTERRUPTS))
SAVED_EVERY = 3
MPIRUN = ['mpirun', '--allow-run-as-root', '--oversubscribe', '--bind-to']
MPIRUN += ['none', '--np', '2']

# Trains in each workdir.
TRAIN = """
import sys
from maskrcnn_jax.cli import main
config, *workdirs = sys.argv[1:]
for workdir in workdirs:
  argv = ['train', f'--config={config}', f'--workdir={workdir}']
  code = main.main(argv)
  if code:
    sys.exit(code)
"""


@pytest.fixture(scope='module')
def train(tmp_path_factory):
  """Starts a run; every program is compiled once."""
  folder = tmp_path_factory.mktemp('config')
  config = tiny_run.make_config(*tiny_run.write_dataset(folder))
  config.training.num_steps = STEPS
  config.training.checkpoint_every_steps = SAVED_EVERY
  config.runtime = {'backend': 'cpu', 'compilation_cache': str(folder / 'xla')}
  path = tiny_run.write_config(config, folder / 'tiny.py')

  started = []

  def start(launcher, *workdirs):
    started.append(
      subprocess.Popen(
        [*launcher, sys.executable, '-c', TRAIN, path, *workdirs],
        env=job_process.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
    )
    return started[-1]

  yield start
  for process in started:
    process.terminate()


def end(process):
  shown, _ = process.communicate(timeout=1800)
  return process.returncode, shown


def disturb(process, workdir, rng, wanted, number):
  """Sends a signal to a process of a run some time after a checkpoint."""
  family = psutil.Process(process.pid)
  while process.poll() is None:
    if (store.latest_step(workdir) or 0) >= wanted:
      time.sleep(rng.uniform(0.0, 0.3))
      found = [family, *family.children(recursive=True)]
      rng.choice([x for x in found if 'python' in x.name()]).send_signal(number)
      return
    time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize(
  'launcher',
  [
    pytest.param([], id='one-process'),
    pytest.param(
      MPIRUN,
      id='two-processes',
      marks=[
        pytest.mark.long,
        pytest.mark.skipif(not shutil.which('mpirun'), reason='needs Open MPI'),
      ],
    ),
  ],
)
def test_every_disturbance_is_survived_bit_by_bit(launcher, train, tmp_path):
  whole, disturbed = tmp_path / 'whole', tmp_path / 'disturbed'
  seed = time.time_ns()
  rng = random.Random(seed)
  signals = [signal.SIGKILL] * KILLS + [signal.SIGINT] * INTERRUPTS
  rng.shuffle(signals)
  ended_at = []
  for number in signals:
    # Spread over the run, and at least one checkpoint further every time.
    done = store.latest_step(disturbed) or 0
    wanted = max(done + 1, STEPS * len(ended_at) // (len(signals) + 1))
    process = train(launcher, disturbed)
    disturb(process, disturbed, rng, min(wanted, STEPS - 6), number)
    code, shown = end(process)
    ended_at.append([store.latest_step(disturbed), signal.Signals(number).name])
    assert ended_at[-1][0] < STEPS, (seed, shown[-3000:])
    assert (code == 0) == (number == signal.SIGINT), (seed, shown[-3000:])
    assert 'Traceback' not in shown or number == signal.SIGKILL, shown[-3000:]
  # The quiet run is one of the same process, except that a job has one run.
  runs = [[disturbed], [whole]] if launcher else [[disturbed, whole]]
  for number, workdirs in enumerate(runs):
    code, shown = end(train(launcher, *workdirs))
    assert code == 0, shown[-3000:]
    assert number or 'continuing from step' in shown, shown[-3000:]
  # Of parameters, statistics and momentum.
  tensors, ended = (
    checksums.read(w / 'checkpoints' / str(STEPS))['tensors']
    for w in (whole, disturbed)
  )
  assert ended == tensors
  tiny_run.assert_same_end(whole, disturbed)
  key = 'train/total_loss'
  expected = tiny_run.lines(whole, key)
  assert tiny_run.lines(disturbed, key) == expected
  assert sorted(expected) == list(range(1, STEPS + 1))
  assert not (disturbed / workdir_lock.FILE).exists()
  values = sum(map(len, expected.values()))
  print(json.dumps(ended_at), f'{len(tensors)} tensors, {values} values')
