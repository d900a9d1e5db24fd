"""Trains a tiny model two steps and packs its workdir; see README.md."""

import pathlib
import sys
import tarfile
import tempfile

import tiny_run

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.training import loop

output = pathlib.Path(sys.argv[1]).absolute()
folder = pathlib.Path(tempfile.mkdtemp())
# All fields of the shipped config, at the size of the tiny one.
config = config_lib.load_config('coco')
tiny = tiny_run.make_config(*tiny_run.write_dataset(folder))
with config.unlocked():
  config.update(tiny)
  config.model.head_norm.kind = 'group'
  config.training.pretrained = None
  config.training.num_steps = 2
  config.evaluation.every_steps = 0
  config.optimizer.tuned_batch_size = config.input.batch_size = 2
  config.runtime = {'backend': 'cpu'}
loop.train(config, folder / 'run')
with tarfile.open(output, 'w:gz') as archive:
  for name in ('config.json', 'metrics.jsonl', 'checkpoints'):
    archive.add(folder / 'run' / name, name)
