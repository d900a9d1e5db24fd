"""Text for a terminal, without control characters of foreign origin.

Names of classes and files may hold escape sequences, which make a terminal hide
or forge lines and titles. `escaped_streams` shows them as text in all that a
command prints; `escaped` also keeps a name on one line.
"""

import contextlib
import re
import sys
import unicodedata
from collections.abc import Iterator

# What a progress bar moves the cursor by.
_BAR = re.compile(r'\r|\n*(?:\x1b\[A)+$')


def escaped(text: str, kept: str = '') -> str:
  """The text with control, format and invalid characters as `\\x1b`.

  Args:
    text: of any origin.
    kept: characters that stay, such as a line break.
  """
  if text.isprintable():
    return text
  return ''.join(x if x in kept else _shown(x) for x in text)


def _shown(character):
  is_text = character.isprintable() or unicodedata.category(character) == 'Zs'
  # Lone surrogates, which no stream takes, are escaped as well.
  return character if is_text else character.encode('unicode_escape').decode()


@contextlib.contextmanager
def escaped_streams() -> Iterator[None]:
  """Escapes all that the block prints to stdout and stderr but line breaks."""
  before = sys.stdout, sys.stderr
  sys.stdout, sys.stderr = map(_Escaping, before)
  yield
  # Not after an exception, so that its traceback is escaped as well.
  sys.stdout, sys.stderr = before


class _Escaping:
  """A text stream that escapes what is written."""

  def __init__(self, stream):
    self._stream = stream

  def write(self, text: str) -> int:
    bar = _BAR.match(text) if self._stream.isatty() else None
    start = bar[0] if bar else ''
    shown = start + escaped(text[len(start) :], kept='\n\t')
    encoding = getattr(self._stream, 'encoding', None) or 'utf-8'
    self._stream.write(
      shown.encode(encoding, 'backslashreplace').decode(encoding)
    )
    return len(text)

  def writelines(self, lines) -> None:
    for line in lines:
      self.write(line)

  def __getattr__(self, name):
    return getattr(self._stream, name)
