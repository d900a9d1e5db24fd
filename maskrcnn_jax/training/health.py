"""Whether a run still learns: bad steps, spikes of the loss, a fallen AP.

Of the record runs of others one in seventy fell to an AP of 0 and trained on
for hours (MLPerf Training v0.7 to v3.1); here that is said, and a run whose
numbers are no numbers goes back to where they were.
"""

import collections
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import scores

# A loss is a spike from so many times the median of the steps before it.
SPIKE_FACTOR = 5.0
_MEDIAN_STEPS = 100
_FEWEST_STEPS = 20
# An AP has fallen below this share of the best one, which was at least so high.
_FALLEN_SHARE = 0.1
_LOWEST_BEST = 0.02


class NonFiniteError(UserError):
  """Losses or gradients are not finite, again and again."""


class Rewind(Exception):
  """So many steps in a row were not finite that the run must go back."""


class Health:
  """Watches the steps of a run.

  Attributes:
    skipped: steps whose update was skipped so far.
  """

  def __init__(self, max_bad_steps: int):
    """Starts to watch.

    Args:
      max_bad_steps: so many in a row make the run go back.
    """
    self.skipped = 0
    self._max_bad_steps = max_bad_steps
    self._in_a_row = []
    self._losses = collections.deque(maxlen=_MEDIAN_STEPS)
    self._rewound_to = None

  def good_step(
    self, step: int, values: Mapping[str, float], image_ids: Sequence[int]
  ) -> str | None:
    """Takes note of a finite step; what to say if its loss is a spike."""
    self._in_a_row = []
    loss = float(values['total_loss'])
    usual = None
    if len(self._losses) >= _FEWEST_STEPS:
      usual = statistics.median(self._losses)
    self._losses.append(loss)
    if usual is None or loss <= SPIKE_FACTOR * usual:
      return None
    terms = {k: float(v) for k, v in values.items() if k in _TERMS}
    worst = max(terms, key=terms.get)
    return (
      f'step {step}: the loss {loss:.4g} is {loss / usual:.3g} times the usual '
      f'{usual:.4g}, most of it {worst} ({terms[worst]:.4g}); images '
      f'{list(image_ids)}'
    )

  def bad_step(
    self, step: int, values: Mapping[str, float], image_ids: Sequence[int]
  ) -> str:
    """Takes note of a step whose update was skipped; what to say about it."""
    self.skipped += 1
    what = _what_is_not_finite(values)
    self._in_a_row.append(f'step {step}: {what}; images {list(image_ids)}')
    return (
      f'{self._in_a_row[-1]}. The update was skipped, '
      f'{len(self._in_a_row)} in a row'
    )

  def is_first_in_a_row(self) -> bool:
    """Whether the last step was bad and the one before was not."""
    return len(self._in_a_row) == 1

  def must_rewind(self) -> bool:
    """Whether too many steps in a row were bad."""
    return len(self._in_a_row) >= self._max_bad_steps

  def rewind(self, step: int) -> None:
    """Goes back.

    Args:
      step: of the checkpoint that the run goes on from.

    Raises:
      NonFiniteError: it was there before.
    """
    if self._rewound_to == step:
      raise NonFiniteError(
        f'{len(self._in_a_row)} steps in a row were not finite, and so were '
        f'others after step {step} with other images:\n'
        + '\n'.join(f'  {line}' for line in self._in_a_row)
        + '\nThe checkpoint of that step is kept. Lower the learning rate, '
        'set optimizer.clip_global_norm, or look at these images.'
      )
    self._rewound_to = step
    self._in_a_row = []
    self._losses.clear()


_TERMS = ('rpn_objectness', 'rpn_box', 'class', 'box', 'mask', 'l2_loss')


def _what_is_not_finite(values: Mapping) -> str:
  """The terms at fault; the total and the gradient only if no term is."""
  sums = ('total_loss', 'gradient_norm')
  wrong = {k: float(v) for k, v in values.items() if not np.isfinite(v)}
  terms = [f'{k} is {v}' for k, v in wrong.items() if k not in sums]
  if terms:
    return f'loss term {", ".join(terms)}'
  return ', '.join(f'{k} is {wrong[k]}' for k in sums if k in wrong)


def fallen_score(workdir, step: int, values: Mapping[str, float]) -> str | None:
  """What to say if an evaluation is far below an earlier one of the run.

  Args:
    workdir: of the run; `metrics.jsonl` has the earlier ones.
    step: that was evaluated.
    values: its numbers.
  """
  name = 'eval/mask_AP' if 'eval/mask_AP' in values else 'eval/AP'
  found = scores.read(workdir, name)
  earlier = {s: v for s, v in found.items() if v is not None and s < step}
  best = max(earlier, key=earlier.get, default=None)
  if best is None or earlier[best] < _LOWEST_BEST:
    return None
  if values[name] >= _FALLEN_SHARE * earlier[best]:
    return None
  return (
    f'step {step}: {name} fell to {values[name]:.4g} from {earlier[best]:.4g} '
    f'at step {best}. The run may have diverged; checkpoints of that time are '
    'worth keeping.'
  )
