"""The section `training` of a config."""

import dataclasses

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import coco_metrics, scores

# Numbers of an evaluation that checkpoints can be compared by.
METRICS = (
  *(
    prefix + name
    for prefix in coco_metrics.PREFIXES.values()
    for name in coco_metrics.NAMES
  ),
  *scores.LOSSES,
)


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
  """The section `training` of a config.

  Attributes:
    num_steps: length of the run.
    seed: of the initial parameters and of the sampling of RoIs.
    log_every_steps: metrics are means over so many steps.
    checkpoint_every_steps: the end of the run is always saved.
    keep_checkpoints: how many stay on disk, the newest.
    keep_best: a number of the evaluations on the way, such as 'eval/mask_AP':
      the checkpoint where it was highest (of a loss: lowest) stays too, by the
      name `best`; None: no such.
    patience: so many evaluations in a row that do not improve `keep_best` end
      the run; None: it goes to its end.
    keep_every_hours: one checkpoint stays for so many hours of training; None:
      no such.
    pictures: how many images of an evaluation are drawn.
    pretrained: what a run starts from, a backbone or a whole Mask R-CNN: a
      file of weights, the prefix of a TensorFlow checkpoint, or a checkpoint of
      ours; None or '' for random values.
    finetune: of `pretrained`, what does not fit other classes starts from
      random values, see `finetuning`.
    summary_every_steps: TensorBoard also shows metrics of single steps under
      the seed's names, this often; None: not.
    log_file: JSON lines that sum up the run under the seed's names; None: none.
    profile: first and last step to trace for TensorBoard's profiler, counted
      from the start of the process; None: no trace.
    max_bad_steps: so many steps in a row that are not finite make the run go
      back to its newest checkpoint, and on with other data; the second time it
      stops. Fewer are skipped.
  """

  num_steps: int
  seed: int = 0
  log_every_steps: int = 50
  checkpoint_every_steps: int = 1000
  keep_checkpoints: int = 3
  keep_best: str | None = None
  patience: int | None = None
  keep_every_hours: float | None = None
  pictures: int = 8
  pretrained: str | None = None
  finetune: bool = False
  summary_every_steps: int | None = None
  log_file: str | None = None
  profile: tuple[int, int] | None = None
  max_bad_steps: int = 5

  def __post_init__(self):
    for name in (
      'num_steps',
      'log_every_steps',
      'checkpoint_every_steps',
      'max_bad_steps',
    ):
      if getattr(self, name) < 1:
        raise UserError(
          f'training.{name} must be at least 1, got {getattr(self, name)}.'
        )
    if self.keep_best is not None and self.keep_best not in METRICS:
      raise UserError(
        f'training.keep_best must be one of {", ".join(METRICS)}, got '
        f'{self.keep_best!r}.'
      )
    if self.patience is not None and self.patience < 1:
      raise UserError(
        f'training.patience must be at least 1, or None, got {self.patience}.'
      )
    if self.patience is not None and self.keep_best is None:
      raise UserError(
        f'training.patience={self.patience} needs training.keep_best, the '
        "number that has to improve, such as 'eval/mask_AP'."
      )

  def kept(self) -> dict:
    """Which checkpoints stay, as `CheckpointWriter` takes it."""
    return {
      'keep': self.keep_checkpoints,
      'keep_best': self.keep_best,
      'keep_every_hours': self.keep_every_hours,
    }
