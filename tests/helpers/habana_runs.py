"""Runs of launch/mask_rcnn_main.py as processes, on a model of seconds."""

import contextlib
import json
import pathlib
import re
import subprocess
import sys

import job_process
import tensorflow_checkpoint

from maskrcnn_jax.habana import command as habana
from maskrcnn_jax.habana import flags as habana_flags

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / 'launch' / 'mask_rcnn_main.py'
# A narrow ResNet-50, with the tensor names of Google's backbone.
MODEL = {
  'model.num_classes': 3,
  'model.backbone.width': 4,
  'model.pyramid_channels': 8,
  'model.box_channels': 8,
  'model.mask_channels': 8,
  'model.mask_convs': 1,
  'model.train_proposals.pre_nms_top_k': 16,
  'model.train_proposals.post_nms_top_k': 8,
  'model.test_proposals.pre_nms_top_k': 16,
  'model.test_proposals.post_nms_top_k': 8,
  'model.rpn_targets.num_samples': 16,
  'model.losses.rpn_samples': 16,
  'model.sampling.num_rois': 8,
  'model.detections.max_detections': 4,
  'input.canvases': '((64,64),)',
  'input.max_instances': 4,
  'input.mask_size': 28,
  'training.pictures': 1,
}
# A smaller one, without pretrained weights.
SCRATCH = {
  'model.backbone.depth': 18,
  'model.backbone.norm': 'group',
  'model.backbone.frozen_stages': 0,
}


def config_of(*argv, environ=None, **counts):
  """The config of a command line; `counts` are of `make_config`."""
  return habana.make_config(habana_flags.parse(argv), environ or {}, **counts)


def small(more=()):
  """Flags of a small model."""
  fields = {**MODEL, **dict(more)}
  return [f'--config.{name}={value}' for name, value in fields.items()]


def scratch():
  """Flags of an even smaller model without pretrained weights."""
  return ['--checkpoint=', *small(SCRATCH)]


def data(dataset):
  """Flags of a data set, of `tiny_run.write_dataset`."""
  pattern, annotations_file = dataset
  return [
    f'--training_file_pattern={pattern}',
    f'--validation_file_pattern={pattern}',
    f'--val_json_file={annotations_file}',
  ]


def write_backbone(folder):
  """Writes Google's backbone to the default of --checkpoint."""
  prefix = folder / 'weights/resnet/resnet-nhwc-2018-02-07/model.ckpt-112603'
  prefix.parent.mkdir(parents=True)
  tensors = tensorflow_checkpoint.google_backbone(50, 4)
  tensorflow_checkpoint.write_named(prefix, tensors)
  return tensors


def environment(cache, **more):
  """Environment of a process that compiles quickly, and each program once."""
  return job_process.environment(
    JAX_COMPILATION_CACHE_DIR=str(cache),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
    **more,
  )


def start(argv, cwd, env, launcher=()):
  """Starts the script with stdout and stderr as one text."""
  return subprocess.Popen(
    [*launcher, sys.executable, SCRIPT, *argv],
    cwd=cwd,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


# Runs the command lines that it reads, and shows their exit codes.
_SESSION = """
import json, os, sys
from maskrcnn_jax.cli import main
from maskrcnn_jax.habana import command
mains = {'habana': command.main, 'maskrcnn-jax': main.main}
for line in sys.stdin:
  program, argv, folder = json.loads(line)
  os.chdir(folder)
  print(f'\\nCODE {mains[program](argv)}', flush=True)
"""


@contextlib.contextmanager
def session(env):
  """A function like `execute` that runs all command lines in one process."""
  process = subprocess.Popen(
    [sys.executable, '-c', _SESSION],
    env=env,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )

  def execute(argv, cwd, code=0, program='habana'):
    words = [program, [str(x) for x in argv], str(cwd)]
    process.stdin.write(json.dumps(words) + '\n')
    process.stdin.flush()
    shown = ''
    while not (end := re.search(r'^CODE (\d+)\n', shown, re.MULTILINE)):
      line = process.stdout.readline()
      assert line, shown[-4000:]  # It ended.
      shown += line
    assert int(end[1]) == code, shown[-4000:]
    return shown

  try:
    yield execute
  finally:
    process.stdin.close()
    process.stdout.close()
    process.wait(60)


def execute(argv, cwd, env, code=0, launcher=()):
  """Output of the script, which must exit with `code`."""
  process = start(argv, cwd, env, launcher)
  shown, _ = process.communicate(timeout=600)
  assert process.returncode == code, shown[-4000:]
  return shown
