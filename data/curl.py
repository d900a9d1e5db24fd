"""Downloads with curl: several at a time, resumed and verified.

A file is `NAME.part` until it is complete and verified. `.NAME.verified` beside
it notes its size and time, so that the next run does not read it again.
"""

import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
import subprocess
import sys
import threading

from maskrcnn_jax.errors import UserError

_TRIES = 6  # In a row without progress.
_BACKOFF_SECONDS = float(os.environ.get('DOWNLOAD_BACKOFF_SECONDS', '2'))
_LONGEST_BACKOFF_SECONDS = 60
_SECONDS_ON_TERMINAL, _SECONDS_IN_LOG = 2, 30
# A connection that brings nothing for this long counts as broken.
_STALL_SECONDS = '60'
# Exit codes of curl.
_HTTP_ERROR, _WRITE_ERROR, _NO_RANGES, _TOO_LARGE = 22, 23, 33, 63
_TRANSIENT = (408, 425, 429)  # HTTP below 500 that are worth another try.
_RANGE_BEYOND_THE_END = 416


@dataclasses.dataclass(frozen=True)
class File:
  """A file to download.

  Attributes:
    url: its source.
    path: its place on disk.
    size: bytes; None if not known.
    digest: `sha256:HEX` or `md5:HEX`; None if not known. A zip is then tested
      by the CRC of every member.
  """

  url: str
  path: pathlib.Path
  size: int | None = None
  digest: str | None = None

  @property
  def part(self) -> pathlib.Path:
    """Its place while it is not complete."""
    return self.path.with_name(f'{self.path.name}.part')


def download(files: list[File]) -> None:
  """Downloads all files that are not there and verified.

  A file that is there and wrong is renamed to `NAME.bad`, never removed, and
  downloaded again. A download that is wrong is repeated once.

  Raises:
    UserError: after all files were tried; names those that failed.
  """
  files = [file for file in files if not is_verified(file.path)]
  if not files:
    return
  curls = _Curls()
  executor = concurrent.futures.ThreadPoolExecutor(len(files))
  try:
    tasks = [executor.submit(_obtain, file, curls) for file in files]
    _print_progress(files, tasks)
    errors = [error for task in tasks if (error := task.exception())]
  finally:
    curls.stop()
    executor.shutdown(wait=False, cancel_futures=True)
  for error in errors:
    if not isinstance(error, UserError):
      raise error
  if errors:
    raise UserError('\n'.join(map(str, errors)), path=errors[0].path)


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
  aside, number = path.with_name(f'{name}.bad'), 1
  while aside.exists():
    number += 1
    aside = path.with_name(f'{name}.bad{number}')
  return path.rename(aside)


def size_of(path: pathlib.Path) -> int:
  """Bytes of a file, 0 if there is none."""
  return path.stat().st_size if path.exists() else 0


def _print_progress(files, tasks) -> None:
  """Prints how many bytes are there until all tasks are done."""
  end = '\r' if sys.stdout.isatty() else '\n'
  seconds = _SECONDS_ON_TERMINAL if end == '\r' else _SECONDS_IN_LOG
  total = sum(file.size or 0 for file in files)
  while concurrent.futures.wait(tasks, seconds).not_done:
    done = sum(size_of(file.part) + size_of(file.path) for file in files)
    print(f'{done / 1e9:.1f} of {total / 1e9:.1f} GB', end=end, flush=True)


def _obtain(file, curls) -> None:
  """Makes sure that one file is there."""
  file.path.parent.mkdir(parents=True, exist_ok=True)
  if file.path.exists():
    problem = _find_problem(file, file.path)
    if problem is None:
      mark_verified(file.path)
      return
    aside = set_aside(file.path)
    print(f'{problem} It is {aside} now and is downloaded again.', flush=True)
  for is_last in (False, True):
    _complete(file, curls)
    problem = _find_problem(file, file.part)
    if problem is None:
      file.part.rename(file.path)
      mark_verified(file.path)
      print(f'{file.path} is complete and verified.', flush=True)
      return
    if not is_last:
      print(f'{problem} It is downloaded once more.', flush=True)
      file.part.unlink()
  aside = set_aside(file.part, file.path.name)
  raise UserError(
    f'{problem} It was wrong twice and is kept as {aside}.', path=aside
  )


