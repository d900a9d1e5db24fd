"""Data set doctor: all checks of one split, or of train and val."""

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence

from maskrcnn_jax.datasets.doctor import config_checks, split, split_checks
from maskrcnn_jax.datasets.doctor.split import Split
from maskrcnn_jax.datasets.findings import SEVERITIES, Finding
from maskrcnn_jax.datasets.labelled import LabelOptions


@dataclasses.dataclass(frozen=True)
class Report:
  """Findings of a data set."""

  splits: Sequence[Split]  # Training first.
  findings: Sequence[Finding]  # The worst kinds first.

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
  **options,
) -> Report:
  """Reads and checks a data set; changes nothing.

  Args:
    train: folder of the images and labels of the training split.
    val: the same of the validation split.
    config: of a run on the data.
    **options: of `LabelOptions`.

  Raises:
    FileNotFoundError: there is no such folder.
    UserError: labels cannot be read at all.
  """
  options = LabelOptions(**options)
  read = [split.read_split('train', *train, options)]
  if val is not None:
    # As a run does, which prepares both.
    numbers = read[0].dataset.category_names
    read.append(split.read_split('val', *val, options, numbers))
  findings = list(split_checks.check_listing(read))
  for each in read:
    findings += each.findings
    findings += split_checks.check_split(each, options.allow_empty_classes)
  counted = split_checks.COUNTED_DETECTIONS
  if config is not None:
    counted = config.get('evaluation', {}).get('max_detections', counted)
  findings += split_checks.check_scores(read[-1], counted)
  if val is not None:
    findings += split_checks.compare(*read)
  if config is not None:
    findings += config_checks.check_config(config, *read)
  kinds = {}
  for each in sorted(findings, key=lambda x: SEVERITIES.index(x.severity)):
    kinds.setdefault(each.kind, []).append(each)
  return Report(tuple(read), tuple(itertools.chain(*kinds.values())))
