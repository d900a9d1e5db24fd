"""Shared parts of the commands: config flags, flag types, errors, exit codes.

An error that a user can mend ends a command with one line and exit code 2;
`--debug` shows the traceback.
"""

import argparse
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from maskrcnn_jax.distributed import launcher
from maskrcnn_jax.errors import UserError, require
from maskrcnn_jax.terminal import escaped

_OVERRIDE = re.compile(r'--config\.([^=]+)(=.*)?$', re.DOTALL)
# Beside a `UserError` or `OSError`, what an input can cause, as a last resort.
_REASONS = {
  MemoryError: 'an input needs more memory than there is',
  RecursionError: 'an input is nested too deeply',
  UnicodeEncodeError: 'a text or a file name of an input is no valid Unicode',
}


def add_config(
  parser: argparse.ArgumentParser, required: bool = True, note: str = ''
) -> None:
  """Adds `--config` and, for the help, the flags of its fields.

  Args:
    parser: of the verb.
    required: False if the verb does without a config.
    note: meaning of a missing config, for the help.
  """
  # fmt: off
  parser.add_argument(
    '--config', required=required, metavar='NAME[:VARIANT]',
    help='shipped config such as shapes or coco:habana_1x, or path of a '
    f'config file{note}')
  parser.add_argument(  # `split_overrides` takes these out.
    '--config.SECTION.FIELD', dest='override', metavar='VALUE',
    help='override a field of the config, such as --config.input.batch_size=8')
  # fmt: on


def add_max_pixels(parser: argparse.ArgumentParser) -> None:
  """Adds `--max_pixels`, see `set_max_pixels`."""
  words = 'refuse larger images (default: 67,108,864, which is 8192 x 8192)'
  parser.add_argument('--max_pixels', type=POSITIVE, metavar='N', help=words)


def add_image_options(parser: argparse.ArgumentParser) -> None:
  """Adds `--exif` and `--value_range`, see `datasets.survey`."""
  # fmt: off
  parser.add_argument(
    '--exif', choices=['upright', 'stored'],
    help='what labels mean of a photo that EXIF rotates where its size does '
    'not tell (default: as the images whose size tells)')
  parser.add_argument(
    '--value_range', type=RANGE, metavar='LOW,HIGH',
    help='values of 16-bit, 32-bit and float images that become 0 and 255 '
    '(default: those of the type, or the 0.1 and 99.9 percentiles of the set '
    'if they fill less than a quarter)')
  # fmt: on


def set_max_pixels(args: argparse.Namespace) -> None:
  """Sets the budget of the decoder, see `images.check_size`."""
  from maskrcnn_jax.datasets import images

  images.set_max_pixels(args.max_pixels)


