"""Options of a benchmark; imports nothing heavy."""

import dataclasses
from collections.abc import Sequence

from maskrcnn_jax.errors import UserError, did_you_mean, invalid

# In the order in which they are measured: compilation before the process has
# compiled anything like it.
SUBJECTS = (
  *('compilation', 'step', 'inference', 'backbone'),
  *('profile', 'input', 'evaluation', 'growth'),
)


@dataclasses.dataclass(frozen=True)
class BenchOptions:
  """Subjects and repetitions.

  Attributes:
    what: some of `SUBJECTS`.
    rounds: measured rounds; medians are taken over them.
    warmup: rounds before them, not measured.
    against: an interpreter with torch and torchvision, whose Mask R-CNN is
      measured in turn with ours; None: none. With `what='backbone'` also
      torchvision's ConvNeXt, and the ViT of timm.
    channels_last: memory layout of the other side; None: on a GPU.
  """

  what: Sequence[str] = ('step', 'inference')
  rounds: int = 5
  warmup: int = 2
  against: str | None = None
  channels_last: bool | None = None

  def __post_init__(self):
    for name in self.what or ['']:
      if name not in SUBJECTS:
        raise UserError(
          f'what must be some of {", ".join(SUBJECTS)}, got {name!r}'
          f'{did_you_mean(name, SUBJECTS)}',
          argument='what',
          given=name,
          wanted=SUBJECTS,
        )
    # The first round fills caches.
    for name in ('rounds', 'warmup'):
      if getattr(self, name) < 1:
        raise invalid(name, getattr(self, name), 'at least 1')
