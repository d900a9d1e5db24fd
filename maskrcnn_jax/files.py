"""Files and folders that appear whole or not at all, and untrusted content."""

import collections
import contextlib
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any

from maskrcnn_jax.errors import UserError, brief

# Not that of pathlib: since Python 3.12 any character is a drive of Windows.
_ANCHOR = re.compile(r'[A-Za-z]:|[/\\]')


def inside(folder, name: str) -> pathlib.Path:
  """Path of a file that untrusted content, such as a json, names in a folder.

  The name must be relative, on any system, and without `..`. A link in the
  folder is followed, wherever it leads: the owner of the folder made it, not
  the content.

  Raises:
    UserError: the name leads out of the folder, or cannot be a name.
  """
  parts = re.split(r'[/\\]', name)  # Windows has both kinds of slashes.
  is_name = not {'', '.'}.issuperset(parts) and '\0' not in name
  if not is_name or _ANCHOR.match(name) or '..' in parts:
    raise UserError(
      f'the name {brief(name)} leads out of the folder {folder}',
      path=folder,
      given=name,
    )
  return pathlib.Path(folder, name)


def cache_folder() -> pathlib.Path:
  """The folder of this package in the user's cache; it may not exist."""
  root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(root) / 'maskrcnn_jax'


def not_a_link(path) -> pathlib.Path:
  """The path of a file or folder in a received folder, to use or to make.

  Raises:
    UserError: it is a link, which may lead anywhere, or a pipe or device.
  """
  path = pathlib.Path(path)
  is_usual = path.is_file() or path.is_dir() or not path.exists()
  if path.is_symlink() or not is_usual:
    message = f'{path} is a symbolic link or a device: move it away.'
    raise UserError(message, path=path)
  return path


def read_json(path) -> Any:
  """Content of a JSON file that is not trusted, in any UTF, marked or not.

  Raises:
    UserError: it cannot be read, is no JSON or nested too deeply, has a text
      with half of a surrogate pair, or an object with a key twice.
  """
  try:
    encoded = pathlib.Path(path).read_bytes()
    text = decode_text(encoded)
    content = json.loads(text, object_pairs_hook=_unique)
    if re.search(r'\\u[dD][89a-fA-F]', text):
      json.dumps(content, ensure_ascii=False).encode()
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error}', path=path) from error
  except RecursionError:
    raise UserError(f'{path} is nested too deeply.', path=path) from None
  except ValueError as error:
    raise UserError(f'{path} is not a JSON file: {error}', path=path) from error
  return content


def decode_text(encoded: bytes, errors: str = 'strict') -> str:
  """Decodes text in any UTF, marked or not; raises a ValueError if it is none.

  Args:
    encoded: a file, or its beginning.
    errors: of `bytes.decode`.
  """
  # Of a JSON, but any text that begins with two ASCII characters is alike.
  return encoded.decode(json.detect_encoding(encoded), errors)


def _unique(pairs) -> dict:
  made = dict(pairs)
  if len(made) < len(pairs):
    keys = collections.Counter(key for key, _ in pairs)
    raise ValueError(f'it has {brief(max(keys, key=keys.get))} twice')
  return made


@contextlib.contextmanager
def replaced(path) -> Iterator[pathlib.Path]:
  """A file to write that takes the place of `path` when the block is done.

  It lies beside `path` under a hidden name that nobody else has
  (`.NAME-RANDOM.unfinished`), so a rename is all that is left to do and no link
  is followed. If the block raises, it is removed and `path` is as before; an
  error of the system, such as a full disk, names `path`.

  Args:
    path: to be made or replaced; its folder is made if missing.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  start = f'.{path.name[:40]}-'  # Names have up to 255 bytes.
  handle, name = tempfile.mkstemp('.unfinished', start, path.parent)
  os.close(handle)
  unfinished = pathlib.Path(name)
  try:
    # `mkstemp` gives files to their owner alone.
    unfinished.chmod(0o666 & ~_umask())
    with naming(path):
      yield unfinished
    unfinished.replace(path)
  except OSError as error:
    if error.strerror and error.filename in (None, name):
      error.filename = os.fspath(path)
    raise
  finally:
    unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path) -> Iterator[None]:
  """Adds a path to errors that have none, such as that of a full disk."""
  try:
    yield
  except OSError as error:
    error.filename = error.filename or str(path)
    raise


def write_text(path, text: str) -> None:
  """Writes a UTF-8 file that appears whole or not at all."""
  with replaced(path) as unfinished:
    unfinished.write_text(text, encoding='utf-8')


def check_new_folder(path) -> None:
  """Raises a `UserError` unless `new_folder` may make the folder `--output`."""
  path = pathlib.Path(path)
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise UserError(
      f'--output {path} is not empty and stays as it is: name a new folder.',
      argument='--output',
      path=path,
    )


@contextlib.contextmanager
def new_folder(path) -> Iterator[pathlib.Path]:
  """A folder to fill that becomes `path` when the block is done.

  If the block raises, it is removed with all that is in it.

  Args:
    path: must not exist, or be an empty folder.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    '.unfinished', f'.{path.name}-', path.parent, ignore_cleanup_errors=True
  ) as name:
    unfinished = pathlib.Path(name)
    unfinished.chmod(0o777 & ~_umask())
    yield unfinished
    unfinished.rename(path)


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask
