"""The output folder of `predict`, which may hold a user's files as well.

`predict.json` lists the files of a run. Another run into the same folder
replaces those files, also those of a run that was killed, and refuses to touch
any other. The list may come from a stranger: only names that `predict` writes
count, and nothing is written or removed through a symbolic link.
"""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from maskrcnn_jax import files

LIST = 'predict.json'
_OWN_NAMES = re.compile(
  r'detections\.json|images\.json|index\.html|pictures/[^/\0]+\.png'
  r'|labels\.json|(crops|masks)/[^/\0]+/'
  r'|labelme/([^/\0]+/)*[^/\0]+\.json|yolo/([^/\0]+/)*[^/\0]+\.txt'
  r'|videos/[^/\0]+\.mp4|tracks\.json|youtube_vis\.json|mots/[^/\0]+\.txt'
)


class OutputFolder:
  """A folder to write into, at `path`."""

  def __init__(self, path: str | os.PathLike, names: Iterable[str]):
    """Checks that the folder is free for these files; changes nothing.

    Args:
      path: of the folder; it need not exist.
      names: of all files that will be written, relative to it; with a slash at
        the end, of folders for PNG files.

    Raises:
      FileExistsError: the folder holds files, and none by an earlier
        `predict`; or one of the names is somebody else's.
      NotADirectoryError: the path is a file.
      UserError: a folder in it is a link.
    """
    self.path = pathlib.Path(path)
    self._names = [LIST, *names]
    if self.path.exists() and not self.path.is_dir():
      raise NotADirectoryError(f'--output {path} is a file, not a folder.')
    old = self._read_list()
    if old is None and self.path.is_dir() and any(self.path.iterdir()):
      raise FileExistsError(
        f'--output {path} holds files that predict did not write: choose '
        'another folder, or an empty one.'
      )
    self._old = old or []
    for folder in sorted(_folders(self._names + self._old)):
      files.not_a_link(self.path / folder)
    # A link that leads nowhere is in the way as well.
    foreign = [
      name
      for name in self._names
      if name not in {LIST, *self._old} and os.path.lexists(self.path / name)
    ]
    if foreign:
      raise FileExistsError(
        f'--output {path} holds {foreign[0]}, which predict did not write: '
        'move it away or choose another folder.'
      )

  def _read_list(self) -> list[str] | None:
    """Files of an earlier run; None if there was none."""
    try:
      content = files.read_json(files.not_a_link(self.path / LIST))
      names = list(content['files'])
    except (ValueError, KeyError, TypeError):
      return None
    names = [x for x in names if isinstance(x, str) and _OWN_NAMES.fullmatch(x)]
    return [x for x in names if '..' not in pathlib.PurePath(x).parts]

  def claim(self, summary: Mapping[str, Any]) -> None:
    """Lists the files of this run, and `summary`; removes the earlier ones."""
    self.path.mkdir(parents=True, exist_ok=True)
    self._write_list(summary, {*self._old, *self._names})
    for name in self._old:
      if name.endswith('/'):
        _remove_pictures(self.path / name)
      else:
        (self.path / name).unlink(missing_ok=True)

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Lists the files that were written, and `summary`."""
    written = [x for x in self._names if (self.path / x).exists()]
    self._write_list(summary, written)

  def _write_list(self, summary, names):
    content = {**summary, 'files': sorted(names)}
    files.write_text(self.path / LIST, json.dumps(content, indent=1) + '\n')


def _folders(names: Iterable[str]) -> set[pathlib.PurePath]:
  """Folders of files and folders by their names, without the output itself."""
  paths = [pathlib.PurePath(name) for name in names]
  own = {path for path, name in zip(paths, names) if name.endswith('/')}
  return own | {folder for path in paths for folder in path.parents[:-1]}


def _remove_pictures(folder: pathlib.Path) -> None:
  """Removes the PNG files in a folder, and the folders that are empty then."""
  for place, _, names in os.walk(folder, topdown=False):
    for name in names:
      if name.endswith('.png'):
        os.unlink(os.path.join(place, name))
    with contextlib.suppress(OSError):  # Somebody else's files are in it.
      os.rmdir(place)
