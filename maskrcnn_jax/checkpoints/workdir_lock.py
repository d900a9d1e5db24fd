"""Lock of a workdir: one training run at a time.

`WORKDIR/run.lock` names the run. The kernel releases its `flock` when the
process ends, however that happens. Where the file system has no `flock`, or for
a run of another machine, the time of the file is a heartbeat.
"""

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping

import jax

from maskrcnn_jax.checkpoints import foreign_files
from maskrcnn_jax.checkpoints.compatibility import WorkdirError
from maskrcnn_jax.distributed import collectives
from maskrcnn_jax.errors import UserError

FILE = 'run.lock'
_BEAT_SECONDS = 5.0
# A run of another machine whose heartbeat stands still for this long is gone.
_STALE_SECONDS = 45.0
# For a run that takes over a stale lock at this moment to write its own.
_TAKEOVER_SECONDS = 5.0


@contextlib.contextmanager
def held(workdir) -> Iterator[None]:
  """Holds the lock of a workdir for a training run; all processes call it.

  Process 0 takes it for all of them. A stale lock is replaced; that of another
  machine after `_STALE_SECONDS` without a heartbeat.

  Args:
    workdir: directory of the run; made if missing, and removed again if the
      run leaves nothing in it.

  Raises:
    WorkdirError: another run holds it; `item` is its pid, `given` its host. Or
      files of a user are in the way, see `foreign_files`.
    OSError: the folder cannot be written.
  """
  lock = failure = None
  if jax.process_index() == 0:
    try:
      foreign_files.check(workdir)
      lock = _Lock(pathlib.Path(workdir))
    except UserError as error:
      failure = [str(error), error.item, error.given]
    except OSError as error:
      failure = [f'{error.strerror}: {error.filename}', None, None]
  failure = collectives.first_error(failure)
  if failure:
    text, pid, host = failure
    raise WorkdirError(text, path=workdir, item=pid, given=host)
  try:
    yield
  finally:
    if lock:
      lock.release()


