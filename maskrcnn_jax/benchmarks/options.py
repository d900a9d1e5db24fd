"""What can be chosen about a benchmark; imports nothing heavy."""

import dataclasses
from collections.abc import Sequence

from maskrcnn_jax.errors import UserError

# What can be measured, in this order: compilation before the process has
# compiled anything like it.
SUBJECTS = (
  'compilation',
  'step',
  'inference',
  'backbone',
  'stages',
  'input',
  'evaluation',
  'growth',
)


@dataclasses.dataclass(frozen=True)
class BenchOptions:
  """What is measured, and how often.

  Attributes:
    what: some of `SUBJECTS`.
    rounds: that count; medians are taken over them.
    warmup: rounds before them.
    against: an interpreter with torch and torchvision, whose Mask R-CNN is
      measured by turns with ours; None: none.
    channels_last: memory layout of the other side; None: on a GPU.
  """

  what: Sequence[str] = ('step', 'inference')
  rounds: int = 5
  warmup: int = 2
  against: str | None = None
  channels_last: bool | None = None

  def __post_init__(self):
    if not self.what or set(self.what) - set(SUBJECTS):
      raise UserError(
        f'what must be some of {", ".join(SUBJECTS)}, got '
        f'{",".join(self.what)!r}.'
      )
    if min(self.rounds, self.warmup) < 1:
      raise UserError(
        f'rounds and warmup must be at least 1, got {self.rounds} and '
        f'{self.warmup}: the first round fills caches.'
      )
