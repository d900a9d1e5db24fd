"""The demo's training passes the end of its warm-up."""

import json
import sys

import pytest
from job_process import ROOT, command, execute


@pytest.mark.slow
def test_the_highest_learning_rate_does_not_diverge(tmp_path):
  # The rate is highest from step 200 on, where training diverged from some
  # random seeds when it was 0.08.
  shapes, workdir = tmp_path / 'shapes', tmp_path / 'run'
  draw = (sys.executable, ROOT / 'data/shapes/shapes.py', '--output', shapes)
  drawn = execute([*draw, '--train', '1600', '--val', '1'])
  assert drawn.returncode == 0, drawn.stderr
  flags = (
    f'--config.input.file_pattern={shapes}:train',
    '--config.training.num_steps=240',
    '--config.training.checkpoint_every_steps=240',
  )
  done = execute(
    command('train', 'shapes', workdir, *flags), cwd=ROOT, XLA_FLAGS=''
  )
  assert done.returncode == 0, done.stderr
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  losses = [json.loads(line)['train/total_loss'] for line in lines]
  assert len(losses) == 12 and max(losses[1:]) < 4
  assert 'spike' not in done.stdout + done.stderr
