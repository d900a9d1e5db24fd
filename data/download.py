"""Downloads files, several at a time, and makes sure of them.

Standard library only, so that any Python from 3.11 on can run it.

A file gets its name when it is complete and verified. `.NAME.verified` beside
it notes its size and time, so that it is not read again by the next run.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import shutil
import sys

import progress as progress_lib
import transfer
import zips
from transfer import DownloadError

_BLOCK = 2**20
_SLOW_TO_HASH = 2**30  # Bytes: seconds to minutes, worth a line of its own.


@dataclasses.dataclass(frozen=True)
class File:
  """A file to have.

  Attributes:
    url: where it comes from.
    path: where it goes.
    size: bytes; None if they are not known beforehand.
    digest: `sha256:HEX` or `md5:HEX`; None if none was published. Then the size
      that the server states counts, the MD5 where it states one (Google's
      buckets do), and of a zip the CRC of every member.
  """

  url: str
  path: pathlib.Path
  size: int | None = None
  digest: str | None = None

  @property
  def part(self) -> pathlib.Path:
    """Where it is while it is not complete."""
    return self.path.with_name(f'{self.path.name}.part')


def download(files: list[File]) -> None:
  """Gets all files that are not there and verified.

  A file that is there and wrong is set aside as `NAME.bad`, never removed, and
  downloaded again. What is downloaded and wrong is downloaded once more.

  Raises:
    DownloadError: when all files were tried, naming those that failed.
  """
  wanted = [file for file in files if not is_verified(file.path)]
  if not wanted:
    return
  sizes = [file.size for file in wanted if not file.path.exists()]
  total = None if None in sizes else sum(sizes)
  done = sum(transfer.size_of(file.part) for file in wanted)
  executor = concurrent.futures.ThreadPoolExecutor(len(wanted))
  with progress_lib.Progress(total, done) as progress:
    try:
      tasks = [executor.submit(_obtain, file, progress) for file in wanted]
      errors = [task.exception() for task in tasks]
    finally:
      # Ctrl-C must not wait for the network.
      executor.shutdown(wait=False, cancel_futures=True)
  errors = [error for error in errors if error is not None]
  for error in errors:
    if not isinstance(error, DownloadError):
      raise error
  if errors:
    raise DownloadError('\n'.join(str(error) for error in errors))


def is_verified(path: pathlib.Path) -> bool:
  """Whether a file is as it was when it was verified."""
  try:
    return _stamp(path).read_text() == _state(path)
  except OSError:
    return False


def mark_verified(path: pathlib.Path) -> None:
  """Notes that a file is verified as it is now."""
  _stamp(path).write_text(_state(path))


def set_aside(path: pathlib.Path, name: str | None = None) -> pathlib.Path:
  """Renames a wrong file to `NAME.bad`, or the next free name; returns it."""
  name = name or path.name
  aside = path.with_name(f'{name}.bad')
  number = 1
  while aside.exists():
    number += 1
    aside = path.with_name(f'{name}.bad{number}')
  os.rename(path, aside)
  return aside


def require_space(folder: pathlib.Path, needs: dict[str, int]) -> None:
  """Checks the free disk space.

  Args:
    folder: where the files go; it exists.
    needs: bytes by what they are for.

  Raises:
    DownloadError: if there is less than their sum.
  """
  needed, free = sum(needs.values()), shutil.disk_usage(folder).free
  if needed <= free:
    return
  size = progress_lib.size_text
  purposes = ', '.join(f'{name} {size(n)}' for name, n in needs.items() if n)
  raise DownloadError(
    f'{folder} has {size(free)} of free disk space, {size(needed)} are needed '
    f'({purposes}). Free some, name a folder on a larger disk, or run fewer '
    'stages.'
  )


@contextlib.contextmanager
def only_run(folder: pathlib.Path):
  """Holds a folder, so that two runs do not write the same files.

  Raises:
    DownloadError: if another run holds it.
  """
  import fcntl

  with open(folder / '.lock', 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise DownloadError(
        f'Another run is at work in {folder}: wait for it or stop it.'
      ) from None
    except OSError:
      pass  # A file system without locks.
    yield


def run(main) -> None:
  """Runs a command; what stops it becomes a message and an exit status."""
  try:
    main()
  except DownloadError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
  except OSError as error:
    where = error.filename or 'a file'
    if transfer.is_full_disk(error):
      print(transfer.full_disk_message(where), file=sys.stderr)
    else:
      print(f'{where}: {error.strerror or error}.', file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    print('\nInterrupted; run it again to go on.', file=sys.stderr, flush=True)
    # Nothing is buffered, and threads that wait for the network would hold up
    # the usual way out for a minute.
    os._exit(130)


def _stamp(path):
  return path.with_name(f'.{path.name}.verified')


def _state(path):
  stat = path.stat()
  return f'{stat.st_size} {stat.st_mtime_ns}\n'


def _obtain(file, progress):
  """Makes sure that one file is there."""
  file.path.parent.mkdir(parents=True, exist_ok=True)
  if file.path.exists():
    problem = _find_problem(file, file.path, transfer.Offer(), progress)
    if problem is None:
      mark_verified(file.path)
      return
    aside = set_aside(file.path)
    progress.say(f'{problem} It is {aside} now and is downloaded again.')
  for again in (True, False):
    offer = transfer.complete(file.url, file.part, file.size, progress)
    problem = _find_problem(file, file.part, offer, progress)
    if problem is None:
      os.rename(file.part, file.path)
      mark_verified(file.path)
      progress.say(f'{file.path} is complete and verified.')
      return
    if again:
      progress.say(f'{problem} It is downloaded once more.')
      progress.add(-transfer.size_of(file.part))
      file.part.unlink()
  aside = set_aside(file.part, file.path.name)
  raise DownloadError(f'{problem} It was wrong twice and is kept as {aside}.')


def _find_problem(file, path, offer, progress):
  """What is wrong with a file that should be complete, or None."""
  size, wanted = transfer.size_of(path), file.size or offer.size
  where = f'{path} (from {file.url})'
  if wanted is not None and size != wanted:
    return f'{where} has {size} bytes, expected {wanted}.'
  digest = file.digest or offer.digest
  if digest is not None:
    if size > _SLOW_TO_HASH:
      progress.say(f'Verifying {path} ({progress_lib.size_text(size)}).')
    kind, _, expected = digest.partition(':')
    found = _hash(path, kind)
    if found != expected:
      return f'{where} has the {kind} sum {found}, expected {expected}.'
  elif file.path.suffix == '.zip':
    try:
      zips.test(path)
    except zips.DamagedZipError as error:
      return str(error)
  return None


def _hash(path, kind):
  digest = hashlib.new(kind)
  with open(path, 'rb') as stream:
    while block := stream.read(_BLOCK):
      digest.update(block)
  return digest.hexdigest()
