"""A run that is killed again and again ends in the bits of an undisturbed one.

`MASKRCNN_KILLS=20 python -m pytest tests/test_kills.py` kills it twenty times;
by default once.
"""

import json
import os
import random
import shutil
import signal
import time

import habana_runs
import psutil
import pytest
import tiny_run

from maskrcnn_jax.checkpoints import store

KILLS = int(os.environ.get('MASKRCNN_KILLS', '1'))
STEPS = max(30, 15 * KILLS)
MPIRUN = ['mpirun', '--allow-run-as-root', '--oversubscribe', '--bind-to']
MPIRUN += ['none', '--np', '2']


def victims(process):
  """The processes of a run that may be killed: all that run the script."""
  try:
    family = [process, *process.children(recursive=True)]
    return [
      each
      for each in family
      if str(habana_runs.SCRIPT) in each.cmdline() and each.name() != 'mpirun'
    ]
  except psutil.NoSuchProcess:
    return []


def kill_when(workdir, started, rng, wanted):
  """Kills one process of a run after some more checkpoints; True if it did."""
  family = psutil.Process(started.pid)
  while started.poll() is None:
    if (store.latest_step(workdir) or 0) >= wanted:
      time.sleep(rng.uniform(0.0, 0.4))
      found = victims(family)
      if found and started.poll() is None:
        rng.choice(found).send_signal(signal.SIGKILL)
        return True
    time.sleep(0.01)
  return False


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
def test_every_kill_is_survived_bit_by_bit(launcher, tmp_path):
  env = habana_runs.environment(tmp_path / 'programs')
  argv = [
    *habana_runs.data(tiny_run.write_dataset(tmp_path)),
    *habana_runs.scratch(),
    '--mode=train',
    '--noeval_after_training',
    '--train_batch_size=2',
    f'--total_steps={STEPS}',
    '--save_checkpoints_steps=5',
    '--warmup_steps=10',
    '--config.training.log_every_steps=1',
  ]
  habana_runs.execute([*argv, '--model_dir=whole'], tmp_path, env, 0, launcher)
  rng, workdir = random.Random(time.time_ns()), tmp_path / 'killed'
  killed_at = []
  while len(killed_at) < KILLS:
    # Spread over the run, and at least one checkpoint further every time.
    done = store.latest_step(workdir) or 0
    wanted = max(done + 5, STEPS * len(killed_at) // (KILLS + 1))
    started = habana_runs.start(
      [*argv, '--model_dir=killed'], tmp_path, env, launcher
    )
    killed = kill_when(workdir, started, rng, min(wanted, STEPS - 5))
    shown, _ = started.communicate(timeout=120)
    assert killed, shown[-3000:]
    assert started.returncode
    killed_at.append(store.latest_step(workdir))
  shown = habana_runs.execute(
    [*argv, '--model_dir=killed'], tmp_path, env, 0, launcher
  )
  assert 'continuing from step' in shown
  tiny_run.assert_same_end(tmp_path / 'whole', workdir)
  whole, disturbed = (
    tiny_run.lines(tmp_path / name, 'train/total_loss')
    for name in ('whole', 'killed')
  )
  assert disturbed == whole
  assert sorted(whole) == list(range(1, STEPS + 1))
  print(json.dumps({'killed after the checkpoints of steps': killed_at}))
