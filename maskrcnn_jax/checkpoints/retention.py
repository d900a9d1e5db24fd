"""Which checkpoints stay on disk: the newest, the best, one every few hours."""

import dataclasses
import pathlib
from collections.abc import Sequence

import orbax.checkpoint as ocp

from maskrcnn_jax.checkpoints import layout as checkpoint_layout
from maskrcnn_jax.evaluation import scores

_policies = ocp.checkpoint_managers


def best_step(workdir, metric: str) -> int | None:
  """The saved step with the best score; None if no saved one has a score.

  Only checkpoints count that are on disk and were evaluated at that very step:
  an evaluation between two saves has none. Of equal scores the newest wins.

  Args:
    workdir: directory of a run.
    metric: a key of `metrics.jsonl`, such as 'eval/mask_AP'; see `scores`.
  """
  saved = checkpoint_layout.steps(workdir)
  return scores.best_step(scores.read(workdir, metric), metric, saved)


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
  """Keeps the checkpoint with the best score so far.

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
    found = scores.read(self.workdir, self.metric)
    best = scores.best_step(found, self.metric, steps)
    return [step == best for step in steps]
