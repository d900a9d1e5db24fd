"""Options of a benchmark; imports nothing heavy."""

import dataclasses
from collections.abc import Sequence

from maskrcnn_jax.errors import UserError, did_you_mean

# In the order in which they are measured: compilation before the process has
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
  """Subjects and repetitions.

  Attributes:
    what: some of `SUBJECTS`.
    rounds: that count; medians are taken over them.
    warmup: rounds before them.
    against: an interpreter with torch and torchvision, whose Mask R-CNN is
      measured in turn with ours; None: none.
    channels_last: memory layout of the other side; None: on a GPU.
  """

  what: Sequence[str] = ('step', 'inference')
  rounds: int = 5
  warmup: int = 2
  against: str | None = None
  channels_last: bool | None = None

  def __post_init__(self):
    unknown = [name for name in self.what or [''] if name not in SUBJECTS]
    if unknown:
      raise UserError(
        f'what must be some of {", ".join(SUBJECTS)}, got {unknown[0]!r}'
        f'{did_you_mean(unknown[0], SUBJECTS)}',
        argument='what',
        given=unknown[0],
        wanted=SUBJECTS,
      )
    for name in ('rounds', 'warmup'):
      number = getattr(self, name)
      if number < 1:
        raise UserError(
          f'{name} must be at least 1, got {number}: the first round fills '
          'caches.',
          argument=name,
          given=number,
          wanted=1,
        )
