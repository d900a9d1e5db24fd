"""Containment: a received checkpoint leads to no file outside its folder.

Checked before TensorStore or Orbax opens anything: links, devices, the sizes of
files, and every name in the metadata of Orbax and OCDBT.
"""

import json
import math
import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

import jax
import tensorstore as ts

from maskrcnn_jax.errors import UserError, brief

# Names of other places: absolute, by URL, or by way of the parent folder.
_ELSEWHERE = re.compile(r'^[/~\\]|://|(^|[^\w.])\.\.($|[^\w.])')
_MAX_METADATA_BYTES = 2**26
_MAX_NODE_BYTES = 2**27  # Of an unpacked node; OCDBT's own limit is 10**8.
# Numbers take more bytes than this share of their size, even packed.
_MAX_PACKED = 16
_SMALL_BYTES = 2**26


class CorruptCheckpointError(UserError):
  """A checkpoint is not as it was saved; `item` is the tensor, if known."""


def check_links(path: pathlib.Path, root: pathlib.Path) -> None:
  """Raises if a file of a folder lies elsewhere, or is no ordinary file.

  Args:
    path: folder or file; links in it are followed by nobody.
    root: folder, named by the user, that `path` must stay in.

  Raises:
    CorruptCheckpointError: with the path of the link.
  """
  inside = os.path.realpath(root)
  _check_link(path, inside)
  for folder, folders, names in os.walk(path):
    for name in folders + names:
      _check_link(pathlib.Path(folder, name), inside)


def _check_link(path: pathlib.Path, inside: str) -> None:
  target = pathlib.Path(os.path.realpath(path))
  if not target.is_relative_to(inside):
    raise CorruptCheckpointError(
      f'{path} is a link to {target}, outside of {inside}, and is not '
      'followed.',
      path=path,
      given=str(target),
    )
  if path.exists() and not (path.is_file() or path.is_dir()):
    raise CorruptCheckpointError(f'{path} is no file or folder.', path=path)


def check_state(item: pathlib.Path) -> None:
  """Raises if the metadata of the item `state` name other places.

  Args:
    item: `WORKDIR/checkpoints/STEP/state`.

  Raises:
    CorruptCheckpointError: with the path of the file, and the name.
  """
  for path in sorted(item.rglob('*')):
    # OCDBT keeps its data, in its own format, in folders named `d`. Nobody
    # reads the path in Orbax's commit_success.txt.
    is_json = path.suffix not in ('.ocdbt', '.txt') and path.parent.name != 'd'
    if is_json and path.is_file():
      for text in _texts(read_json(path)):
        _check_name(text, path)
  for path in sorted(item.rglob('manifest.ocdbt')):
    _check_manifest(path)


def read_json(path: pathlib.Path) -> Any:
  """The contents of a file of JSON that may be hostile.

  Raises:
    CorruptCheckpointError: it is too large or too deep, or no JSON.
  """
  try:
    if path.stat().st_size > _MAX_METADATA_BYTES:
      raise ValueError(f'it is larger than {_MAX_METADATA_BYTES:,} bytes')
    return json.loads(path.read_bytes())
  except (ValueError, RecursionError) as error:
    raise CorruptCheckpointError(
      f'{path} cannot be read: {error}', path=path
    ) from error


def _texts(value: Any) -> Iterator[str]:
  """All keys and texts in a value of JSON."""
  todo = [value]
  while todo:
    value = todo.pop()
    if isinstance(value, dict):
      todo += [*value, *value.values()]
    elif isinstance(value, list):
      todo += value
    elif isinstance(value, str):
      yield value


def _check_name(text: str, path: pathlib.Path) -> None:
  if _ELSEWHERE.search(text):
    raise CorruptCheckpointError(
      f'{path} names another place: {brief(text)}.', path=path, given=text
    )


def _check_manifest(path: pathlib.Path) -> None:
  """Checks the places of all nodes and values of an OCDBT database."""
  store = ts.KvStore.open(f'file://{urllib.parse.quote(str(path.parent))}/')
  store, seen, todo = store.result(), set(), [None]
  while todo:
    node = ts.ocdbt.dump(store, todo.pop()).result()
    limit = node.get('config', {}).get('max_decoded_node_bytes', 0)
    if limit > _MAX_NODE_BYTES:
      raise CorruptCheckpointError(
        f'{path} allows nodes of {limit:,} bytes.', path=path, given=limit
      )
    for location in _locations(node):
      kind, *names, _, _ = map(urllib.parse.unquote, location.split(':'))
      for name in names:
        _check_name(name, path)
      if kind != 'value' and location not in seen:
        seen.add(location)
        todo.append(location)


def _locations(node: Any) -> Iterator[str]:
  if isinstance(node, dict):
    names = ('location', 'indirect_value')
    yield from (node[name] for name in names if name in node)
    for value in node.values():
      yield from _locations(value)
  elif isinstance(node, list):
    for value in node:
      yield from _locations(value)


def check_size(item: pathlib.Path, shapes: Any) -> None:
  """Raises if arrays are much larger than the files they lie in.

  Args:
    item: `WORKDIR/checkpoints/STEP/state`.
    shapes: leaves with `shape` and `dtype`.
  """
  declared = sum(
    math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes)
  )
  found = sum(x.stat().st_size for x in item.rglob('*') if x.is_file())
  if declared > _MAX_PACKED * found + _SMALL_BYTES:
    raise CorruptCheckpointError(
      f'{item} declares tensors of {declared:,} bytes in files of {found:,}.',
      path=item,
      given=declared,
    )
