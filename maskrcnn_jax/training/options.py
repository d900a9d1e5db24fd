"""Options of the sections `training` and `evaluation` of a config."""

import dataclasses

from maskrcnn_jax.errors import UserError, did_you_mean, invalid
from maskrcnn_jax.evaluation import coco_metrics, scores, scoring

# Numbers of an evaluation that checkpoints can be compared by.
METRICS = (
  *(p + n for p in coco_metrics.PREFIXES.values() for n in coco_metrics.NAMES),
  *scores.LOSSES,
)


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
  """The section `training` of a config.

  Attributes:
    num_steps: length of the run.
    num_epochs: of the records, see `optimization.epochs`; None: `num_steps`.
    seed: of the initial parameters and of the sampling of RoIs.
    log_every_steps: metrics are means over this many steps.
    checkpoint_every_steps: interval of checkpoints; the last step is always
      saved.
    keep_checkpoints: how many of the newest checkpoints stay on disk.
    keep_best: a number of the evaluations on the way, such as 'eval/mask_AP':
      the checkpoint where it was highest (of a loss: lowest) stays too, by the
      name `best`; None: no best checkpoint.
    patience: evaluations in a row without an improvement of `keep_best` that
      end the run; None: it runs for `num_steps`.
    keep_every_hours: one checkpoint stays for this many hours of training;
      None: none.
    pictures: how many images of an evaluation are drawn.
    pretrained: initial weights, of a backbone or of a whole Mask R-CNN: a file
      of weights, a name of `weights.published`, the prefix of a TensorFlow
      checkpoint, or a checkpoint of ours; None or '' for random values.
    finetune: parameters of `pretrained` that do not fit other classes start
      from random values, see `finetuning`.
    allow_empty_classes: a class with objects in the validation records may have
      none in the training records; else that is an error.
    summary_every_steps: TensorBoard also shows metrics of single steps under
      Habana's names, this often; None: not.
    log_file: JSON lines that sum up the run under Habana's names; None: none.
    profile: first and last step to trace for TensorBoard's profiler, counted
      from the start of the process; None: no trace.
    max_bad_steps: non-finite steps in a row that make the run go back to its
      newest checkpoint, and on with other data; the second time it stops.
      Fewer are skipped.
  """

  num_steps: int
  num_epochs: float | None = None
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
  allow_empty_classes: bool = False
  summary_every_steps: int | None = None
  log_file: str | None = None
  profile: tuple[int, int] | None = None
  max_bad_steps: int = 5

  def __post_init__(self):
    counts = ('num_steps', 'log_every_steps', 'checkpoint_every_steps')
    for name in (*counts, 'max_bad_steps', 'patience', 'keep_checkpoints'):
      _check_at_least(1, 'training', name, getattr(self, name))
    if self.keep_best is not None and self.keep_best not in METRICS:
      raise UserError(
        f'training.keep_best must be one of {", ".join(METRICS)}, got '
        f'{self.keep_best!r}{did_you_mean(self.keep_best, METRICS)}',
        argument='training.keep_best',
        given=self.keep_best,
        wanted=METRICS,
      )
    if self.patience is not None and self.keep_best is None:
      raise UserError(
        f'training.patience={self.patience} needs training.keep_best, the '
        "number that has to improve, such as 'eval/mask_AP'.",
        argument='training.keep_best',
        wanted=METRICS,
      )

  def kept(self) -> tuple[int, str | None, float | None]:
    """The checkpoints that stay, as `CheckpointWriter` takes it."""
    return self.keep_checkpoints, self.keep_best, self.keep_every_hours


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
  """The section `evaluation` of a config.

  Attributes:
    file_pattern: record files, or a prepared TFDS directory.
    annotations_file: COCO json of the same images; '' makes one of the records.
    canvases: (height, width) of detection, also by `predict` and `export`;
      None: those of the input.
    fit_size: (shorter, longer) side that images are fitted into with these
      canvases; None: the canvas.
    batch_size: images in a batch over all hosts; the next multiple of the
      number of devices is taken.
    max_images: take only the first ones; None for all.
    every_steps: evaluate on the way; 0 for only at the end.
    every_epochs: of the training records, instead of `every_steps`; None: not.
    skip_first: how many of these evaluations are skipped.
    report_every_batches: score the batches so far this often; 0 for only at
      the end.
    losses: also compute the terms of the training loss, see
      `validation_losses`, which takes another pass over the images.
    min_picture_score: detections below are not drawn.
    min_confusion_score: detections below do not count in the table of
      confusions.
    show_classes: tables of AP by class and of confusions are also printed up to
      this many classes; `eval/classes-STEP.md` always has them.
    max_detections: of an image and class that count, the best ones; COCO's own
      number is 100.
    scorer: `pycocotools`, or `hotcoco` for the same numbers faster.
    num_processes: encode masks beside the device, and score; 0: this process
      does; None: one per core, up to 8, for a set that is not small.
  """

  file_pattern: str
  annotations_file: str
  canvases: tuple[tuple[int, int], ...] | None = None
  fit_size: tuple[int, int] | None = None
  batch_size: int = 4
  max_images: int | None = None
  every_steps: int = 0
  every_epochs: float | None = None
  skip_first: int = 0
  report_every_batches: int = 0
  losses: bool = False
  min_picture_score: float = 0.5
  min_confusion_score: float = 0.5
  show_classes: int = 10
  max_detections: int = scoring.MAX_DETECTIONS
  scorer: str = 'pycocotools'
  num_processes: int | None = None

  def __post_init__(self):
    scoring.check_scorer(self.scorer)
    if self.fit_size and not self.canvases:
      wanted = 'None without evaluation.canvases, to which it belongs'
      raise invalid('evaluation.fit_size', self.fit_size, wanted)
    # COCO's other limits are 1 and 10 detections.
    limits = {'num_processes': 0, 'max_detections': 11, 'max_images': 1}
    for name, least in limits.items():
      _check_at_least(least, 'evaluation', name, getattr(self, name))

  def is_due(self, step: int, is_last: bool = False) -> bool:
    """Whether to evaluate after a step of the run."""
    if not self.every_steps:
      return is_last
    number = -(-step // self.every_steps)  # Of this evaluation, from 1.
    on_time = step % self.every_steps == 0
    return (on_time or is_last) and number > self.skip_first


def _check_at_least(least: int, section: str, name: str, given) -> None:
  if given is not None and given < least:
    raise invalid(f'{section}.{name}', given, f'at least {least}')


def check_options(
  training: TrainingOptions, evaluation: EvaluationOptions | None
) -> None:
  """Raises `UserError` if a run could never have the numbers it depends on.

  Args:
    evaluation: of the run; None: it is not evaluated.
  """
  on_the_way = evaluation is not None and evaluation.every_steps > 0
  if training.patience is not None and not on_the_way:
    raise UserError(
      f'training.patience={training.patience} counts evaluations on the way: '
      'it needs train_and_eval and evaluation.every_steps above 0.',
      argument='evaluation.every_steps',
      wanted=1,
    )
  by_loss = training.keep_best in scores.LOSSES
  if by_loss and on_the_way and not evaluation.losses:
    raise UserError(
      f'training.keep_best={training.keep_best} needs evaluation.losses=True.',
      argument='evaluation.losses',
      given=False,
      wanted=True,
    )
