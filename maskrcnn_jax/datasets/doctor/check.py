"""The doctor of a data set: all checks, of one split or of train and val."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

from maskrcnn_jax.datasets.doctor import fit, listing, scores, splits, survey
from maskrcnn_jax.datasets.doctor.survey import Split
from maskrcnn_jax.datasets.findings import SEVERITIES, Finding


@dataclasses.dataclass(frozen=True)
class Report:
  """What was found.

  Attributes:
    splits: that were read, training first.
    findings: the worst first; of one kind together.
  """

  splits: Sequence[Split]
  findings: Sequence[Finding]

  def count(self, severity: str) -> int:
    """Number of findings that are errors, warnings or notes."""
    return sum(each.severity == severity for each in self.findings)

  def by_kind(self) -> dict[str, list[Finding]]:
    """The findings of every kind, the worst kinds first."""
    kinds = {}
    for finding in self.findings:
      kinds.setdefault(finding.kind, []).append(finding)
    return kinds


def check(
  train: tuple[str | os.PathLike, str | os.PathLike],
  val: tuple[str | os.PathLike, str | os.PathLike] | None = None,
  config: Mapping | None = None,
  num_workers: int | None = None,
) -> Report:
  """Reads and checks a data set; changes nothing.

  Args:
    train: folder of the images and COCO json to train on.
    val: the same to evaluate on, if there is one.
    config: of a run that the data is for, if there is one.
    num_workers: processes that read images; by default one per core.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: a file is no COCO file at all.
  """
  read = [survey.survey('train', *train, num_workers)]
  if val is not None:
    read.append(survey.survey('val', *val, num_workers))
  findings = []
  for split in read:
    findings += [*split.findings, *splits.check_split(split)]
  findings += listing.check_listing(read)
  counted = scores.COUNTED_DETECTIONS
  if config is not None:
    counted = config.get('evaluation', {}).get('max_detections', counted)
  findings += scores.check_scores(read[-1], counted)
  if val is not None:
    findings += splits.compare(*read)
  if config is not None:
    findings += fit.check_fit(config, read[0], read[1] if val else None)
  return Report(tuple(read), _sort(findings))


def _sort(findings: Sequence[Finding]) -> tuple[Finding, ...]:
  """The worst kinds first, in each the worst; else as they were found."""
  ranks = {}
  for place, finding in enumerate(findings):
    rank = SEVERITIES.index(finding.severity)
    ranks[finding.kind] = min(ranks.get(finding.kind, (9, 0)), (rank, place))
  return tuple(
    sorted(
      findings, key=lambda x: (ranks[x.kind], SEVERITIES.index(x.severity))
    )
  )
