"""Zip files: test every member, extract without overwriting anything."""

import concurrent.futures
import os
import pathlib
import zipfile
import zlib

_BLOCK = 2**20
_THREADS = 4  # Reading and decompressing release Python's lock.
# What reading a damaged member raises.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


class DamagedZipError(Exception):
  """A zip that cannot be read to its end; the message names the member."""


class ConflictError(Exception):
  """A file in the way of a member; the message names it."""


def test(path: pathlib.Path) -> None:
  """Reads every member and checks its CRC.

  Raises:
    DamagedZipError: at the first one that is wrong.
  """
  with _open(path) as archive:
    for member in archive.infolist():
      for _ in _read(path, archive, member):
        pass


def extract(
  path: pathlib.Path, folder: pathlib.Path, top: str | None = None
) -> list[pathlib.PurePosixPath]:
  """Extracts a zip; a file that is there already stays as it is.

  A file gets its name when it is complete, so an interrupted extraction goes on
  where it was.

  Args:
    path: the zip.
    folder: the folder that the names are relative to.
    top: the one folder that all members must be in; None: any.

  Returns:
    The names of the files.

  Raises:
    DamagedZipError: if a member cannot be read or its CRC is wrong, or a member
      lies elsewhere.
    ConflictError: if a file of that name has another size.
    OSError: if a file cannot be written; holds its name.
  """
  with _open(path) as archive:
    members = [each for each in archive.infolist() if not each.is_dir()]
    names = [pathlib.PurePosixPath(member.filename) for member in members]
    for name in names:
      inside = not name.is_absolute() and '..' not in name.parts
      if not inside or top not in (None, name.parts[0]):
        raise DamagedZipError(f'{path} holds {name}, outside of {top or "."}/.')
    for parent in {name.parent for name in names}:
      (folder / parent).mkdir(parents=True, exist_ok=True)
    executor = concurrent.futures.ThreadPoolExecutor(_THREADS)
    try:
      tasks = [
        executor.submit(_extract, path, archive, member, folder / name)
        for member, name in zip(members, names)
      ]
      for task in tasks:
        task.result()
    finally:
      executor.shutdown(cancel_futures=True)
  return names


def _open(path):
  try:
    return zipfile.ZipFile(path)
  except _DAMAGE as error:
    raise DamagedZipError(f'{path} is a damaged zip file: {error}.') from error


def _extract(path, archive, member, target):
  """Writes one member, unless it is there."""
  if target.exists():
    size = target.stat().st_size
    if size != member.file_size:
      raise ConflictError(
        f'{target} has {size} bytes, in {path.name} it has {member.file_size}: '
        'move it away and run this again.'
      )
    return
  unfinished = target.with_name(f'.{target.name}.unfinished')
  try:
    with open(unfinished, 'wb') as stream:
      for block in _read(path, archive, member):
        stream.write(block)
    os.rename(unfinished, target)
  except OSError as error:
    # A failed write does not say which file it was.
    raise OSError(error.errno, error.strerror, str(target)) from error
  finally:
    unfinished.unlink(missing_ok=True)


def _read(path, archive, member):
  """Yields a member block by block; its CRC is checked at the end."""
  try:
    with archive.open(member) as stream:
      while block := stream.read(_BLOCK):
        yield block
  except _DAMAGE as error:
    raise DamagedZipError(
      f'{path} is a damaged zip file: {member.filename} cannot be read '
      f'({error}).'
    ) from error
