"""Downloads of the weights in `published`, into the user's cache folder.

A file appears in the cache when it is complete and its checksum is right; an
interrupted download leaves nothing and begins anew.
"""

import functools
import logging
import os
import pathlib
import sys

from maskrcnn_jax import files
from maskrcnn_jax.errors import UserError, did_you_mean
from maskrcnn_jax.weights import published, tensor_files

_TRIES = 3
_TIMEOUT_SECONDS = 60
_TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)


def local(source: str | os.PathLike) -> str | os.PathLike:
  """Path of weights that are given by path or by name.

  Args:
    source: a name of `published.TABLE`, whose file is downloaded unless it is
      in the cache; anything else is a path, as is whatever exists.

  Raises:
    UserError: there is no such name; or the file cannot be had, or has another
      checksum.
  """
  name = os.fspath(source)
  path = pathlib.Path(name)
  if name in published.TABLE and not path.exists():
    return fetch(published.TABLE[name])
  families = {known.partition('/')[0] for known in published.TABLE}
  if name.partition('/')[0] in families and not path.parent.exists():
    hint = did_you_mean(name, published.TABLE)
    raise UserError(
      f'There are no weights {name}, neither as a file nor by name{hint} '
      'maskrcnn-jax weights lists the names.',
      path=name,
      given=name,
    )
  return source


def cached(weights: published.Weights) -> pathlib.Path:
  """Path of weights in the cache, whether they are there or not."""
  return files.cache_folder() / 'weights' / weights.name / weights.file


def fetch(weights: published.Weights) -> pathlib.Path:
  """The file of weights, downloaded unless it is in the cache.

  Raises:
    UserError: it cannot be downloaded, or its checksum is wrong.
  """
  if weights.by_script:
    raise UserError(
      f'{weights.name} has several files: bash {published.SCRIPT} downloads '
      'them; then name their prefix.',
      item=weights.name,
    )
  path = cached(weights)
  if path.is_file():
    stat = path.stat()
    _check(path, weights, (stat.st_size, stat.st_mtime_ns))
    return path
  logging.info('Downloading %s to %s', weights.url, path)
  if not weights.checksum:
    logging.warning(
      'No checksum of %s is known: it is only read as weights.', weights.name
    )
  with files.replaced(path) as unfinished:
    _download(weights, unfinished)
    if weights.checksum:
      found = _digest(unfinished, weights)
      if not found.startswith(weights.checksum):
        raise UserError(
          f'{weights.url} sent a file with the checksum {found}, wanted '
          f'{weights.checksum}...; it was not kept. {_other_ways(weights)}',
          path=path,
          item=weights.name,
          given=found,
          wanted=weights.checksum,
        )
    else:
      _read(unfinished, weights)
  return path


def _download(weights, unfinished: pathlib.Path) -> None:
  """Downloads a file, several times if the connection breaks."""
  import pooch
  import requests

  download = pooch.HTTPDownloader(
    progressbar=sys.stderr.isatty(), timeout=_TIMEOUT_SECONDS
  )
  for left in reversed(range(_TRIES)):
    try:
      download(weights.url, str(unfinished), None)
      break
    except requests.RequestException as error:
      answer = error.response
      is_final = answer is not None and (
        answer.status_code not in _TRANSIENT_STATUS
      )
      if not left or is_final:
        raise UserError(
          f'{weights.name} could not be downloaded from {weights.url} '
          f'({error}). {_other_ways(weights)}',
          path=cached(weights),
          item=weights.name,
          given=weights.url,
        ) from error


def _other_ways(weights) -> str:
  return (
    f'Either get that file another way and put it at {cached(weights)}, or '
    'start from a file of your own (--config.training.pretrained=FILE).'
  )


@functools.cache
def _check(path, weights, version) -> None:
  """Compares the checksum of a file in the cache, once for each version."""
  del version
  found = weights.checksum and _digest(path, weights)
  if not found.startswith(weights.checksum):
    raise UserError(
      f'{path} has the checksum {found}, wanted {weights.checksum}...: it is '
      'not the published file. Remove it, and it is downloaded again.',
      path=path,
      item=weights.name,
      given=found,
      wanted=weights.checksum,
    )


def _digest(path, weights) -> str:
  """Checksum of a file, as in `Weights.checksum`."""
  import pooch

  algorithm = weights.checksum.partition(':')[0]
  return f'{algorithm}:{pooch.file_hash(str(path), algorithm)}'


def _read(unfinished, weights) -> None:
  """Reads a file without a checksum: it may be truncated, or a web page."""
  try:
    tensor_files.read(unfinished)
  except UserError as error:
    raise UserError(
      f'{weights.url} sent no weights, or only a part; they were not kept. '
      f'{_other_ways(weights)}',
      path=cached(weights),
      item=weights.name,
      given=weights.url,
    ) from error