def require_training(args: argparse.Namespace) -> None:
  """Raises a `UserError` if the verb needs TensorFlow, which is left out."""
  require('train', 'tensorflow', purpose=args.verb)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Separates `--config.a.b=v` and `--config.a.b v` from other arguments.

  Returns:
    Texts `a.b=v`, and the other arguments.

  Raises:
    UserError: the last override has no value.
  """
  overrides, rest, words = [], [], iter(argv)
  for word in words:
    match = _OVERRIDE.match(word)
    if match is None:
      rest.append(word)
      continue
    value = match[2] or f'={next(words, "")}'
    if value == '=' and match[2] is None:
      raise UserError(
        f'{word} needs a value, as in {word}=VALUE.', argument=word
      )
    overrides.append(f'{match[1]}{value}')
  return overrides, rest


def overridden(args: argparse.Namespace) -> set[str]:
  """Names of the config fields that the command line sets."""
  return {override.partition('=')[0] for override in args.override}


def given(args: argparse.Namespace, *same: str, **names: str) -> dict[str, Any]:
  """Keyword arguments for the flags that were given.

  The function that takes them has the defaults of the others.

  Args:
    args: parsed flags; None where a flag was not given.
    *same: flags whose keywords have the same name.
    **names: keyword of the function -> name of the flag.
  """
  names |= {name: name for name in same}
  values = {keyword: getattr(args, flag) for keyword, flag in names.items()}
  return {key: value for key, value in values.items() if value is not None}


def flag_type(parse: Callable[[str], Any], wanted: str) -> Callable[[str], Any]:
  """An argparse type whose error says what is wanted.

  Args:
    parse: converts the text; raises ValueError if it cannot.
    wanted: such as `a whole number`.
  """

  def convert(text):
    try:
      return parse(text)
    except ValueError:
      message = f'must be {wanted}, got {text!r}.'
      raise argparse.ArgumentTypeError(message) from None

  return convert


def number(
  kind: type[int] | type[float], minimum: float, maximum: float = float('inf')
) -> Callable[[str], float]:
  """A parser of numbers in a range; raises ValueError outside it."""

  def parse(text):
    value = kind(text)
    if not minimum <= value <= maximum:
      raise ValueError(text)
    return value

  return parse


def list_of(item: Callable[[str], Any]) -> Callable[[str], tuple]:
  """A parser of items joined by commas."""
  return lambda text: tuple(item(word) for word in text.split(','))


def value_range(text: str) -> tuple[float, float]:
  """Parses `LOW,HIGH`; raises ValueError unless LOW is below HIGH."""
  low, high = (float(word) for word in text.split(','))
  if not float('-inf') < low < high < float('inf'):
    raise ValueError(text)
  return low, high


FRACTION = flag_type(number(float, 0, 1), 'a number from 0 to 1')
COUNT = flag_type(number(int, 0), 'a whole number of 0 or more')
RANGE = flag_type(value_range, 'two numbers such as 0,4095')
POSITIVE = flag_type(number(int, 1), 'a whole number of 1 or more')
COUNTS = flag_type(list_of(number(int, 0)), 'whole numbers such as 4,8,12')
NAMES = list_of(str)


def run(
  name: str, function: Callable[[], int | None], debug: bool = False
) -> int:
  """Runs a command and returns its exit code.

  Args:
    name: of the command, for messages.
    function: does the work and may return an exit code.
    debug: show the traceback of a user's error too.
  """
  try:
    _set_up_logging()
  except UserError as error:  # In the environment, about the job.
    print(f'{name}: {error}', file=sys.stderr)
    return 2
  try:
    code = function() or 0
    sys.stdout.flush()
    return code
  except KeyboardInterrupt:
    if debug:
      raise
    print(f'{name}: interrupted', file=sys.stderr)
    return 130
  except Exception as error:
    from maskrcnn_jax.distributed import processes

    message = _message(error)
    if debug or message is None:
      processes.end_job(traceback.format_exc(), code=1, expected=debug)
      raise
    message = f'{name}: {message}'
    processes.end_job(message, code=2)
    print(message, file=sys.stderr)
    if isinstance(error, BrokenPipeError):
      # Nobody reads any more: what is left must not raise at the exit.
      os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 2


def _set_up_logging() -> None:
  # Process 0 of a job logs; the others only warn.
  launch = launcher.find_launch()
  is_first = launch is None or launch.rank == 0
  level = logging.INFO if is_first else logging.WARNING
  logging.basicConfig(level=level, format='%(message)s')
  for noisy in ('absl', 'jax', 'orbax'):
    logging.getLogger(noisy).setLevel(logging.WARNING)
  # TensorFlow only reads data, so its messages about devices do not matter.
  # Without oneDNN it resizes alike on every CPU.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')


def _message(error: Exception) -> str | None:
  """One line for an error that a user can mend; None for a bug."""
  if isinstance(error, OSError):
    where = f': {escaped(str(error.filename))}' if error.filename else ''
    return (error.strerror or str(error)) + where
  if isinstance(error, UserError):
    return str(error)
  reasons = (_REASONS[x] for x in _REASONS if isinstance(error, x))
  return next((f'{reason} ({error})' for reason in reasons), None)
