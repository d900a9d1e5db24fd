"""A workdir from a stranger: no path or URL in its config is followed."""

import json
import os
import subprocess
import sys

import drawn_checkpoint
import numpy as np
import pytest
import quick
import tiny_run
from PIL import Image

# Planted in every field that names a path, a URL or a plugin.
_FIELDS = (
  *('input.file_pattern', 'input.cache', 'evaluation.file_pattern'),
  *('evaluation.annotations_file', 'training.pretrained', 'training.log_file'),
  *('runtime.compilation_cache', 'runtime.plugin_path'),
  'runtime.coordinator_address',
)
_SCRIPT = """
import json, sys
planted, workdir, image, output, config, tuning = sys.argv[1:]
seen = []

def watch(event, args):
  if event != 'compile' and any('planted' in str(x) for x in args):
    seen.append([event, *map(str, args)])

sys.addaudithook(watch)
open(planted + '/bait').close()  # The hook sees this one.
from maskrcnn_jax.cli import main
source = f'--workdir={workdir}'
codes = [
  main.main(['predict', source, f'--output={output}/found', '--images', image]),
  main.main(['export', source, f'--output={output}/exported']),
  main.main(['export_weights', f'--checkpoint={workdir}',
             f'--output={output}/w.npz']),
  main.main(['eval', config, f'--workdir={output}/eval',
             f'--checkpoint={workdir}']),
  main.main(['train', tuning, f'--workdir={output}/tuned']),
  main.main(['eval', config, source]),
]
import jax
print(json.dumps([codes, seen, jax.config.jax_compilation_cache_dir]))
"""


@pytest.mark.slow
def test_no_verb_follows_a_path_of_the_config(tmp_path):
  planted = tmp_path / 'planted'
  planted.mkdir()
  (planted / 'bait').touch()
  config = tiny_run.make_config(*tiny_run.write_dataset(tmp_path)).unlock()
  config.input.canvases = ((64, 96),)
  config.training.num_steps = 1
  config.runtime = {}
  own = tiny_run.write_config(config, tmp_path / 'own.py')
  config.training.pretrained = str(tmp_path / 'run')
  tuning = tiny_run.write_config(config, tmp_path / 'tuning.py')
  for number, field in enumerate(_FIELDS):
    section, name = field.split('.')
    value = str(planted / 'bait') if number % 2 else 'http://planted.invalid/x'
    config[section][name] = value
  config.runtime.compilation_cache = str(planted)
  classes = {1: 'disc', 2: 'star'}
  workdir = drawn_checkpoint.write(tmp_path / 'run', config, classes=classes)
  image = tmp_path / 'image.png'
  Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(image)
  environment = {**os.environ, 'HOME': str(tmp_path / 'home')}
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
  argv = [planted, workdir, image, tmp_path]
  argv += [f'--config={own}', f'--config={tuning}']
  done = subprocess.run(
    [sys.executable, '-c', _SCRIPT, *argv],
    env={
      **environment,
      'XLA_FLAGS': quick.xla_flags(),
      'JAX_DISABLE_MOST_OPTIMIZATIONS': 'True',
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  codes, seen, cache = json.loads(done.stdout.splitlines()[-1])
  assert codes == [0] * 6, done.stderr[-4000:]
  assert [event for event, *_ in seen] == ['open']  # The bait alone.
  assert 'planted' not in cache
  assert [path.name for path in planted.iterdir()] == ['bait']
