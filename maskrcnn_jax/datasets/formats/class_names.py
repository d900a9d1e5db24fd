"""Class names of formats whose labels hold numbers."""

import collections
import os
import pathlib
from collections.abc import Mapping

import yaml

from maskrcnn_jax import files
from maskrcnn_jax.datasets.coco_values import parse_number, read_integer
from maskrcnn_jax.errors import UserError, invalid

# Files with YOLO's class names, in the folder of the labels or the two above.
FILES = ('data.yaml', 'data.yml', 'classes.txt', 'obj.names')

_ENDINGS = ('.txt', '.names', '.yaml', '.yml', '.json', '.csv')
_MAX_BYTES = 2**18  # A thousand names take a tenth of it.


class _NoAliasLoader(yaml.BaseLoader):
  """Loader of texts alone, without aliases or keys that are there twice.

  Ten lines of aliases hold a billion entries, and `no` may be a name.
  """

  def compose_node(self, parent, index):
    if self.check_event(yaml.AliasEvent):
      raise yaml.YAMLError('aliases (*name) are not read')
    return super().compose_node(parent, index)

  def construct_mapping(self, node, deep=False):
    keys = collections.Counter(str(key.value) for key, _ in node.value)
    if repeated := [key for key, count in keys.items() if count > 1]:
      raise yaml.YAMLError(f'it has {repeated[0]!r} twice')
    return super().construct_mapping(node, deep)


def read(classes: str, first: int = 1) -> dict[int, str]:
  """Class names by category id.

  Args:
    classes: names joined by commas, or a file: one name a line, or YAML with
      `names`.
    first: category id of the first name.

  Raises:
    UserError: there are no names, or a file cannot be read.
  """
  if os.path.isfile(classes):
    names = _read_file(pathlib.Path(classes))
  elif classes.lower().endswith(_ENDINGS):
    # A mistyped file would become the name of the only class.
    raise UserError(
      f'--classes: there is no file {classes}.',
      argument='classes',
      path=classes,
      given=classes,
    )
  else:
    names = classes.split(',')
  pairs = names.items() if isinstance(names, Mapping) else enumerate(names)
  try:
    # Numbers in files are YOLO's, from 0.
    pairs = [
      (parse_number(str(k), read_integer) + first, name.strip())
      for k, name in pairs
    ]
  except (AttributeError, ValueError):
    raise invalid('classes', classes, 'names by number') from None
  names = dict(pairs)
  if not names or not all(names.values()):
    raise invalid('classes', classes, 'names')
  for noun, given in zip(('number', 'name'), zip(*pairs)):
    if repeated := [x for x, n in collections.Counter(given).items() if n > 1]:
      raise UserError(
        f'The classes {classes} have the {noun} {repeated[0]!r} twice.',
        argument='classes',
        path=classes,
        item=repeated[0],
      )
  return names


def find(labels_dir: str | os.PathLike) -> str:
  """The file of class names in the folder of the labels or the two above.

  Raises:
    UserError: there is none, or several have other names.
  """
  folder = pathlib.Path(labels_dir).resolve()
  places = (folder, *list(folder.parents)[:2])
  paths = [str(place / name) for place in places for name in FILES]
  found = [path for path in paths if os.path.isfile(path)]
  for other in found[1:]:
    names, others = read(found[0]), _read_any(other)
    differing = [k for k in names if others.get(k, names[k]) != names[k]]
    if differing:
      number = differing[0]
      raise UserError(
        f'{found[0]} and {other} have other names for a class, such as '
        f'{names[number]!r} and {others[number]!r}: name one of the files by '
        '--classes.',
        argument='classes',
        path=other,
        item=names[number],
        given=others[number],
      )
  if found:
    return found[0]
  raise UserError(
    f'There are no class names: neither {labels_dir} nor the two folders above '
    f'it hold one of {", ".join(FILES)}. Give the file, or the names '
    'joined by commas, with --classes.',
    argument='classes',
    path=labels_dir,
    wanted=FILES,
  )


def _read_any(path) -> dict[int, str]:
  """The names of a file; none if it is of another program."""
  try:
    return read(path)
  except UserError:
    return {}


def _read_file(path):
  if path.stat().st_size > _MAX_BYTES:
    raise UserError(f'{path} is too large for a list of names.', path=path)
  try:
    text = files.decode_text(path.read_bytes())
    if path.suffix not in ('.yaml', '.yml'):
      return [line.strip() for line in text.splitlines() if line.strip()]
    content = yaml.load(text, _NoAliasLoader)
  except (yaml.YAMLError, ValueError, RecursionError) as error:
    message = f'{path} is no file of class names: {error}'
    raise UserError(message, path=path) from error
  names = content.get('names') if isinstance(content, Mapping) else None
  if not isinstance(names, list | Mapping):
    raise UserError(
      f'{path} must have a list or a mapping `names`.', path=path, item='names'
    )
  return names