class _Lock:
  """The lock file of this process, and the thread of its heartbeat."""

  def __init__(self, workdir: pathlib.Path):
    self._workdir, self._path = workdir, workdir / FILE
    self._is_new = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    self._file = self._take()
    self._released = threading.Event()
    self._thread = threading.Thread(target=self._beat, daemon=True)
    self._thread.start()

  def _take(self) -> int:
    # Complete and locked before it has its name.
    own = self._path.with_name(f'.{FILE}-{secrets.token_hex(8)}.unfinished')
    file = os.open(own, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
      os.write(file, json.dumps(_identity()).encode())
      has_flock, end = _flock(file), time.monotonic() + _TAKEOVER_SECONDS
      while not _create(own, self._path):
        if self._replace_stale(own, time.monotonic() > end):
          # Without `flock` another run may replace the same stale lock.
          time.sleep(0 if has_flock else 1)
          if not self._is_own(file):
            raise self._error(_read(self._path))
          break
    except BaseException:
      os.close(file)
      raise
    finally:
      own.unlink(missing_ok=True)
    return file

  def _replace_stale(self, own: pathlib.Path, is_late: bool) -> bool:
    """Replaces the lock of a run that is gone; False: try again.

    Raises:
      WorkdirError: the run is alive, or the file is of a user.
    """
    try:
      old = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
      return False
    try:
      is_free, holder = _flock(old), _read(self._path)
      if not self._is_own(old):
        return False
      # Empty it is where there are no hard links, for a moment.
      is_foreign = not holder and os.fstat(old).st_size
      if is_foreign and not foreign_files.is_of_a_run(self._workdir):
        raise foreign_files.error(self._workdir, FILE)
      is_here = holder.get('machine') == _machine()
      if is_free is False:
        if is_late or not is_here or _is_running(holder):
          raise self._error(holder)
        time.sleep(0.1)
        return False
      if is_here:
        is_alive = not is_free and _is_running(holder)
      else:
        is_alive = self._beats(holder)
      if is_alive:
        raise self._error(holder)
      logging.warning('The run that %s is gone.', _described(holder))
      own.replace(self._path)
      return True
    finally:
      os.close(old)

  def _beats(self, holder: Mapping) -> bool:
    """Waits for the heartbeat of a run of another machine."""
    logging.warning(
      '%s is locked: %s. Waiting up to %.0f s for its heartbeat.',
      *(self._workdir, _described(holder), _STALE_SECONDS),
    )
    before, end = _mark(self._path), time.monotonic() + _STALE_SECONDS
    while time.monotonic() < end:
      time.sleep(_BEAT_SECONDS / 5)
      if _mark(self._path) != before:
        return True
    return False

  def _error(self, holder: Mapping) -> WorkdirError:
    return WorkdirError(
      f'{self._workdir} is in use: {_described(holder)}. Nothing was changed; '
      'wait for its end, stop it, or take another workdir.',
      path=self._workdir,
      item=holder.get('pid'),
      given=holder.get('host'),
    )

  def _is_own(self, file: int) -> bool:
    """Whether the lock still is this open file."""
    with contextlib.suppress(FileNotFoundError):
      return os.path.samestat(os.fstat(file), os.lstat(self._path))
    return False

  def _beat(self) -> None:
    while not self._released.wait(_BEAT_SECONDS):
      with contextlib.suppress(OSError):
        os.utime(self._file)
        if not self._is_own(self._file):
          # This process stood still, and another run took its place.
          print(self._error(_read(self._path)), file=sys.__stderr__, flush=True)
          os._exit(2)

  def release(self) -> None:
    self._released.set()
    self._thread.join()
    with contextlib.suppress(OSError):
      if self._is_own(self._file):
        self._path.unlink()
      if self._is_new:
        self._workdir.rmdir()  # Only if it is empty.
    os.close(self._file)


def _create(own: pathlib.Path, path: pathlib.Path) -> bool:
  """Gives a file its name if nobody has it."""
  try:
    os.link(own, path)
  except FileExistsError:
    return False
  except OSError:  # A file system without hard links.
    try:
      path.touch(exist_ok=False)
    except FileExistsError:
      return False
    own.replace(path)
  return True


def _flock(file: int) -> bool | None:
  """Locks an open file: True; False if another does; None: no `flock`."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:
    return None
  return True


def _read(path: pathlib.Path) -> dict:
  """The run of a lock file; {} if it says nothing."""
  errors = (OSError, ValueError, TypeError, KeyError, RecursionError)
  with contextlib.suppress(*errors):
    found = json.loads(path.read_bytes()[:4096])
    texts = [found[k] for k in ('host', 'since', 'machine', 'started')]
    # Anybody may have written it.
    if all(map(str.isprintable, texts)) and 0 < int(found['pid']) < 2**31:
      return {**found, 'pid': int(found['pid'])}
  return {}


def _mark(path: pathlib.Path) -> tuple[int, int] | None:
  """File and time of a lock; opened, as NFS asks its server only then."""
  with contextlib.suppress(OSError), path.open('rb') as file:
    found = os.fstat(file.fileno())
    return found.st_ino, found.st_mtime_ns
  return None


def _identity() -> dict[str, str | int]:
  return {
    'host': socket.gethostname(),
    'pid': os.getpid(),
    'since': time.strftime('%Y-%m-%d %H:%M:%S %z'),
    'machine': _machine(),
    'started': _started(os.getpid()) or '',
  }


def _described(holder: Mapping) -> str:
  pid, host, since = (holder.get(x, '?') for x in ('pid', 'host', 'since'))
  return f'process {pid} on {host} trains there since {since}'


def _machine() -> str:
  """This machine since its start, and the processes that are seen here."""
  with contextlib.suppress(OSError):
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.readlink("/proc/self/ns/pid")}'
  return f'process {os.getpid()}'  # A system that does not say it.


def _started(pid: int) -> str | None:
  """Start time of a process in the kernel's ticks; None if it is gone."""
  with contextlib.suppress(OSError, IndexError):
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
    state, *fields = stat.rpartition(')')[2].split()
    return None if state in 'ZX' else fields[18]
  return None


def _is_running(holder: Mapping) -> bool:
  """Whether a process of this machine still is the one that took a lock."""
  return _started(holder['pid']) == holder['started']
