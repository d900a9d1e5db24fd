"""Checksums: a checkpoint is as it was saved, or its corrupt part is named.

The item `health` of a checkpoint (its name on disk since the first version)
lists every tensor with its shape and a checksum, and a digest of every other
item. The checksum of a tensor is the sum modulo 2**32 of one number for every
32-bit word, mixed from the word and its position, so it does not depend on how
the tensor is sharded. As the mixing is invertible, any change within one word,
such as a flipped bit, changes it; any other goes unnoticed once in 2**32.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from maskrcnn_jax.checkpoints import containment
from maskrcnn_jax.checkpoints.containment import CorruptCheckpointError

ITEM = 'health'
# Characters of another library's error that a message shows.
_MAX_CHARACTERS = 400
# Failures that say nothing about the files.
_UNRELATED = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)


@contextlib.contextmanager
def reading(path: pathlib.Path):
  """Raises `CorruptCheckpointError` for any failure to read an item."""
  try:
    yield
  except (CorruptCheckpointError, *_UNRELATED):
    raise
  # Readers of corrupt bytes may raise anything.
  except Exception as error:
    raise CorruptCheckpointError(
      f'{path} cannot be read: {summary(error)}', path=path
    ) from error


def summary(error: Exception) -> str:
  """Cause, type and text of an error of another library, shortened."""
  text = f'{type(error).__name__}: {error}'
  if len(text) > _MAX_CHARACTERS:
    half = _MAX_CHARACTERS // 2
    text = f'{text[:half]} ... {text[-half:]}'
  code = system_code(error)
  return text if code is None else f'{os.strerror(code)} ({text})'


def system_code(error: BaseException | None) -> int | None:
  """The `errno` behind an error, such as `errno.ENOSPC`; None if unknown.

  TensorStore puts it into its messages only, sometimes in the middle.
  """
  while error is not None:
    if isinstance(error, OSError) and error.errno:
      return error.errno
    text = str(error)
    found = re.search(r"os_error_code='?(\d+)", text)
    if found:
      return int(found[1])
    for code in errno.errorcode:
      if f': {os.strerror(code)}' in text:
        return code
    error = error.__cause__ or error.__context__
  return None


def shapes(tree) -> dict[str, str]:
  """`params/fpn/...` -> `float32[3, 3, 256, 256]`."""
  return {
    name: f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'
    for name, leaf in _named(tree).items()
  }


def compute(state, items: Mapping[str, Any]) -> dict[str, Any]:
  """Checksums of a checkpoint, in types of JSON.

  Args:
    state: `jax.Array`s; waits for them.
    items: the other items of the checkpoint by name, in types of JSON.
  """
  sums, kinds = _checksums(state), shapes(state)
  checksums = {
    'tensors': {name: [kinds[name], sums[name]] for name in sums},
    'items': {name: _digest(value) for name, value in items.items()},
  }
  return {**checksums, 'digest': _digest(checksums)}


def read(path: pathlib.Path) -> dict[str, Any] | None:
  """The checksums of a checkpoint; None if an older version saved it.

  Raises:
    CorruptCheckpointError: they are missing or corrupt themselves.
  """
  item = path / ITEM
  if not item.exists():
    contents = path / '_CHECKPOINT_METADATA'
    if contents.exists() and f'"{ITEM}"'.encode() in contents.read_bytes():
      raise CorruptCheckpointError(f'{item} is missing.', path=item)
    return None
  with reading(item):
    checksums = containment.read_json(item / 'metadata')
    content = {k: v for k, v in checksums.items() if k != 'digest'}
    kinds = [str(kind) for kind, _ in content['tensors'].values()]
    items = [str(digest) for digest in content['items'].values()]
    if not (kinds and items and checksums.get('digest') == _digest(content)):
      raise CorruptCheckpointError(f'{item} is corrupt.', path=item)
  return checksums


def read_item(path: pathlib.Path, name: str):
  """One item of a checkpoint other than `state`.

  Raises:
    CorruptCheckpointError: it is not what was saved.
  """
  checksums, item = read(path), path / name
  with reading(item):
    value = containment.read_json(item / 'metadata')
    if checksums and checksums['items'].get(name) != _digest(value):
      raise CorruptCheckpointError(f'{item} is not what was saved.', path=item)
  return value


def read_shapes(path: pathlib.Path, checksums: Mapping | None):
  """Shapes and dtypes of the saved state as nested dicts and lists, checked.

  Args:
    checksums: of the checkpoint, if it has any.

  Raises:
    CorruptCheckpointError: the files list other tensors than were saved.
  """
  item = path / 'state'
  with reading(item):
    containment.check_state(item)
    tree = ocp.StandardCheckpointHandler().metadata(item).tree
    found = shapes(tree)
  if checksums:
    saved = {name: kind for name, (kind, _) in checksums['tensors'].items()}
    for name in sorted({*saved, *found}):
      given, wanted = found.get(name), saved.get(name)
      if given != wanted:
        raise CorruptCheckpointError(
          f'{item}: tensor {name} is {given}, saved was {wanted}.',
          path=item,
          item=name,
          given=given,
          wanted=wanted,
        )
  return tree


def check_tensors(checksums: Mapping[str, Any], path, state) -> None:
  """Raises `CorruptCheckpointError` if tensors are not those that were saved.

  Args:
    path: of the item `state`.
  """
  sums, saved = _checksums(state), checksums['tensors']
  wrong = [name for name in sums if saved[name][1] != sums[name]]
  if wrong:
    more = f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''
    raise CorruptCheckpointError(
      f'{path}: the checksum of tensor {wrong[0]}{more} is not the saved one.',
      path=path,
      item=wrong[0],
      given=sums[wrong[0]],
      wanted=saved[wrong[0]][1],
    )


def model_digest(variables: Mapping[str, Any]) -> str:
  """Digest of a model, by the checksums of its variables, see `restore`."""
  return _digest(_checksums(variables))


def saved_model_digest(checksums: Mapping[str, Any]) -> str:
  """`model_digest` of what `restore` would read, without reading it.

  Args:
    checksums: of the checkpoint, see `read`.
  """
  sums = {name: saved for name, (_, saved) in checksums['tensors'].items()}
  averaged = {name: x for name, x in sums.items() if name.startswith('ema/')}
  parts = 'batch_stats/', *(() if averaged else ('params/',))
  model = {name: x for name, x in sums.items() if name.startswith(parts)}
  for name, value in averaged.items():
    model[name.replace('ema', 'params', 1)] = value
  return _digest(model)


def _named(tree) -> dict[str, Any]:
  return {
    jax.tree_util.keystr(keys, simple=True, separator='/'): leaf
    for keys, leaf in jax.tree.leaves_with_path(tree)
  }


def _checksums(state) -> dict[str, int]:
  # One program for each shape: many tensors share one, and a program of all
  # would take long to compile.
  sums = {name: _checksum(leaf) for name, leaf in _named(state).items()}
  return {name: int(x) for name, x in jax.device_get(sums).items()}


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
  """A uint32 of all bits of an array and of their positions."""
  words = _words(x)
  position = jnp.zeros(words.shape, jnp.uint32)
  for axis, size in enumerate(words.shape):
    step = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    position = position * jnp.uint32(size) + step
  return jnp.sum(_mixed(words ^ _mixed(position)), dtype=jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
  """The finalizer of MurmurHash3: another uint32 for every uint32."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def _words(x: jax.Array) -> jax.Array:
  """The bits of an array as uint32; eight bytes make two in a last axis."""
  if x.dtype == bool:
    return x.astype(jnp.uint32)
  unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
  return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _digest(value) -> str:
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
