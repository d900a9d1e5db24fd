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

  Its severity is `error` (nothing is written), `warning` (the object is
  skipped, or kept and most likely wrong) or `note` (nothing is lost).
  """

  kind: str  # A short name to count by, such as `zero_area_box`.
  file: str  # Annotations or image.
  message: str  # What is wrong and how to correct it.
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
    lines = [f'{error.kind}: {error}' for error in errors[:_LISTED_ERRORS]]
    if len(errors) > 1:
      lines.insert(0, f'{len(errors)} errors in the data:')
    if len(errors) > _LISTED_ERRORS:
      lines.append(f'and {len(errors) - _LISTED_ERRORS} more.')
    first = errors[0]
    ids = [x for x in (first.image_id, first.annotation_id) if x is not None]
    item = ids[-1] if ids else None
    super().__init__('\n  '.join(lines), path=first.file, item=item)
    self.findings = tuple(errors)


def raise_errors(findings: Sequence[Finding]) -> None:
  """Raises an `InvalidDataError` of the errors among the findings, if any."""
  errors = [finding for finding in findings if finding.severity == 'error']
  if errors:
    raise InvalidDataError(errors)
