"""Flags of `maskrcnn-jax bench`, and what happens with them."""

import argparse
import dataclasses
import os

from maskrcnn_jax.benchmarks.options import SUBJECTS, BenchOptions


def add_flags(verb: argparse.ArgumentParser) -> None:
  """Adds the flags of the verb, but for those of the config."""
  default = BenchOptions()
  verb.add_argument(
    '--what',
    type=lambda text: text.split(','),
    default=default.what,
    metavar='NAME,NAME,...',
    help=f'some of {", ".join(SUBJECTS)}; default: {",".join(default.what)}',
  )
  verb.add_argument(
    '--against',
    metavar='PYTHON',
    help='an interpreter with torch and torchvision, whose Mask R-CNN is '
    'measured by turns with ours',
  )
  verb.add_argument(
    '--channels_last',
    action=argparse.BooleanOptionalAction,
    help='memory layout of the other side; default: on a GPU',
  )
  for name, words in (('rounds', 'that count'), ('warmup', 'before them')):
    verb.add_argument(
      f'--{name}',
      type=int,
      default=getattr(default, name),
      help=f'rounds {words}; default: {getattr(default, name)}',
    )
  verb.add_argument(
    '--output', required=True, help='new folder of bench.json and bench.png'
  )


def run(args: argparse.Namespace) -> None:
  """Measures; real images if `input.file_pattern` is given, else drawn ones."""
  names = [field.name for field in dataclasses.fields(BenchOptions)]
  options = BenchOptions(**{name: getattr(args, name) for name in names})
  from maskrcnn_jax import config as config_lib

  given = {override.partition('=')[0] for override in args.override}
  # A rate that is given does not follow the batch.
  rate = 'optimizer.learning_rate=1e-6'
  config = config_lib.load_config(args.config, [*args.override, rate])
  if options.against:
    # The other side needs memory of the GPU too.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  from maskrcnn_jax.distributed import processes as runtime

  runtime.start(config.get('runtime', {}))
  from maskrcnn_jax.benchmarks import bench

  bench.bench(
    config, options, args.output, is_real='input.file_pattern' in given
  )
