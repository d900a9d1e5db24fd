"""Brings one file over HTTP into a `.part`, across broken connections.

Every try goes on behind the last byte that is there, where the server allows
that. What was received is written at once, so that a killed run loses nothing.
"""

import base64
import contextlib
import dataclasses
import errno
import http.client
import os
import pathlib
import re
import time
import urllib.error
import urllib.request

import progress as progress_lib

_BLOCK = 2**20
_TIMEOUT_SECONDS = 60
_TRIES = 6  # In a row that got no further.
_BACKOFF_SECONDS = float(os.environ.get('DOWNLOAD_BACKOFF_SECONDS', '2'))
_LONGEST_BACKOFF_SECONDS = 60
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # HTTP: worth another try.
_RANGE_BEHIND_THE_END = 416


class DownloadError(Exception):
  """What stopped a download; the message is meant for the user."""


@dataclasses.dataclass(frozen=True)
class Offer:
  """What a server says about a file; None where it says nothing.

  Attributes:
    size: bytes of the whole file.
    digest: `md5:HEX` of it.
  """

  size: int | None = None
  digest: str | None = None


def complete(
  url: str,
  part: pathlib.Path,
  size: int | None,
  progress: progress_lib.Progress,
) -> Offer:
  """Completes a `.part`; returns what the server said about the file.

  Args:
    url: where it comes from.
    part: what is there of it, if anything.
    size: bytes that the whole must have, None if they are not known.
    progress: counts what arrives.

  Raises:
    DownloadError: if the server refuses, offers another size, or several tries
      get no further; if the disk is full. The part stays as it is.
  """
  failures, farthest = 0, size_of(part)
  while True:
    try:
      return _receive(url, part, size, progress)
    except urllib.error.HTTPError as error:
      if error.code not in _TRANSIENT:
        raise DownloadError(f'{url}: {error}.') from error
      reason = str(error)
    except (OSError, http.client.HTTPException) as error:
      reason = str(error) or type(error).__name__
    if size_of(part) > farthest:
      failures, farthest = 0, size_of(part)
    failures += 1
    if failures == _TRIES:
      raise DownloadError(
        f'{url}: {reason}. Gave up after {_TRIES} tries; {size_of(part)} bytes '
        f'are kept in {part}, and the next run goes on there.'
      )
    delay = _BACKOFF_SECONDS * 2 ** (failures - 1)
    delay = min(delay, _LONGEST_BACKOFF_SECONDS)
    progress.say(f'{url}: {reason}. Trying again in {delay:g} s.')
    time.sleep(delay)


def size_of(path: pathlib.Path) -> int:
  """Bytes of a file, 0 if there is none."""
  return path.stat().st_size if path.exists() else 0


def full_disk_message(path: str | os.PathLike) -> str:
  """What to say when a file could not be written for want of space."""
  return (
    f'The disk is full: {path} could not be written. What was finished before '
    'is kept. Free some space and run this again: it goes on from there.'
  )


def is_full_disk(error: OSError) -> bool:
  """Whether an error says that there is no space, or no quota, left."""
  return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _receive(url, part, size, progress):
  """One try to complete a `.part`; raises where it ends early."""
  have = size_of(part)
  if have and have == size:
    return Offer()
  headers = {'Range': f'bytes={have}-'} if have else {}
  request = urllib.request.Request(url, headers=headers)
  try:
    response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
  except urllib.error.HTTPError as error:
    if error.code != _RANGE_BEHIND_THE_END:
      raise
    offer = _read_offer(error)
    if offer.size == have:
      return offer
    progress.add(-have)
    part.unlink()
    raise ConnectionError('the part was longer than the file') from error
  with contextlib.closing(response):
    offer = _read_offer(response)
    if size and offer.size and size != offer.size:
      raise DownloadError(
        f'{url} has {offer.size} bytes, expected {size}: it is another file.'
      )
    if response.status != 206 and have:  # The server always sends all of it.
      progress.add(-have)
      have = 0
    have += _store(response, part, have, progress)
    if offer.size is not None and have < offer.size:
      raise ConnectionError(f'it ended after {have} of {offer.size} bytes')
  return offer


def _read_offer(response):
  """Size and MD5 of the whole file, from the headers of an answer."""
  headers = response.headers
  size = headers.get('Content-Length', '')
  if response.status in (206, _RANGE_BEHIND_THE_END):
    size = headers.get('Content-Range', '').rpartition('/')[2]
  # Google's buckets send crc32c=..., md5=..., in Base64 and of the file as it
  # is stored; where that is compressed, other bytes arrive.
  hashes = ','.join(headers.get_all('x-goog-hash', []))
  md5 = re.search(r'md5=([\w+/]+=*)', hashes)
  stored = headers.get('x-goog-stored-content-encoding', 'identity')
  return Offer(
    int(size) if size.isdigit() else None,
    f'md5:{base64.b64decode(md5[1]).hex()}'
    if md5 and stored == 'identity'
    else None,
  )


def _store(response, part, begin, progress):
  """Writes an answer behind the first bytes of a file; returns how many."""
  stored = 0
  with _open(part, begin) as stream:
    while block := response.read1(_BLOCK):
      rest = memoryview(block)
      while rest:
        with _disk_errors(part):
          written = stream.write(rest)
        rest = rest[written:]
        stored += written
        progress.add(written)
  return stored


def _open(part, begin):
  """The file, unbuffered: what was received is in it whatever happens next."""
  with _disk_errors(part):
    stream = open(part, 'ab', buffering=0)  # noqa: SIM115
    stream.truncate(begin)
    return stream


@contextlib.contextmanager
def _disk_errors(path):
  """Tells errors of the disk from those of the network."""
  try:
    yield
  except OSError as error:
    if is_full_disk(error):
      raise DownloadError(full_disk_message(path)) from error
    raise DownloadError(
      f'{path} cannot be written: {error.strerror}.'
    ) from error
