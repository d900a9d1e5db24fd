"""Flags of the verb `plan`; what is heavy is imported when it runs."""

import argparse

from maskrcnn_jax.cli import command_line


def add_flags(verb: argparse.ArgumentParser) -> None:
  """Adds the flags of the verb, but for those of the config."""
  verb.add_argument(
    '--topology',
    required=True,
    type=lambda text: text.split(','),
    metavar='NAME,NAME,...',
    help='slices of TPUs such as v5e:4x4 or v5p:2x2x1, here, cpu:8',
  )
  verb.add_argument(
    '--batch_per_device',
    type=command_line.whole_numbers,
    metavar='N,N,...',
    help='images; by default what the batch of the config gives each device',
  )
  verb.add_argument('--output', help='folder of plan.json and plan.png')


def run(args: argparse.Namespace) -> None:
  """Runs the verb."""
  from maskrcnn_jax.planning import topologies

  topologies.check_names(args.topology)
  topologies.prepare(args.topology)
  from maskrcnn_jax import config as config_lib

  config = config_lib.load_config(args.config, args.override)
  if 'here' in args.topology:
    from maskrcnn_jax.distributed import backends

    backends.pick_backend(config.get('runtime', {}).get('backend', 'auto'))
  from maskrcnn_jax.planning import plan

  given = {override.partition('=')[0] for override in args.override}
  plan.plan(
    config,
    args.topology,
    args.batch_per_device,
    args.output,
    'optimizer.learning_rate' in given,
  )
