"""Training monitor: non-finite steps, loss spikes, AP collapse, early stop.

A non-finite step is skipped; several in a row send the run back to its newest
checkpoint. Of the published runs of MLPerf Training v0.7 to v3.1, one in
seventy fell to an AP of 0 and kept training for hours; here that is a warning.
"""

import collections
import itertools
import logging
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from maskrcnn_jax.distributed import collectives
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import scores
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.optimization import accumulation
from maskrcnn_jax.structures import Instances

# A loss is a spike from this multiple of the median of the steps before it on.
SPIKE_FACTOR = 5.0
_MEDIAN_STEPS = 100
_MIN_STEPS = 20
# A collapsed AP is below this share of the best one, if that is high enough.
_COLLAPSED_SHARE = 0.1
_MIN_BEST = 0.02
_TERMS = (*scores.TERMS, 'l2_loss')


class NonFiniteError(UserError):
  """Losses or gradients stay non-finite after going back to a checkpoint."""


class Monitor:
  """Watches the metrics of the steps of a run.

  Attributes:
    num_skipped: steps whose update was skipped so far.
  """

  def __init__(
    self,
    max_bad_steps: int,
    find_nonfinite: Callable[..., str] | None = None,
    say: Callable[[str], None] = logging.warning,
  ):
    """Starts without any steps.

    Args:
      max_bad_steps: non-finite steps in a row that make the run go back.
      find_nonfinite: of state, step and inputs, see the function.
    """
    self.num_skipped, self._max_bad_steps = 0, max_bad_steps
    self._find_nonfinite, self._say = find_nonfinite, say
    self._pending, self._in_a_row = collections.deque(), []
    self._losses = collections.deque(maxlen=_MEDIAN_STEPS)
    self._rewound_to = None

  def add(self, step: int, image_ids: np.ndarray, inputs, metrics) -> None:
    """Queues a step of `train_step` that the device may still be doing."""
    self._pending.append((step, image_ids, inputs, metrics))

  def settle(self, state, lag: int) -> list[dict]:
    """Metrics of the finite steps among those that were queued.

    Waits for all but the last `lag`, warns of bad ones, and stops where the run
    must go back.

    Args:
      lag: steps that may stay in the queue.
    """
    finite = []
    while len(self._pending) > lag and not self.must_rewind():
      step, image_ids, inputs, metrics = self._pending.popleft()
      metrics = dict(metrics)
      if metrics.pop('finite'):
        finite.append(metrics)
        warning = self.good_step(step, metrics, image_ids.tolist())
      else:
        gathered = collectives.all_gather(image_ids.tolist())
        image_ids = list(itertools.chain.from_iterable(gathered))
        warning = self.bad_step(step, metrics, image_ids)
        if len(self._in_a_row) == 1:
          warning += f'. {self._find_nonfinite(state, step, inputs)}'
      if warning:
        self._say(f'WARNING: {warning}')
    return finite

  def good_step(
    self, step: int, metrics: Mapping[str, float], image_ids: Sequence[int]
  ) -> str | None:
    """Registers a finite step; returns a warning if its loss is a spike."""
    self._in_a_row = []
    loss, earlier = float(metrics['total_loss']), [*self._losses]
    self._losses.append(loss)
    if len(earlier) < _MIN_STEPS:
      return None
    median = statistics.median(earlier)
    if loss <= SPIKE_FACTOR * median:
      return None
    largest, term = max((float(metrics[k]), k) for k in _TERMS if k in metrics)
    return (
      f'step {step}: loss spike: {loss:.4g} is {loss / median:.3g} times the '
      f'median {median:.4g}, most of it {term} ({largest:.4g}); images '
      f'{list(image_ids)}'
    )

  def bad_step(
    self, step: int, metrics: Mapping[str, float], image_ids: Sequence[int]
  ) -> str:
    """Registers a step whose update was skipped; returns a warning."""
    self.num_skipped += 1
    wrong = {k: float(v) for k, v in metrics.items() if not np.isfinite(v)}
    # Total and gradient norm say something only where no term is at fault.
    terms = {k: v for k, v in wrong.items() if k in _TERMS} or wrong
    reason = ', '.join(f'{k} is {v}' for k, v in terms.items())
    self._in_a_row.append(f'step {step}: {reason}; images {list(image_ids)}')
    return (
      f'{self._in_a_row[-1]}. The update was skipped, '
      f'{len(self._in_a_row)} in a row'
    )

  def in_streak(self) -> bool:
    """Whether the newest settled step was bad."""
    return bool(self._in_a_row)

  def must_rewind(self) -> bool:
    """Whether too many steps in a row were bad."""
    return len(self._in_a_row) >= self._max_bad_steps

  def rewind(self, step: int) -> None:
    """Registers that the run goes back to the checkpoint of a step.

    Raises:
      NonFiniteError: the run went back to that checkpoint before.
    """
    if self._rewound_to == step:
      raise NonFiniteError(
        f'{len(self._in_a_row)} steps in a row were not finite, and so were '
        f'others after step {step} with other images:\n'
        + '\n'.join(f'  {line}' for line in self._in_a_row)
        + '\nThe checkpoint of that step is kept. Lower the learning rate, '
        'set optimizer.clip_global_norm, or look at these images.',
        argument='optimizer.learning_rate',
        item=step,
      )
    self._rewound_to = step
    self._in_a_row = []
    self._pending.clear()
    self._losses.clear()


