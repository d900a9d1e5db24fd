"""Arguments of a reader: a folder of images and the files of their labels.

A path or name in a label is never opened: it is looked up among the images of
the folder.
"""

import collections
import contextlib
import dataclasses
import functools
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from maskrcnn_jax import files
from maskrcnn_jax.datasets import images
from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.datasets.formats import class_names
from maskrcnn_jax.errors import UserError, brief

MASKS = 'masks'  # Name of folders of masks beside folders of images.
META = 'meta.json'  # Supervisely's classes.
Content = tuple[dict[str, list], list[Finding]]  # Lists of COCO, and findings.
Labels = tuple[dict[str, Any], list[Finding]]  # By image name, and findings.
_TEXT_ENDINGS = ('.json', '.xml', '.txt', '.csv', '.yaml', '.yml', '.md')
# Of an entry that is not built as its format says.
MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError)


def folded(name: str) -> str:
  """A file name without case, in one normal form: that of macOS differs."""
  return unicodedata.normalize('NFC', name).lower()


def passed_over(path: pathlib.Path) -> Iterator[Finding]:
  """Yields a finding if a file among images is neither image nor text."""
  if path.suffix.lower() not in (*images.ENDINGS, *_TEXT_ENDINGS):
    message = f'is no image that is read ({", ".join(images.ENDINGS)}).'
    yield Finding('file_passed_over', str(path), message)


@contextlib.contextmanager
def parsed(path: str | os.PathLike) -> Iterator[None]:
  """Turns errors in a block that parses a file into a `UserError`."""
  try:
    yield
  except UserError:
    raise
  except (ValueError, *MALFORMED) as error:
    reason = f'{type(error).__name__}: {brief(str(error))}'
    message = f'{path} is not built as its format says ({reason}).'
    raise UserError(message, path=path) from error


@dataclasses.dataclass(frozen=True)
class Source:
  """Arguments of a reader.

  Attributes:
    images_dir: folder of the images.
    labels: folder or file of the labels.
    classes: see `class_names.read`.
    num_workers: processes; None: one per core.
    numbers: class names by category id, as of a training set, for labels that
      have names but no numbers; None: they are numbered from 1.
    used: files of the labels that a reader used or named in a finding.
  """

  images_dir: str | os.PathLike
  labels: str | os.PathLike
  classes: str | None = None
  num_workers: int | None = None
  numbers: Mapping[int, str] | None = None
  used: set[str] = dataclasses.field(default_factory=set, compare=False)

  @functools.cached_property
  def image_names(self) -> list[str]:
    """Names of all images in the folder and below, relative to it, in order.

    Folders named `masks` are skipped, and that of the labels if it lies inside.
    """
    if not os.path.isdir(self.images_dir):
      raise UserError(
        f'{self.images_dir} is not a folder.', path=self.images_dir
      )
    root = pathlib.Path(self.images_dir).resolve()
    labels = pathlib.Path(self.labels).resolve()
    labels = labels if root in labels.parents else None
    names = []
    for path in images.walk(root):
      name = path.relative_to(root)
      is_label = labels in path.parents or MASKS in name.parts[:-1]
      if path.suffix.lower() in images.ENDINGS and not is_label:
        names.append(name.as_posix())
    if not names:
      raise UserError(
        f'{self.images_dir} holds no image ({", ".join(images.ENDINGS)}).',
        path=self.images_dir,
      )
    return sorted(names)

  @functools.cached_property
  def files(self) -> dict[str, pathlib.Path]:
    """Files of the labels by their names relative to the folder, in order."""
    root = pathlib.Path(self.labels)
    if root.is_file():
      return {root.name: root}
    if not root.is_dir():
      raise UserError(f'{root} does not exist.', path=root)
    images_dir = pathlib.Path(self.images_dir).resolve()
    skipped = images_dir if root.resolve() in images_dir.parents else None
    return {
      path.relative_to(root).as_posix(): path
      for path in images.walk(root)
      if skipped is None or skipped not in path.resolve().parents
    }

  @functools.cached_property
  def first_json(self) -> Any:
    """The content of the first JSON file of the labels; None: there is none."""
    names = [x for x in self.files if x.lower().endswith('.json')]
    names = [x for x in names if not x.endswith(META)]
    return files.read_json(self.files[names[0]]) if names else None

  def one_file(self, ending: str) -> pathlib.Path:
    """The file of the labels, or the only one of an ending in the folder.

    Raises:
      UserError: there is none, or several.
    """
    found = [x for x in self.files.values() if x.suffix.lower() == ending]
    if os.path.isfile(self.labels):
      return pathlib.Path(self.labels)
    if len(found) != 1:
      raise UserError(
        f'{self.labels} holds {len(found)} {ending} files: name one.',
        argument='annotations',
        path=self.labels,
        given=len(found),
      )
    return found[0]

  @functools.cached_property
  def _names_by_stem(self) -> dict[str, list[str]]:
    found = collections.defaultdict(list)
    for name in self.image_names:
      found[pathlib.PurePosixPath(folded(name)).stem].append(name)
    return found

  def find_image(self, name: str) -> str | None:
    """The image of a name or path in a label; None: there is none or several.

    One of both paths must end with the other, without regard to case or to the
    normal form of Unicode. Without an image of that ending, any other will do.
    """
    found = self.find_images(name)
    return found[0] if len(found) == 1 else None

  def find_images(self, name: str) -> list[str]:
    """All images that a name may mean, see `find_image`."""
    wanted = pathlib.PurePosixPath(folded(str(name).replace('\\', '/')))
    found = []
    for candidate in self._names_by_stem.get(wanted.stem, ()):
      if candidate == name:
        return [name]
      parts = pathlib.PurePosixPath(folded(candidate)).parts
      shared = min(len(parts), len(wanted.parts))
      if parts[-shared:-1] == wanted.parts[-shared:-1]:
        found.append((parts[-1] == wanted.name, candidate))
    exact = [candidate for is_exact, candidate in found if is_exact]
    found = exact or [candidate for _, candidate in found]
    same = [each for each in found if folded(each) == str(wanted)]
    return same if len(found) > 1 and len(same) == 1 else found

  def match(self, named: Iterable[tuple[str, Any, str]]) -> Labels:
    """Labels by image name.

    Args:
      named: image name or path in a label, the label, its file.

    Raises:
      UserError: `named` fails on content that it does not expect.
    """
    labels, findings = {}, []
    with parsed(self.labels):
      for name, label, file in named:
        self.used.add(str(file))
        found = self.find_images(name)
        kind, message = 'label_without_image', f'not in {self.images_dir}'
        if len(found) > 1:
          message = f'one of {brief(found)} in {self.images_dir}'
        elif found and found[0] in labels:
          kind, message = 'duplicate_label', 'labelled before'
        elif found:
          labels[found[0]] = label
          continue
        message = f'the image {brief(name)} is {message}: skipped.'
        findings.append(Finding(kind, str(file), message))
    return labels, findings

  def match_files(
    self, endings: str | tuple[str, ...], image_ending: str = ''
  ) -> Labels:
    """Paths of label files by image name.

    Args:
      endings: of label files, in lower case.
      image_ending: of images, without the suffix.
    """
    endings = (endings,) if isinstance(endings, str) else endings
    named = []
    for name, path in self.files.items():
      if path.name not in class_names.FILES and path.name != 'labelmap.txt':
        for ending in filter(name.lower().endswith, endings):
          named.append((name[: -len(ending)] + image_ending + '.*', path, path))
    return self.match(named)
