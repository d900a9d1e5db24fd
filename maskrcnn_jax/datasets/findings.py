"""Findings: problems of a data set, each with its place and remedy."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from maskrcnn_jax.errors import UserError, brief
from maskrcnn_jax.terminal import escaped

SEVERITIES = ('error', 'warning', 'note')
_LISTED_ERRORS = 10


@dataclasses.dataclass(frozen=True)
class Finding:
  """A problem of a data set.

  Attributes:
    kind: a short name to count by, such as `zero_area_box`.
    file: the annotation or image file.
    message: what is wrong and how to correct it.
    severity: `error` (nothing is written), `warning` (the object is skipped, or
      kept and most likely wrong) or `note` (nothing is lost).
    image_id: id of the image, or None.
    annotation_id: id of the object, or None.
  """

  kind: str
  file: str
  message: str
  severity: str = 'warning'
  image_id: Any = None
  annotation_id: Any = None

  def __str__(self) -> str:
    place = [self.file]
    if self.image_id is not None:
      place.append(f'image {brief(self.image_id)}')
    if self.annotation_id is not None:
      place.append(f'annotation {brief(self.annotation_id)}')
    return escaped(f'{", ".join(place)}: {self.message}')


class InvalidEntryError(Exception):
  """An unusable entry, line or object, with the fields of its `Finding`."""

  def __init__(self, kind: str, message: str, severity: str = 'error'):
    super().__init__(message)
    self.kind, self.message, self.severity = kind, message, severity

  def finding(
    self, file: str, image_id: Any = None, annotation_id: Any = None
  ) -> Finding:
    """The finding at a place."""
    what = self.kind, file, self.message, self.severity
    return Finding(*what, image_id, annotation_id)


@contextlib.contextmanager
def collected(findings: list[Finding], file: str, *ids: Any) -> Iterator[None]:
  """Turns an `InvalidEntryError` in the block into a finding."""
  try:
    yield
  except InvalidEntryError as error:
    findings.append(error.finding(file, *ids))


class InvalidDataError(UserError):
  """A data set with errors, its `findings`; `path` and `item` of the first."""

  def __init__(self, errors: Sequence[Finding]):
    lines = [f'  {error.kind}: {error}' for error in errors[:_LISTED_ERRORS]]
    if len(errors) > _LISTED_ERRORS:
      lines.append(f'  and {len(errors) - _LISTED_ERRORS} more.')
    noun = 'error' if len(errors) == 1 else 'errors'
    first = errors[0]
    ids = [x for x in (first.image_id, first.annotation_id) if x is not None]
    super().__init__(
      '\n'.join([f'{len(errors)} {noun} in the data:', *lines]),
      path=first.file,
      item=ids[-1] if ids else None,
    )
    self.findings = tuple(errors)


def raise_errors(findings: Sequence[Finding]) -> None:
  """Raises an `InvalidDataError` of the errors among the findings, if any."""
  errors = [finding for finding in findings if finding.severity == 'error']
  if errors:
    raise InvalidDataError(errors)
