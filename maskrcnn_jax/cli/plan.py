"""The verb `plan`: ahead-of-time compilation for other devices."""

import argparse

from maskrcnn_jax.cli import command_line


def add_verbs(add_verb) -> None:
  """Adds the verb, see `main`."""
  parser = add_verb(
    'plan',
    _run,
    'compile training or detection ahead of time for other devices',
  )
  command_line.add_config(parser)
  batches = command_line.flag_type(
    lambda text: text if text == 'largest' else command_line.COUNTS(text),
    'whole numbers such as 4,8,12, or largest',
  )
  add = parser.add_argument
  # fmt: off
  add('--topology', required=True, type=command_line.NAMES,
      metavar='NAME,NAME,...',
      help='TPU slices such as v5e:4x4 or v5p:2x2x1; GPUs such as h100:8, or '
      'h200:2x8 for two hosts; cpu:8 for CPU devices; here for the devices of '
      'this machine')
  add('--batch_per_device', type=batches, metavar='N,N,...',
      help='images per device, or largest: the most that fit (default: the '
      'batch of the config divided by the number of devices)')
  add('--what', choices=('step', 'inference'), default='step',
      help='the training step, or detection (default: step)')
  add('--breakdown', action='store_true',
      help='also print the work of every stage of the model, forward and '
      'backward, and the number of copies, gathers, scatters and loops')
  add('--output', help='new folder for plan.json and plan.png')
  # fmt: on


def _run(args: argparse.Namespace) -> None:
  command_line.require_training(args)
  from maskrcnn_jax.planning import topologies

  topologies.check_names(args.topology)
  topologies.prepare(args.topology)
  from maskrcnn_jax import config as config_lib

  config = config_lib.load_config(args.config, args.override)
  if 'here' in args.topology:
    from maskrcnn_jax.distributed import backends

    backends.pick_backend(config.get('runtime', {}).get('backend', 'auto'))
  from maskrcnn_jax.planning import plan

  plan.plan(
    config,
    args.topology,
    args.batch_per_device,
    args.output,
    'optimizer.learning_rate' in command_line.overridden(args),
    args.what,
    args.breakdown,
  )
