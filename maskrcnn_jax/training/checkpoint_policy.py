"""Which checkpoints stay on disk: the newest, the best, one every few hours."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import orbax.checkpoint as ocp

from maskrcnn_jax.training import checkpoint_layout

_policies = ocp.checkpoint_managers


def best_step(workdir, metric: str) -> int | None:
  """The saved step with the highest score; None if no saved one has a score.

  Only checkpoints count that are on disk and were evaluated at that very step:
  an evaluation between two saves has none. Of equal scores the newest wins.

  Args:
    workdir: directory of a run.
    metric: a key of `metrics.jsonl`, such as 'eval/mask_AP'.
  """
  return _best(scores(workdir, metric), checkpoint_layout.steps(workdir))


def scores(workdir, metric: str) -> dict[int, float]:
  """step -> the last finite value of a metric in `WORKDIR/metrics.jsonl`."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return {}
  found = {}
  for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
    if f'"{metric}"' in line:
      try:
        values = json.loads(line)
      except json.JSONDecodeError:
        continue  # The line that a killed run was writing.
      found[values['step']] = values[metric]
  return {step: value for step, value in found.items() if value is not None}


def preservation(
  workdir, keep: int, keep_best: str | None, keep_every_hours: float | None
):
  """Orbax's policy for the options of `CheckpointWriter`."""
  kept = [_policies.LatestN(keep)]
  if keep_best:
    kept.append(_Best(workdir, keep_best))
  if keep_every_hours:
    kept.append(_policies.EveryNSeconds(3600 * keep_every_hours))
  return _policies.AnyPreservationPolicy(kept)


@dataclasses.dataclass(frozen=True)
class _Best(_policies.PreservationPolicy):
  """Keeps the checkpoint with the highest score so far.

  Attributes:
    workdir: whose `metrics.jsonl` is read at every save, as evaluations come
      after the save of their step.
    metric: a key of it.
  """

  workdir: str | pathlib.Path
  metric: str

  def should_preserve(self, checkpoints, *, context) -> Sequence[bool]:
    """One bool for each checkpoint."""
    steps = [info.step for info in checkpoints]
    best = _best(scores(self.workdir, self.metric), steps)
    return [step == best for step in steps]


def _best(found: dict[int, float], steps: Sequence[int]) -> int | None:
  scored = [step for step in steps if step in found]
  return max(scored, key=lambda step: (found[step], step), default=None)
