"""The `maskrcnn-jax` command: a verb and flags become one function call.

Everything heavy is imported inside the verb, so `--help` is instant. What our
own checks or the system refuse ends as a message and exit code 2; `--debug`
shows the traceback.
"""

import argparse
import difflib
import logging
import os
import pathlib
import re
import sys
import traceback

_OVERRIDE = re.compile(r'--config\.([^=]+)(=.*)?$', re.DOTALL)


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code.

  Args:
    argv: the arguments after the command's name; those of the process if None.
  """
  argv = sys.argv[1:] if argv is None else argv
  args = _parser().parse_args(_fold_overrides(argv))
  logging.basicConfig(level=logging.INFO, format='%(message)s')
  for noisy in ('absl', 'jax', 'orbax'):
    logging.getLogger(noisy).setLevel(logging.WARNING)
  # TensorFlow only reads data: it need not talk about devices, and without
  # oneDNN it resizes alike on every CPU.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  try:
    args.run(args)
  except Exception as error:
    for_user = not args.debug and _is_for_user(error)
    message = f'maskrcnn-jax {args.verb}: {_message(error)}'
    from maskrcnn_jax import runtime

    if not for_user:
      runtime.end_job(traceback.format_exc(), code=1, expected=args.debug)
      raise
    runtime.end_job(message, code=2)
    print(message, file=sys.stderr)
    return 2
  return 0


def _prepare(args) -> None:
  from maskrcnn_jax.datasets import prepare

  summary = prepare.prepare(
    args.images,
    args.annotations,
    args.output,
    args.num_shards,
    args.num_workers,
    args.captions,
    args.image_ids,
  )
  print(summary)


def _train(args) -> None:
  config, loop = _start(args)
  loop.train(config, args.workdir)


def _eval(args) -> None:
  config, loop = _start(args)
  loop.evaluate(config, args.workdir, args.step)


def _train_and_eval(args) -> None:
  config, loop = _start(args)
  loop.train_and_evaluate(config, args.workdir)


def _start(args):
  """The config and the loop, once the backend is chosen."""
  from maskrcnn_jax import config as config_lib

  config = config_lib.load_config(args.config, args.override)
  from maskrcnn_jax import runtime

  if config.runtime.get('deterministic'):
    runtime.make_deterministic()
  num_processes = runtime.start_distributed(
    config.runtime.get('coordinator_address')
  )
  runtime.pick_backend(config.runtime.backend, num_processes)
  runtime.enable_compilation_cache(config.runtime.compilation_cache)
  from maskrcnn_jax.training import loop

  return config, loop


class _Parser(argparse.ArgumentParser):
  """A parser whose errors say what was meant."""

  def error(self, message):
    match = re.search(
      r"invalid choice: '([^']*)' \(choose from (.*)\)", message
    )
    if match:
      verbs = re.findall(r'\w+', match[2])
      message = f'There is no verb {match[1]!r}{_suggest(match[1], verbs)}'
      message += f' Verbs: {", ".join(verbs)}.'
    self.exit(2, f'{self.prog}: {message}\n')

  def parse_args(self, args=None, namespace=None):
    parsed, rest = self.parse_known_args(args, namespace)
    if rest:
      verb = self.verbs.choices[parsed.verb]
      flags = [flag for flag in verb._option_string_actions if flag[:2] == '--']
      given = rest[0].partition('=')[0]
      self.error(
        f'{parsed.verb} has no flag {given!r}{_suggest(given, flags)} '
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
  _add_prepare(parser.verbs)
  for name, run, words in (
    ('train', _train, 'train, or resume a run'),
    ('eval', _eval, 'evaluate a checkpoint of a run'),
    ('train_and_eval', _train_and_eval, 'train, evaluating on the way'),
  ):
    verb = _add_verb(parser.verbs, name, run, words)
    verb.add_argument(
      '--config',
      required=True,
      metavar='NAME[:VARIANT]',
      help='a shipped config such as shapes or coco:habana_1x, or a path',
    )
    verb.add_argument(
      '--config.SECTION.FIELD',
      dest='override',
      action='append',
      default=[],
      metavar='VALUE',
      help='change a field, such as --config.input.batch_size=8',
    )
    verb.add_argument(
      '--workdir', required=True, help='checkpoints, metrics and pictures'
    )
    if name == 'eval':
      verb.add_argument('--step', type=int, help='checkpoint; default: newest')
  return parser


def _add_prepare(verbs) -> None:
  verb = _add_verb(verbs, 'prepare', _prepare, 'COCO json + images -> records')
  verb.add_argument('--images', required=True, help='folder of the images')
  verb.add_argument('--annotations', required=True, help='COCO json')
  verb.add_argument(
    '--output', required=True, help='such as records/train-*.tfrecord'
  )
  verb.add_argument('--captions', help='COCO json of captions')
  verb.add_argument(
    '--image_ids',
    type=lambda text: [int(word) for word in text.split(',')],
    metavar='ID,ID,...',
    help='take these images only',
  )
  verb.add_argument('--num_shards', type=int, help='record files to write')
  verb.add_argument('--num_workers', type=int, help='processes to use')


def _add_verb(verbs, name, run, words):
  verb = verbs.add_parser(
    name, help=words, description=words, allow_abbrev=False
  )
  verb.set_defaults(run=run)
  verb.add_argument(
    '--debug', action='store_true', help='show the traceback of an error'
  )
  return verb


def _fold_overrides(argv: list[str]) -> list[str]:
  """Turns `--config.a.b=v` and `--config.a.b v` into the one override flag."""
  folded = []
  pending = None
  for text in argv:
    match = _OVERRIDE.match(text)
    if pending:
      folded.append(f'--config.SECTION.FIELD={pending}={text}')
      pending = None
    elif match and match[2] is None:
      pending = match[1]
    elif match:
      folded.append(f'--config.SECTION.FIELD={match[1]}{match[2]}')
    else:
      folded.append(text)
  return folded + ([f'--config.{pending}'] if pending else [])


def _suggest(given: str, known: list[str]) -> str:
  near = difflib.get_close_matches(given, known, n=1)
  return f'; did you mean {near[0]}?' if near else '.'


def _is_for_user(error: Exception) -> bool:
  """Whether the system or a check of ours raised it: anything else is a bug."""
  if isinstance(error, OSError):
    return True
  frames = traceback.extract_tb(error.__traceback__)
  package = pathlib.Path(__file__).resolve().parent
  ours = package in pathlib.Path(frames[-1].filename).resolve().parents
  in_config = any(frame.name == 'get_config' for frame in frames)
  return (ours or in_config) and frames[-1].line.startswith('raise')


def _message(error: Exception) -> str:
  if isinstance(error, OSError) and error.strerror:
    where = f': {error.filename}' if error.filename else ''
    return f'{error.strerror}{where}'
  return str(error)


if __name__ == '__main__':
  sys.exit(main())
