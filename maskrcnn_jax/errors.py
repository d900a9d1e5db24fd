"""Errors that a user can correct, as opposed to bugs."""

import difflib
import importlib.util
import os
import reprlib
import sys
from collections.abc import Iterable
from typing import Any

from maskrcnn_jax.terminal import escaped

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80
# The newest Python that has TensorFlow; setup.py says the same.
_TENSORFLOW_PYTHON = (3, 13)


class UserError(ValueError):
  """An error in an input, a file or an option that the user can correct.

  The command line prints the message and exits with 2, as it does for an
  `OSError`. Any other exception is a bug and shows its traceback. The message
  includes the values of the fields.

  Attributes:
    argument: name of the wrong argument, flag or config field, such as
      `training.num_steps`; None if there is none.
    path: of the wrong file or folder, as a text.
    item: id of the image or annotation, or name of the tensor or class.
    given: value that was found.
    wanted: accepted value, type or names.
  """

  def __init__(
    self,
    message: str,
    *,
    argument: str | None = None,
    path: Any = None,
    item: Any = None,
    given: Any = None,
    wanted: Any = None,
  ):
    # Foreign names stay on the line of the message.
    for value in (path, item, given):
      for name in value if isinstance(value, list | tuple) else [value]:
        name = str(name) if isinstance(name, str | os.PathLike) else ''
        if not name.isprintable():
          message = message.replace(name, escaped(name))
    super().__init__(message)
    self.argument = argument
    self.path = None if path is None else str(path)
    self.item = item
    self.given = given
    self.wanted = wanted


def brief(value: Any) -> str:
  """The start of a value's `repr`, for a message about untrusted content."""
  return _BRIEF.repr(value)


def did_you_mean(given: str, known: Iterable[str]) -> str:
  """A hint that ends a sentence: `; did you mean 'x'?`, or a full stop.

  Args:
    given: an unknown name.
    known: the known names.
  """
  near = difflib.get_close_matches(given, list(known), n=1)
  return f'; did you mean {near[0]!r}?' if near else '.'


def invalid(argument: str, given: Any, wanted: str) -> UserError:
  """Error of an invalid value: `ARGUMENT must be WANTED, got GIVEN.`

  Args:
    argument: name of the argument, the flag or the config field.
    given: its value.
    wanted: description of the valid values, such as `at least 1`.
  """
  return UserError(
    f'{argument} must be {wanted}, got {brief(given)}.',
    argument=argument,
    given=given,
    wanted=wanted,
  )


def require(
  extra: str, *packages: str, purpose: str, argument: str | None = None
) -> None:
  """Raises a `UserError` if a package that not everyone installs is missing.

  Args:
    extra: of `setup.py` that brings the packages.
    *packages: their names in `import`.
    purpose: what needs them, such as a flag, for the message.
    argument: of the error.
  """
  for name in packages:
    if importlib.util.find_spec(name) is None:
      remedy = f": pip install 'maskrcnn-jax[{extra}]'."
      if name == 'tensorflow' and sys.version_info[:2] > _TENSORFLOW_PYTHON:
        remedy = ', which has no release for this Python: take 3.11 to 3.13.'
      raise UserError(
        f'{purpose} needs {name}{remedy}',
        argument=argument,
        wanted=name,
      )
