"""Text of any script in pictures.

ASCII is drawn in Pillow's own font, other characters in the first font that has
them: DejaVu Sans (Latin, Greek, Cyrillic, Hebrew, Arabic) where matplotlib,
which ships it, is installed, then those in the folders of the system. No
program is started.
"""

import functools
import logging
import os
import pathlib
from collections.abc import Iterator

from PIL import ImageDraw, ImageFont

from maskrcnn_jax.terminal import escaped

_LOG = logging.getLogger(__name__)
# Of Linux, macOS and Windows.
FOLDERS = (
  *('/usr/share/fonts', '/usr/local/share/fonts', '~/.local/share/fonts'),
  *('~/.fonts', '/System/Library/Fonts', '/Library/Fonts', '~/Library/Fonts'),
  os.path.join(os.environ.get('WINDIR', r'C:\Windows'), 'Fonts'),
)
_ENDINGS = ('.ttf', '.otf', '.ttc')

_UNKNOWN = '\uffff'  # No character: fonts draw their sign for a missing one.

_default = functools.cache(ImageFont.load_default)
_truetype = functools.cache(ImageFont.truetype)


def readable(name: str, class_id: int) -> str:
  """A class name to draw; with `?` for what no font has, and then the id.

  That is logged once.
  """
  drawn = ''.join(c if c.isspace() or _has_glyph(c) else '?' for c in name)
  if drawn == name:
    return name
  _warn(name)
  return f'{drawn} ({class_id})'


def is_in_charts(text: str) -> bool:
  """Whether the font of matplotlib's charts has all characters of a text."""
  return all(c.isspace() or _draws(find_fonts()[0], c) for c in text)


_warned = []


def _warn(name):
  if not _warned:
    _warned.append(name)
    _LOG.warning(
      'No font has all characters of the class name %s: its class id is drawn '
      'beside it. Install a font of its script, such as the package '
      'fonts-noto-cjk.',
      escaped(name),
    )


def measure(text: str, size: int) -> tuple[int, int]:
  """(height, width) of a text in pixels."""
  runs, ascent = _layout(text, size)
  boxes = [font.getbbox(part, anchor='ls') for _, part, font in runs]
  if len(runs) == 1:  # Without the space around the first and last letter.
    return ascent + boxes[0][3], boxes[0][2] - boxes[0][0]
  start, part, font = runs[-1]
  width = start + font.getlength(part)
  return ascent + max(box[3] for box in boxes), round(width)


def draw(
  pen: ImageDraw.ImageDraw,
  position: tuple[int, int],
  text: str,
  size: int,
  color: str,
) -> None:
  """Draws a text at its upper left corner (x, y)."""
  runs, ascent = _layout(text, size)
  for start, part, font in runs:
    place = position[0] + start, position[1] + ascent
    pen.text(place, part, fill=color, font=font, anchor='ls')


@functools.lru_cache(maxsize=4096)
def _layout(text, size):
  """Parts of a text (x, text, font), and the pixels above the base line."""
  paths = []
  for char in text or ' ':
    char = ' ' if char.isspace() else char  # One line.
    previous = paths[-1][0] if paths else None
    path = _find(char, previous)
    if paths and path == previous:
      paths[-1][1] += char
    else:
      paths.append([path, char])
  runs, start = [], 0
  for path, part in paths:
    font = _default(size) if path is None else _truetype(path, size)
    runs.append((start, part, font))
    start += round(font.getlength(part))
  return runs, max(font.getmetrics()[0] for *_, font in runs)


def _find(char, previous):
  """Path of a font for a character; None: Pillow's, also if none has it."""
  if char.isspace() or (previous and _draws(previous, char)):
    return previous
  return None if char.isascii() else _search(char)


def _has_glyph(char):
  return char.isascii() or _search(char) is not None


@functools.cache
def _search(char):
  """Path of the first font that has a character; None if there is none."""
  fonts = (path for path in find_fonts() if _draws(path, char))
  return next(fonts, None)


@functools.cache
def find_fonts() -> tuple[str, ...]:
  """Paths of the fonts for other characters than ASCII, in their order."""
  try:
    import matplotlib
  except ImportError:  # Left out where only predictions are made.
    return (*_of_system(),)
  folder = os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf')
  return os.path.join(folder, 'DejaVuSans.ttf'), *_of_system()


def _of_system() -> Iterator[str]:
  for folder in FOLDERS:
    for path in sorted(pathlib.Path(folder).expanduser().rglob('*')):
      if path.suffix.lower() in _ENDINGS:
        yield str(path)


@functools.lru_cache(maxsize=4096)
def _draws(path, char):
  """Whether a font has a character; no, if it cannot be scaled or read."""
  try:
    # The other layout composes characters of several that a font has.
    basic = ImageFont.Layout.BASIC
    font = ImageFont.truetype(path, 16, layout_engine=basic)
    font.getmetrics()
    shown, unknown = (_shape(font, text) for text in (char, _UNKNOWN))
    return shown != unknown
  except (OSError, RuntimeError, ValueError):
    return False


def _shape(font, text):
  """Size, place and pixels of a text."""
  mask, offset = font.getmask2(text, mode='L', anchor='ls')
  return mask.size, offset, bytes(mask)
