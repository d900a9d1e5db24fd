"""The verb `bench`: speed, also beside torchvision."""

import argparse
import dataclasses
import os

from maskrcnn_jax.benchmarks.options import SUBJECTS, BenchOptions
from maskrcnn_jax.cli import command_line
from maskrcnn_jax.errors import require


def add_verbs(add_verb) -> None:
  """Adds the verb, see `main`."""
  parser = add_verb('bench', _run, 'measure speed, also against torchvision')
  command_line.add_config(parser)
  parser.set_defaults(**dataclasses.asdict(BenchOptions()))
  add = parser.add_argument
  # fmt: off
  add('--what', type=command_line.NAMES, metavar='NAME,NAME,...',
      help=f'some of {", ".join(SUBJECTS)} (default: '
      f'{",".join(BenchOptions.what)})')
  add('--against', metavar='PYTHON',
      help='interpreter with torch and torchvision, whose Mask R-CNN is '
      'measured in turns with ours')
  add('--channels_last', action=argparse.BooleanOptionalAction,
      help="torchvision's memory layout (default: channels last on a GPU)")
  for name, words in (('rounds', 'measured'), ('warmup', 'warm-up')):
    add(f'--{name}', type=int, metavar='N',
        help=f'number of {words} rounds (default: %(default)s)')
  add('--output',
      help='new folder for bench.json and bench.png (default: tables only)')
  # fmt: on


def _run(args: argparse.Namespace) -> None:
  """Runs `bench`: on real images if `input.file_pattern` is set."""
  is_real = 'input.file_pattern' in command_line.overridden(args)
  if is_real or 'input' in args.what:
    command_line.require_training(args)
  if args.output:
    require('train', 'matplotlib', purpose='--output', argument='--output')
  names = [field.name for field in dataclasses.fields(BenchOptions)]
  options = BenchOptions(**{name: getattr(args, name) for name in names})
  from maskrcnn_jax import config as config_lib

  # A given learning rate does not follow the batch.
  rate = 'optimizer.learning_rate=1e-6'
  config = config_lib.load_config(args.config, [*args.override, rate])
  if options.against:
    # Leaves memory of the GPU to the other process.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  from maskrcnn_jax.distributed import processes

  processes.start(config.get('runtime', {}))
  from maskrcnn_jax.benchmarks import bench

  bench.bench(config, options, args.output, is_real=is_real)
