"""Errors that a user can mend, as opposed to bugs."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
  """An input, file or option that the user can mend.

  The command line prints the message and exits with 2; it treats an `OSError`
  alike. Any other exception is a bug and shows its traceback. The message says
  all that the fields say.

  Attributes:
    argument: name of the argument, the flag or the config field at fault, such
      as `training.num_steps`; None where there is none.
    path: file or folder at fault, as a text.
    item: id of the image or annotation, or name of the tensor or class.
    given: the value that was found.
    wanted: what would have been taken: a value, or the names that are known.
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
    super().__init__(message)
    self.argument = argument
    self.path = None if path is None else str(path)
    self.item = item
    self.given = given
    self.wanted = wanted


def did_you_mean(given: str, known: Iterable[str]) -> str:
  """A hint that ends a sentence: `; did you mean 'x'?`, or a full stop.

  Args:
    given: a name that is not known.
    known: the names that are.
  """
  near = difflib.get_close_matches(given, list(known), n=1)
  return f'; did you mean {near[0]!r}?' if near else '.'
