"""Checksums of a checkpoint: what was saved is what comes back, or it is named.

The item `health` of a checkpoint lists every tensor with its shape and a
checksum, and a digest of every other item. The checksum of a tensor is a sum
modulo 2**32 of one number for every 32-bit word, mixed from the word and its
place. So it does not depend on how the tensor is spread over devices; and as
the mixing can be undone, a change within one word, such as a flipped bit,
always changes it. Any other change goes unnoticed once in 2**32.
"""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskrcnn_jax.errors import UserError

# Characters that a message shows of an error of another library.
_MOST = 400
# Failures that say nothing about the files.
_UNRELATED = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)


class DamagedError(UserError):
  """A checkpoint is not what was saved."""


@contextlib.contextmanager
def naming_damage(path: pathlib.Path):
  """Raises `DamagedError` for whatever goes wrong while a file is read."""
  try:
    yield
  except (DamagedError, *_UNRELATED):
    raise
  # Readers of many kinds meet bytes that nobody wrote: anything can happen.
  except Exception as error:
    raise DamagedError(f'{path} cannot be read: {in_short(error)}') from error


def in_short(error: Exception) -> str:
  """Kind and text of an error of another library, which may be long."""
  text = f'{type(error).__name__}: {error}'
  if len(text) <= _MOST:
    return text
  # The cause is last.
  return f'{text[: _MOST // 2]} ... {text[-_MOST // 2 :]}'


def shapes(tree) -> dict[str, str]:
  """`params/fpn/...` -> `float32[3, 3, 256, 256]`."""
  return {
    name: f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'
    for name, leaf in _named(tree).items()
  }


def describe(state, items: Mapping[str, Any]) -> dict[str, Any]:
  """What `check_items` and `check_tensors` compare with, in types of JSON.

  Args:
    state: `jax.Array`s; waits for them.
    items: the other items of the checkpoint by name, in types of JSON.
  """
  sums, kinds = _checksums(state), shapes(state)
  health = {
    'tensors': {name: [kinds[name], sums[name]] for name in sums},
    'items': {name: _digest(value) for name, value in items.items()},
  }
  return {**health, 'digest': _digest(health)}


def check_health(health: Mapping[str, Any], path: pathlib.Path) -> None:
  """Raises `DamagedError` if the item itself is damaged.

  Args:
    health: as it was read.
    path: of the item, for the message.
  """
  if not isinstance(health, Mapping) or health.get('digest') != _digest(
    {k: v for k, v in health.items() if k != 'digest'}
  ):
    raise DamagedError(f'{path} is not what was saved.')


def check_item(health: Mapping[str, Any], path: pathlib.Path, value) -> None:
  """Raises `DamagedError` if an item is not the one that was saved.

  Args:
    health: of the checkpoint.
    path: of the item.
    value: what was read.
  """
  if health['items'].get(path.name) != _digest(value):
    raise DamagedError(f'{path} is not what was saved.')


def check_shapes(health: Mapping[str, Any], path, found: dict) -> None:
  """Raises `DamagedError` if a state says that it holds other tensors.

  Args:
    health: of the checkpoint.
    path: of the state.
    found: what the files say, as `shapes` returns it.
  """
  wanted = {name: kind for name, (kind, _) in health['tensors'].items()}
  for name in sorted({*wanted, *found}):
    if wanted.get(name) != found.get(name):
      raise DamagedError(
        f'{path} has {name} as {found.get(name)}, saved was {wanted.get(name)}.'
      )


def check_tensors(health: Mapping[str, Any], path, state) -> None:
  """Raises `DamagedError` if tensors are not those that were saved.

  Args:
    health: of the checkpoint.
    path: of the state.
    state: all of it, or a part with the same names.
  """
  sums = _checksums(state)
  wrong = [name for name in sums if health['tensors'][name][1] != sums[name]]
  if wrong:
    more = f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''
    raise DamagedError(
      f'{path}: tensor {wrong[0]}{more} has another checksum than saved.'
    )


def _named(tree) -> dict[str, Any]:
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {
    jax.tree_util.keystr(keys, simple=True, separator='/'): leaf
    for keys, leaf in leaves
  }


def _checksums(state) -> dict[str, int]:
  # One program for each shape: many tensors share one, and a program of all
  # would take long to compile.
  sums = {name: _checksum(leaf) for name, leaf in _named(state).items()}
  return {name: int(x) for name, x in jax.device_get(sums).items()}


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
  """A uint32 of all bits of an array and of their places."""
  words = _words(x)
  place = jnp.zeros(words.shape, jnp.uint32)
  for axis, size in enumerate(words.shape):
    step = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    place = place * jnp.uint32(size) + step
  return jnp.sum(_mixed(words ^ _mixed(place)), dtype=jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
  """The finalizer of MurmurHash3: another uint32 for every uint32."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def _words(x: jax.Array) -> jax.Array:
  """The bits of an array as uint32; of eight bytes, two in a last axis."""
  if x.dtype == bool:
    return x.astype(jnp.uint32)
  unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
  return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _digest(value) -> str:
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
