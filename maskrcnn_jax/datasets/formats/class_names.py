"""Class names of label formats that do not store them with the labels."""

import os
import pathlib
from collections.abc import Mapping

import yaml

from maskrcnn_jax.errors import UserError

# Files with YOLO's class names, in the folder of the labels or the two above.
_NAME_FILES = ('data.yaml', 'data.yml', 'classes.txt', 'obj.names')
_DEFAULT_CLASS = 'object'


def read(
  data_format: str, labels_dir: str | os.PathLike, classes: str | None
) -> dict[int, str]:
  """Class names by category id: from 0 for YOLO, else from 1.

  Args:
    data_format: one of `convert.FORMATS` but COCO.
    labels_dir: folder of YOLO's text files; name files are searched there.
    classes: names joined by commas, or a file: one name a line, or YAML with
      `names`. None: masks are of one class, and YOLO has a name file.

  Raises:
    UserError: there are no names, or a file cannot be read.
  """
  first = 0 if data_format == 'yolo' else 1
  if classes is None:
    if first:
      return {first: _DEFAULT_CLASS}
    classes = _find_file(labels_dir)
  if os.path.isfile(classes):
    names = _read_file(pathlib.Path(classes))
  else:
    names = classes.split(',')
  if not isinstance(names, Mapping):
    names = dict(enumerate(names, start=first))
  elif first:
    # YOLO's numbers are from 0.
    names = {int(number) + first: name for number, name in names.items()}
  names = {int(number): str(name).strip() for number, name in names.items()}
  if not names or not all(names.values()):
    raise UserError(
      f'--classes must be names, got {classes!r}.',
      argument='classes',
      given=classes,
    )
  return names


def _find_file(labels_dir) -> str:
  folder = pathlib.Path(labels_dir).resolve()
  for place in (folder, *list(folder.parents)[:2]):
    for name in _NAME_FILES:
      if (place / name).is_file():
        return str(place / name)
  raise UserError(
    f'There are no class names: neither {labels_dir} nor the two folders above '
    f'it hold one of {", ".join(_NAME_FILES)}. Give the file, or the names '
    'joined by commas, with --classes.',
    argument='classes',
    path=labels_dir,
    wanted=_NAME_FILES,
  )


def _read_file(path: pathlib.Path):
  text = path.read_text(encoding='utf-8')
  if path.suffix not in ('.yaml', '.yml'):
    return [line.strip() for line in text.splitlines() if line.strip()]
  try:
    content = yaml.safe_load(text)
  except yaml.YAMLError as error:
    raise UserError(f'{path} is not a YAML file: {error}', path=path) from error
  names = content.get('names') if isinstance(content, Mapping) else None
  if not isinstance(names, list | Mapping):
    raise UserError(
      f'{path} must have a list or a mapping `names`.', path=path, item='names'
    )
  return names
