"""The folder that `predict` writes, which may hold a user's files as well.

`predict.json` lists every file that it wrote or is about to write. Nothing else
in the folder is ever replaced: another run of the same output replaces its own
files, also of a run that was cut off, and refuses where a file is in the way
that is not on the list.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

LIST = 'predict.json'


class OutputFolder:
  """A folder to write into.

  Attributes:
    path: of the folder.
  """

  def __init__(self, path: str | os.PathLike, names: Iterable[str]):
    """Checks that the folder is free for these files; changes nothing.

    Args:
      path: of the folder; it need not exist.
      names: of all files that will be written, relative to it.

    Raises:
      FileExistsError: the folder holds files, and none by an earlier
        `predict`; or one of the names is a file of somebody else.
      NotADirectoryError: the path is a file.
    """
    self.path = pathlib.Path(path)
    self._names = [LIST, *names]
    if self.path.exists() and not self.path.is_dir():
      raise NotADirectoryError(f'--output {path} is a file, not a folder.')
    self._old = self._read_list()
    if self._old is None:
      if self.path.is_dir() and any(self.path.iterdir()):
        raise FileExistsError(
          f'--output {path} holds files that predict did not write: choose '
          'another folder, or an empty one.'
        )
      self._old = []
    owned = {LIST, *self._old}
    for name in self._names:
      if name not in owned and (self.path / name).exists():
        raise FileExistsError(
          f'--output {path} holds {name}, which predict did not write: move '
          'it away or choose another folder.'
        )

  def _read_list(self) -> list[str] | None:
    """What an earlier run wrote; None if there was none."""
    try:
      content = json.loads((self.path / LIST).read_text(encoding='utf-8'))
      names = list(content['files'])
    except (OSError, ValueError, KeyError, TypeError):
      return None
    # Only what such a run can have written is ever removed.
    return [
      name
      for name in names
      if isinstance(name, str)
      and not pathlib.PurePath(name).is_absolute()
      and '..' not in pathlib.PurePath(name).parts
    ]

  def claim(self, summary: Mapping[str, Any]) -> None:
    """Removes the files of an earlier run, and lists those of this one.

    Args:
      summary: further entries of `predict.json`.
    """
    self.path.mkdir(parents=True, exist_ok=True)
    self.write_list(summary, {*self._old, *self._names})
    for name in self._old:
      if name != LIST:
        (self.path / name).unlink(missing_ok=True)

  def write_list(
    self, summary: Mapping[str, Any], names: Iterable[str] | None = None
  ) -> None:
    """Writes `predict.json`.

    Args:
      summary: further entries.
      names: of the files; None: all that were announced and are there.
    """
    if names is None:
      names = [x for x in self._names if x == LIST or (self.path / x).exists()]
    content = {**summary, 'files': sorted(names)}
    self.write(LIST, json.dumps(content, indent=1) + '\n')

  def write(self, name: str, text: str) -> None:
    """Writes a text file; a reader never sees half of it."""
    path = self.path / name
    unfinished = path.with_name(f'.{path.name}.unfinished')
    unfinished.write_text(text, encoding='utf-8')
    unfinished.replace(path)
