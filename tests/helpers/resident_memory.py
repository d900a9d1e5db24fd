"""Resident memory of a `predict` that runs in a process of its own."""

import json
import os
import subprocess
import sys

import drawn_checkpoint
import quick
import tiny_run

# Measures each time a method has been called so many times.
_SCRIPT = """
import importlib, json, os, sys
module, kind, method, every, *flags = sys.argv[1:]
kind = getattr(importlib.import_module(module), kind)
call, seen, count = getattr(kind, method), [], 0

def call_and_measure(self, *args):
  global count
  call(self, *args)
  count += 1
  if count % int(every) == 0:
    with open('/proc/self/statm') as file:
      seen.append(int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE'))

setattr(kind, method, call_and_measure)
from maskrcnn_jax.cli import main
assert main.main(['predict', *flags]) == 0
print(json.dumps(seen))
"""


def after_every(every, method, folder, images, *flags):
  """Bytes, each time so many more images are done.

  Args:
    every: number of images.
    method: called after each image: its module, class and name.
    folder: of the checkpoint, which is drawn, and of the output.
    images: value of `--images`.
    *flags: more of `predict`.
  """
  config = tiny_run.make_config('none', 'none')
  config.input.canvases, config.input.image_dtype = ((64, 96),), 'uint8'
  config.model.detections.max_detections = 20
  workdir = drawn_checkpoint.write(folder / 'run', config)
  argv = [*method, every, f'--workdir={workdir}', f'--output={folder}/out']
  done = subprocess.run(
    [sys.executable, '-c', _SCRIPT]
    + [str(word) for word in (*argv, f'--images={images}', *flags)],
    env={**os.environ, 'XLA_FLAGS': quick.xla_flags()},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(done.stdout.splitlines()[-1])
