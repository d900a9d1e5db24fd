"""The `maskrcnn-jax` command: a verb and flags become one function call.

Every verb has its flags beside what it runs. Everything heavy is imported when
it runs, so `--help` is instant.
"""

import argparse
import re
import sys

from maskrcnn_jax.cli import bench as bench_verb
from maskrcnn_jax.cli import check as check_verb
from maskrcnn_jax.cli import command_line
from maskrcnn_jax.cli import export as export_verb
from maskrcnn_jax.cli import plan as plan_verb
from maskrcnn_jax.cli import predict as predict_verb
from maskrcnn_jax.cli import prepare as prepare_verb
from maskrcnn_jax.cli import train as training_verbs
from maskrcnn_jax.errors import did_you_mean

# Name, words of the help, what adds its flags, and what runs it.
_VERBS = (
  (
    'prepare',
    'images, masks -> records',
    prepare_verb.add_flags,
    prepare_verb.run,
  ),
  (
    'check',
    'find what is wrong with a data set',
    check_verb.add_flags,
    check_verb.run,
  ),
  (
    'train',
    'train, or resume a run',
    training_verbs.add_flags,
    training_verbs.train,
  ),
  (
    'eval',
    'evaluate a checkpoint of a run',
    training_verbs.add_eval_flags,
    training_verbs.evaluate,
  ),
  (
    'train_and_eval',
    'train, evaluating on the way',
    training_verbs.add_flags,
    training_verbs.train_and_evaluate,
  ),
  (
    'import_weights',
    'weights of others -> checkpoint',
    training_verbs.add_import_flags,
    training_verbs.import_weights,
  ),
  (
    'export_weights',
    "checkpoint -> torchvision's",
    training_verbs.add_export_flags,
    training_verbs.export_weights,
  ),
  (
    'predict',
    'find objects in image files',
    predict_verb.add_flags,
    predict_verb.run,
  ),
  (
    'export',
    'files that run without this',
    export_verb.add_flags,
    export_verb.run,
  ),
  (
    'plan',
    'compile the training step for devices one has not',
    plan_verb.add_flags,
    plan_verb.run,
  ),
  (
    'bench',
    'measure speed, also beside torchvision',
    bench_verb.add_flags,
    bench_verb.run,
  ),
)
# Those that take a config.
_CONFIG = {
  'check': {'required': False},
  'train': {'required': True},
  'eval': {'required': True},
  'train_and_eval': {'required': True},
  'import_weights': {'required': False, 'default': 'the weights tell it'},
  'plan': {'required': True},
  'bench': {'required': True},
}


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code.

  Args:
    argv: the arguments after the command's name; those of the process if None.
  """
  argv = sys.argv[1:] if argv is None else argv
  parser = _parser()
  try:
    overrides, rest = command_line.split_overrides(argv)
  except ValueError as error:
    parser.error(str(error))
  args = parser.parse_args(rest)
  if overrides and 'config' not in args:
    parser.error(f'{args.verb} takes no --config.{overrides[0]}.')
  args.override = overrides
  return command_line.run(
    f'maskrcnn-jax {args.verb}', lambda: args.run(args), args.debug
  )


class _Parser(argparse.ArgumentParser):
  """A parser whose errors say what was meant."""

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
  parser.verbs = parser.add_subparsers(dest='verb', metavar='VERB')
  parser.verbs.required = True
  for name, words, add_flags, run in _VERBS:
    verb = parser.verbs.add_parser(
      name, help=words, description=words, allow_abbrev=False
    )
    verb.set_defaults(run=run)
    verb.add_argument(
      '--debug', action='store_true', help='show the traceback of an error'
    )
    if name in _CONFIG:
      command_line.add_config(verb, **_CONFIG[name])
    add_flags(verb)
  return parser


if __name__ == '__main__':
  sys.exit(main())
