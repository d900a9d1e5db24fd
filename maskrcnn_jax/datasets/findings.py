"""Problems of a data set, as one value that names the place and the remedy."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from maskrcnn_jax.errors import UserError

SEVERITIES = ('error', 'warning', 'note')
_LISTED_ERRORS = 10


@dataclasses.dataclass(frozen=True)
class Finding:
  """A problem of a data set.

  Attributes:
    kind: a short name to count by, such as `zero_area_box`.
    file: the annotation or image file.
    image_id: id of the image, or None.
    annotation_id: id of the object, or None.
    message: what is wrong and what to do.
    severity: `error` (nothing is written), `warning` (the object is left out,
      or it is kept and most likely wrong) or `note` (nothing is lost).
  """

  kind: str
  file: str
  image_id: Any
  annotation_id: Any
  message: str
  severity: str = 'warning'

  def __str__(self) -> str:
    place = [self.file]
    if self.image_id is not None:
      place.append(f'image {self.image_id!r}')
    if self.annotation_id is not None:
      place.append(f'annotation {self.annotation_id!r}')
    return f'{", ".join(place)}: {self.message}'


def raise_errors(findings: Sequence[Finding]) -> None:
  """Raises a ValueError that lists the errors among the findings, if any."""
  errors = [finding for finding in findings if finding.severity == 'error']
  if not errors:
    return
  lines = [f'  {error.kind}: {error}' for error in errors[:_LISTED_ERRORS]]
  if len(errors) > _LISTED_ERRORS:
    lines.append(f'  and {len(errors) - _LISTED_ERRORS} more.')
  noun = 'error' if len(errors) == 1 else 'errors'
  raise UserError('\n'.join([f'{len(errors)} {noun} in the data:', *lines]))
