"""Training monitor: non-finite steps, loss spikes, AP collapse, early stop.

A non-finite step is skipped; several in a row send the run back to its newest
checkpoint. Of the record runs of MLPerf Training v0.7 to v3.1 one in seventy
fell to an AP of 0 and trained on for hours; here that is a warning.
"""

import collections
import contextlib
import itertools
import logging
import signal
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskrcnn_jax.distributed import collectives
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import scores
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
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
      find_nonfinite: of state, step and inputs, names the tensor at fault.
      say: prints a line.
    """
    self.num_skipped = 0
    self._max_bad_steps = max_bad_steps
    self._find_nonfinite = find_nonfinite
    self._say = say
    self._pending = collections.deque()
    self._in_a_row = []
    self._losses = collections.deque(maxlen=_MEDIAN_STEPS)
    self._rewound_to = None

  def add(self, step: int, image_ids: np.ndarray, inputs, metrics) -> None:
    """Queues a step that the device may still be doing.

    Args:
      step: its number.
      image_ids: `[batch]`, of this process.
      inputs: batch on the devices, to find a non-finite tensor.
      metrics: of `train_step`.
    """
    self._pending.append((step, image_ids, inputs, metrics))

  def settle(self, state, lag: int) -> list[dict]:
    """Waits for the queued steps but the last `lag`; warns of bad ones.

    It stops where the run must go back.

    Args:
      state: after the newest step.
      lag: steps that may stay in the queue.

    Returns:
      Metrics of the finite steps.
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
    loss = float(metrics['total_loss'])
    median = None
    if len(self._losses) >= _MIN_STEPS:
      median = statistics.median(self._losses)
    self._losses.append(loss)
    if median is None or loss <= SPIKE_FACTOR * median:
      return None
    terms = {k: float(v) for k, v in metrics.items() if k in _TERMS}
    worst = max(terms, key=terms.get)
    return (
      f'step {step}: loss spike: {loss:.4g} is {loss / median:.3g} times the '
      f'median {median:.4g}, most of it {worst} ({terms[worst]:.4g}); images '
      f'{list(image_ids)}'
    )

  def bad_step(
    self, step: int, metrics: Mapping[str, float], image_ids: Sequence[int]
  ) -> str:
    """Registers a step whose update was skipped; returns a warning."""
    self.num_skipped += 1
    reason = _nonfinite_terms(metrics)
    self._in_a_row.append(f'step {step}: {reason}; images {list(image_ids)}')
    return (
      f'{self._in_a_row[-1]}. The update was skipped, '
      f'{len(self._in_a_row)} in a row'
    )

  def must_rewind(self) -> bool:
    """Whether too many steps in a row were bad."""
    return len(self._in_a_row) >= self._max_bad_steps

  def rewind(self, step: int) -> None:
    """Registers that the run goes back to a checkpoint.

    Args:
      step: of the checkpoint.

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


def _nonfinite_terms(metrics: Mapping) -> str:
  """Names the terms at fault; total and gradient norm only if no term is."""
  sums = ('total_loss', 'gradient_norm')
  wrong = {k: float(v) for k, v in metrics.items() if not np.isfinite(v)}
  terms = [f'{k} is {v}' for k, v in wrong.items() if k not in sums]
  if terms:
    return f'loss term {", ".join(terms)}'
  return ', '.join(f'{k} is {wrong[k]}' for k in sums if k in wrong)


def find_nonfinite(model: MaskRCNN, key, state, step: int, inputs) -> str:
  """Names the tensor where a step went wrong, by computing it again.

  Args:
    model: that is trained.
    key: of the run.
    state: after the step, whose update was skipped.
    step: its number.
    inputs: its batch.
  """
  # The keys of `train_step`, for the same RoIs.
  _, sampling_key = jax.random.split(jax.random.fold_in(key, step - 1))
  # The trained parameters, which `state.variables()` need not be.
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  name = first_nonfinite(model, variables, inputs, sampling_key)
  if name is None:
    return 'All tensors of the forward pass are finite: it is a gradient'
  return f'First tensor that is not finite: {name}'


def first_nonfinite(
  model: MaskRCNN,
  variables: Mapping[str, Any],
  batch: Mapping[str, Any],
  key: jax.Array,
) -> str | None:
  """The first non-finite tensor of a step, in the order of computation.

  Compiled and run only after a step went wrong: the step itself reports only
  that it did, so that it stays fast.

  Args:
    model: that was trained.
    variables: its parameters and statistics.
    batch: of the step, as the step takes it.
    key: samples the RoIs.

  Returns:
    Its name: a parameter, an input with the row of the batch, or the output of
    a part of the model; None if all of these are finite.
  """
  names = []

  def is_finite(variables, batch, key):
    flags = []
    for name, value in _tensors(model, variables, batch, key):
      names.append(name)
      flags.append(jnp.all(jnp.isfinite(value)))
    return jnp.stack(flags)

  flags = jax.jit(is_finite)(variables, batch, key)
  wrong = [name for name, good in zip(names, flags.tolist()) if not good]
  return wrong[0] if wrong else None


def _tensors(model, variables, batch, key) -> Iterator[tuple[str, jax.Array]]:
  """Name and value of every float tensor of a step, in order."""
  yield from _named(variables)
  for name in ('images', 'image_sizes'):
    for row in range(len(batch[name])):
      yield f'{name}[{row}]', batch[name][row]
  for row in range(len(batch['images'])):
    yield f'instances.boxes[{row}]', batch['instances']['boxes'][row]
  _, captured = model.apply(
    dict(variables),
    batch['images'],
    batch['image_sizes'],
    Instances(**batch['instances']),
    batch['valid'],
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
  """A warning if an evaluation is far below an earlier one of the run.

  Args:
    workdir: of the run; `metrics.jsonl` has the earlier evaluations.
    step: that was evaluated.
    values: of the evaluation, by the keys of `metrics.jsonl`.
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

  Earlier evaluations are read from `WORKDIR/metrics.jsonl` every time. So a run
  that is killed and resumed decides as one that was not, and one that has
  stopped stops again.

  Args:
    workdir: of the run.
    step: finished; later evaluations, of a run that went back, do not count.
    metric: a key of `metrics.jsonl`, see `scores`.
    patience: evaluations in a row without an improvement that are enough; a
      value that is not finite is no improvement.
    counts: whether an evaluation after a step counts.
  """
  found = scores.read(workdir, metric)
  found = {s: v for s, v in found.items() if s <= step and counts(s)}
  best = scores.best_step(found, metric, first=True)
  later = sum(best is None or s > best for s in found)
  if later < patience:
    return None
  since = 'never had a value'
  if best is not None:
    since = f'has not improved since step {best} ({found[best]:.4g})'
  return (
    f'stopped early at step {step}: {metric} {since}, in {later} evaluations. '
    f'training.patience is {patience}; with a higher one, or None, the same '
    'command continues.'
  )


class Stopped(SystemExit):
  """The run got SIGTERM, and its state is saved: exit code 0."""

  def __init__(self, message: str):
    super().__init__(0)
    self.message = message


class Termination:
  """Handler of SIGTERM, by which schedulers end a job; a context manager.

  In a job of several processes JAX notices the signal in any of them and finds
  a step that all of them stop at.
  """

  def __init__(self):
    self._requested = self._may_exit_now = False
    self._handler_before = None

  def requested(self, step: int) -> bool:
    """Whether to save and end after this step; all processes must ask."""
    if jax.process_count() == 1:
      return self._requested
    return collectives.preempted(step)

  @contextlib.contextmanager
  def exiting_at_once(self):
    """Exits at once on SIGTERM; for phases in which everything is saved."""
    self._may_exit_now = True
    try:
      if self._requested:
        raise Stopped('SIGTERM')
      yield
    finally:
      self._may_exit_now = False

  def _handle(self, *unused_signal):
    self._requested = True
    if self._may_exit_now:
      raise Stopped('SIGTERM')

  def __enter__(self):
    is_main = threading.current_thread() is threading.main_thread()
    if jax.process_count() == 1 and is_main:
      self._handler_before = signal.signal(signal.SIGTERM, self._handle)
    return self

  def __exit__(self, *unused_error):
    if self._handler_before is not None:
      signal.signal(signal.SIGTERM, self._handler_before)