def _complete(file, curls) -> None:
  """Completes a `.part`, over as many connections as it takes.

  Every try continues after the last byte that is there. curl's own `--retry`
  would start again where the process started.

  Raises:
    UserError: the server refuses, several tries bring nothing, or the disk is
      full. The part stays as it is.
  """
  failures, farthest = 0, size_of(file.part)
  while file.size is None or size_of(file.part) != file.size:
    code, status, message = curls.run(file)
    if code == 0 or status == _RANGE_BEYOND_THE_END:
      return
    problem = f'{file.url}: {message}'
    if code == _WRITE_ERROR:
      raise UserError(
        f'{file.part} could not be written ({message}). If the disk is full, '
        'free some space and run this again: it continues from there.',
        path=file.part,
      )
    refused = code == _HTTP_ERROR and status < 500 and status not in _TRANSIENT
    if refused or code == _TOO_LARGE:
      raise UserError(problem, path=file.path, given=status, wanted=file.size)
    if code == _NO_RANGES:  # The server always sends all of it.
      file.part.unlink()
    if size_of(file.part) > farthest:
      failures, farthest = 0, size_of(file.part)
    failures += 1
    if failures == _TRIES:
      raise UserError(
        f'{problem}. Gave up after {_TRIES} tries; {size_of(file.part)} bytes '
        f'are kept in {file.part}, and the next run continues there.',
        path=file.part,
        given=_TRIES,
      )
    delay = min(
      _BACKOFF_SECONDS * 2 ** (failures - 1), _LONGEST_BACKOFF_SECONDS
    )
    print(f'{problem}. Trying again in {delay:g} s.', flush=True)
    curls.wait(delay)


class _Curls:
  """Processes of curl, which an interruption stops all at once."""

  def __init__(self):
    self._stopped = threading.Event()
    self._running = set()

  def run(self, file: File) -> tuple[int, int, str]:
    """Exit code, HTTP status and message of one try to complete a part."""
    command = ['curl', '--fail', '--location', '--silent', '--show-error']
    command += ['--connect-timeout', _STALL_SECONDS, '--speed-limit', '1']
    command += ['--speed-time', _STALL_SECONDS, '--write-out', '%{http_code}']
    command += ['--continue-at', '-', '--output', file.part]
    if file.size is not None:
      command += ['--max-filesize', str(file.size)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
      [*command, file.url], stdout=pipe, stderr=pipe, text=True
    )
    self._running.add(process)
    self.wait(0)
    status, message = process.communicate()
    self._running.discard(process)
    self.wait(0)
    return process.returncode, int(status or 0), message.strip()

  def wait(self, seconds: float) -> None:
    """Sleeps; raises if the downloads are stopped."""
    if self._stopped.wait(seconds):
      self.stop()
      raise UserError('The downloads were stopped.')

  def stop(self) -> None:
    """Ends all processes."""
    self._stopped.set()
    for process in list(self._running):
      process.terminate()


def _find_problem(file, path) -> str | None:
  """The difference between a file and what it should be, or None."""
  where, size = f'{path} (from {file.url})', size_of(path)
  if file.size is not None and size != file.size:
    return f'{where} has {size} bytes, expected {file.size}.'
  if file.digest is not None:
    kind, _, expected = file.digest.partition(':')
    with path.open('rb') as stream:
      found = hashlib.file_digest(stream, kind).hexdigest()
    if found != expected:
      return f'{where} has the {kind} sum {found}, expected {expected}.'
  elif file.path.suffix == '.zip':
    tested = subprocess.run(
      ['unzip', '-qq', '-t', path],
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      errors='replace',
    )
    if tested.returncode:
      problem = (tested.stdout + tested.stderr).strip()
      return f'{where} is a corrupt zip file: {problem}.'
  return None


def _stamp(path):
  return path.with_name(f'.{path.name}.verified')


def _state(path):
  stat = path.stat()
  return f'{stat.st_size} {stat.st_mtime_ns}\n'
