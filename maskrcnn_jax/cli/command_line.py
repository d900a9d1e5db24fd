"""What the commands share: fields of the config as flags, errors, log lines.

What our own checks or the system refuse ends as a message and exit code 2;
`--debug` shows the traceback.
"""

import argparse
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence

from maskrcnn_jax.distributed import launcher
from maskrcnn_jax.errors import UserError

_OVERRIDE = re.compile(r'--config\.([^=]+)(=.*)?$', re.DOTALL)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Takes `--config.a.b=v` and `--config.a.b v` out of a command line.

  Args:
    argv: arguments.

  Returns:
    Texts `a.b=v`, and the other arguments.

  Raises:
    ValueError: the last one has no value.
  """
  overrides, rest, words = [], [], iter(argv)
  for word in words:
    match = _OVERRIDE.match(word)
    if match is None:
      rest.append(word)
      continue
    value = match[2] or f'={next(words, "")}'
    if value == '=' and match[2] is None:
      raise UserError(f'{word} needs a value, as in {word}=VALUE.')
    overrides.append(f'{match[1]}{value}')
  return overrides, rest


def add_config(
  verb: argparse.ArgumentParser, required: bool, default: str = ''
) -> None:
  """Adds `--config` and, for the help, the flags of its fields.

  Args:
    verb: parser of the verb.
    required: whether the verb does nothing without a config.
    default: what is taken without one, in words.
  """
  verb.add_argument(
    '--config',
    required=required,
    metavar='NAME[:VARIANT]',
    help='a shipped config such as shapes or coco:habana_1x, or a path'
    + (f'; default: {default}' if default else ''),
  )
  verb.add_argument(  # `split_overrides` takes these out.
    '--config.SECTION.FIELD',
    dest='override',
    metavar='VALUE',
    help='change a field, such as --config.input.batch_size=8',
  )


def whole_numbers(text: str) -> list[int]:
  """The numbers of `4,8,12`, as the type of a flag."""
  if not re.fullmatch(r'\d+(,\d+)*', text):
    raise argparse.ArgumentTypeError(
      f'must be whole numbers such as 4,8,12, got {text!r}.'
    )
  return [int(word) for word in text.split(',')]


def run(
  name: str, function: Callable[[], int | None], debug: bool = False
) -> int:
  """Runs a command and returns its exit code.

  Args:
    name: of the command, for messages.
    function: does it; what it returns, if anything, is the exit code.
    debug: show the traceback of an error that is the user's.
  """
  try:
    _set_up_logging()
  except ValueError as error:
    print(f'{name}: {error}', file=sys.stderr)
    return 2
  # So that what was begun is closed; a run of training saves, see `stopping`.
  signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
  try:
    code = function()
  except Exception as error:
    for_user = not debug and isinstance(error, UserError | OSError)
    message = f'{name}: {_message(error)}'
    from maskrcnn_jax.distributed import processes as runtime

    if not for_user:
      runtime.end_job(traceback.format_exc(), code=1, expected=debug)
      raise
    runtime.end_job(message, code=2)
    print(message, file=sys.stderr)
    return 2
  return code or 0


def _set_up_logging() -> None:
  # Of the processes of a job the first one speaks; all of them warn.
  launch = launcher.find_launch()
  is_first = launch is None or launch.rank == 0
  level = logging.INFO if is_first else logging.WARNING
  logging.basicConfig(level=level, format='%(message)s')
  for noisy in ('absl', 'jax', 'orbax'):
    logging.getLogger(noisy).setLevel(logging.WARNING)
  # TensorFlow only reads data: it need not talk about devices, and without
  # oneDNN it resizes alike on every CPU.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')


def _message(error: Exception) -> str:
  if isinstance(error, OSError) and error.strerror:
    where = f': {error.filename}' if error.filename else ''
    return f'{error.strerror}{where}'
  return str(error)
