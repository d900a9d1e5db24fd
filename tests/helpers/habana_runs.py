"""Runs of launch/mask_rcnn_main.py as processes, on a model of seconds."""

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


# Runs command lines one after the other, and shows their exit codes.
_SERIES = """
import json, sys
from maskrcnn_jax.habana import command
for argv in json.loads(sys.argv[1]):
  print(f'CODE {command.main(argv)}', flush=True)
"""


def execute_all(argvs, cwd, env):
  """Exit code and output of several command lines in one process."""
  done = subprocess.run(
    [sys.executable, '-c', _SERIES, json.dumps(argvs)],
    cwd=cwd,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
  )
  *shown, _ = re.split(r'^CODE (.*)\n', done.stdout, flags=re.MULTILINE)
  assert len(shown) == 2 * len(argvs), done.stdout[-4000:]
  return list(zip(map(int, shown[1::2]), shown[::2]))


def execute(argv, cwd, env, code=0, launcher=()):
  """Output of the script, which must exit with `code`."""
  process = start(argv, cwd, env, launcher)
  shown, _ = process.communicate(timeout=600)
  assert process.returncode == code, shown[-4000:]
  return shown
