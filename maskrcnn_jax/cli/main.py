"""The `maskrcnn-jax` command: parses a verb with its flags and runs it.

The files beside this one add the verbs. They import heavy modules when a verb
runs, so `--help` is instant.
"""

import argparse
import re
import sys

from maskrcnn_jax.cli import (
  bench,
  command_line,
  data,
  export,
  plan,
  predict,
  score,
  train,
  weights,
)
from maskrcnn_jax.errors import UserError, did_you_mean
from maskrcnn_jax.terminal import escaped_streams


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code.

  Args:
    argv: arguments after the command's name; None: those of the process.
  """
  with escaped_streams():
    args = _parse(sys.argv[1:] if argv is None else argv)
    name = f'maskrcnn-jax {args.verb}'
    return command_line.run(name, lambda: args.run(args), args.debug)


def _parse(argv) -> argparse.Namespace:
  parser = _parser()
  try:
    overrides, rest = command_line.split_overrides(argv)
  except UserError as error:
    parser.error(str(error))
  args = parser.parse_args(rest)
  if overrides and 'config' not in args:
    parser.error(f'{args.verb} takes no --config.{overrides[0]}.')
  args.override = overrides
  return args


class _Parser(argparse.ArgumentParser):
  """A parser that suggests the nearest verb or flag."""

  def error(self, message):
    match = re.search(
      r"invalid choice: '([^']*)' \(choose from (.*)\)", message
    )
    if match:
      verbs = re.findall(r'\w+', match[2])
      message = f'There is no verb {match[1]!r}{did_you_mean(match[1], verbs)}'
      message += f' Verbs: {", ".join(verbs)}.'
    self.exit(2, f'{self.prog}: {message}\n')

  def parse_args(self, args=None, namespace=None):
    parsed, rest = self.parse_known_args(args, namespace)
    if rest:
      verb = self.verbs.choices[parsed.verb]
      flags = [flag for flag in verb._option_string_actions if flag[:2] == '--']
      given = rest[0].partition('=')[0]
      self.error(
        f'{parsed.verb} has no flag {given!r}{did_you_mean(given, flags)} '
        f'Flags: {", ".join(sorted(flags))}.'
      )
    return parsed


def _parser() -> _Parser:
  parser = _Parser(
    prog='maskrcnn-jax',
    description='Mask R-CNN in JAX and Flax.',
    epilog='maskrcnn-jax VERB --help lists the flags of a verb.',
    allow_abbrev=False,
  )
  options = {'dest': 'verb', 'metavar': 'VERB', 'required': True}
  parser.verbs = parser.add_subparsers(**options)

  def add_verb(name, run, words):
    options = {'description': words, 'allow_abbrev': False}
    verb = parser.verbs.add_parser(name, help=words, **options)
    verb.set_defaults(run=run)
    words = 'show the traceback of an error'
    verb.add_argument('--debug', action='store_true', help=words)
    return verb

  groups = data, train, score, weights, predict, export, plan, bench
  for group in groups:
    group.add_verbs(add_verb)
  return parser


if __name__ == '__main__':
  sys.exit(main())