def find_nonfinite(
  model: MaskRCNN, key, state, step: int, inputs, num_parts: int = 1
) -> str:
  """Names the first non-finite tensor of a step, by computing it again.

  Compiled only after a step went wrong, so that the step itself stays fast.

  Args:
    state: after the step, whose update was skipped.
    num_parts: of the batch, see `accumulation`; they are looked at in turn.

  Returns:
    A sentence with the name, in the order of computation: a parameter, an input
    with the row of the batch, or the output of a part of the model.
  """
  # The keys of `train_step`, for the same RoIs.
  _, sampling_key = jax.random.split(jax.random.fold_in(key, step - 1))
  # The trained parameters, which `state.variables()` need not be.
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  names = []

  @jax.jit
  def is_finite(variables, batch, key, index):
    part = None
    if num_parts > 1:
      batch = jax.tree.map(
        lambda x: x[index], accumulation.split(batch, num_parts)
      )
      part = index, num_parts
    flags = []
    for name, value in _tensors(model, variables, batch, key, part):
      names.append(name)
      flags.append(jnp.all(jnp.isfinite(value)))
    return jnp.stack(flags)

  for index in range(num_parts):
    flags = is_finite(variables, inputs, sampling_key, index).tolist()
    if not all(flags):
      name = names[flags.index(False)]
      if num_parts > 1:
        name += f', of the rows {index}, {index + num_parts}, ... of the batch'
      return f'First tensor that is not finite: {name}'
  return 'All tensors of the forward pass are finite: it is a gradient'


def _tensors(
  model, variables, batch, key, part
) -> Iterator[tuple[str, jax.Array]]:
  """Name and value of every float tensor of a step, in order."""
  yield from _named(variables)
  for name, rows in (
    *((k, batch[k]) for k in ('images', 'image_sizes')),
    ('instances.boxes', batch['instances']['boxes']),
  ):
    yield from ((f'{name}[{i}]', row) for i, row in enumerate(rows))
  _, captured = model.apply(
    dict(variables),
    batch['images'],
    batch['image_sizes'],
    Instances(**batch['instances']),
    batch['valid'],
    part=part,
    rngs={'sampling': key},
    mutable=['batch_stats', 'intermediates'],
    capture_intermediates=True,
  )
  for path, value in _named(captured['intermediates']):
    yield f'output of {path.replace("/__call__", "")}', value


def _named(tree, path='') -> Iterator[tuple[str, jax.Array]]:
  """Float leaves by path, in the order they were put into the dicts."""
  if isinstance(tree, Mapping):
    for name, value in tree.items():
      yield from _named(value, f'{path}/{name}' if path else name)
    return
  for leaf in jax.tree.leaves(tree):
    if jnp.issubdtype(leaf.dtype, jnp.floating):
      yield path, leaf


def collapsed_score(
  workdir, step: int, values: Mapping[str, float]
) -> str | None:
  """A warning if the values of an evaluation are far below earlier ones.

  Args:
    workdir: of the run; `metrics.jsonl` has the earlier evaluations.
    values: by the keys of `metrics.jsonl`.
  """
  name = 'eval/mask_AP' if 'eval/mask_AP' in values else 'eval/AP'
  found = scores.read(workdir, name)
  earlier = {s: v for s, v in found.items() if v is not None and s < step}
  best = max(earlier, key=earlier.get, default=None)
  if best is None or earlier[best] < _MIN_BEST:
    return None
  if values[name] >= _COLLAPSED_SHARE * earlier[best]:
    return None
  return (
    f'step {step}: {name} fell to {values[name]:.4g} from {earlier[best]:.4g} '
    f'at step {best}. The run may have diverged; keep the checkpoints of that '
    'time.'
  )


def reason_to_stop(
  workdir,
  step: int,
  metric: str,
  patience: int,
  counts: Callable[[int], bool] = lambda step: True,
) -> str | None:
  """The reason to end a run early after an evaluation; None: go on.

  Earlier evaluations are read from `WORKDIR/metrics.jsonl`, so a run that is
  killed and resumed decides as one that was not.

  Args:
    step: finished; later evaluations, of a run that went back, do not count.
    metric: a key of `metrics.jsonl`, see `scores`.
    patience: evaluations in a row without an improvement that are enough; a
      value that is not finite is no improvement.
  """
  found = scores.read(workdir, metric)
  found = {s: v for s, v in found.items() if s <= step and counts(s)}
  best = scores.best_step(found, metric, first=True)
  later, since = len(found), 'never had a value'
  if best is not None:
    later = sum(s > best for s in found)
    since = f'has not improved since step {best} ({found[best]:.4g})'
  if later < patience:
    return None
  return (
    f'stopped early at step {step}: {metric} {since}, in {later} evaluations. '
    f'training.patience is {patience}; with a higher one, or None, the same '
    'command continues.'
  )
