"""The steps of a run: what happens in each, and what is done about bad ones.

A step that is not finite is skipped and named; several in a row end the pass,
so that `loop.py` can go back to the newest checkpoint.
"""

import collections
import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from maskrcnn_jax.checkpoints import store as checkpoint
from maskrcnn_jax.distributed import collectives, watchdog
from maskrcnn_jax.distributed import mesh as sharding
from maskrcnn_jax.habana import metric_names as seed_names
from maskrcnn_jax.input_pipeline import batches as input_batches
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.training import (
  data_checks,
  diagnosis,
  evaluations,
  health,
  metrics,
  stopping,
  summary,
  tracing,
)
from maskrcnn_jax.training import train_step as step_lib
from maskrcnn_jax.training.evaluator import Evaluator
from maskrcnn_jax.training.options import TrainingOptions

# Steps that may run before the flag of a step is read, so that the device
# always has work while the host waits.
_FLAG_LAG = 2


@dataclasses.dataclass(frozen=True)
class Run:
  """What stays as it is when a run goes back."""

  config: Any
  workdir: Any
  training: TrainingOptions
  mesh: Any
  model: MaskRCNN
  optimizer: step_lib.Optimizer
  key: jax.Array
  evaluator: Evaluator | None
  classes: dict[int, str | dict]
  first_step: int
  compiled: dict
  saved: checkpoint.CheckpointWriter
  writer: metrics.MetricWriter
  summary: summary.RunSummary
  trace: tracing.Trace
  health: health.Health
  stop: stopping.Termination
  watch: watchdog.Watchdog


def run_steps(run: Run, state, done: int, position) -> dict | None:
  """The loop over the steps.

  Args:
    run: what stays as it is.
    state: before the first of them.
    done: finished steps.
    position: of the input.

  Returns:
    The numbers of the last evaluation if they ended the run, see
    `early_stopping`; None if it went to its end, or had ended before.

  Raises:
    Rewind: too many steps in a row were not finite.
    Stopped: SIGTERM asked for it.
  """
  training, config = run.training, run.config
  if evaluations.is_missing(run.evaluator, run.workdir, done):
    values = _evaluate(run, done, state)
    if values is not None:
      return values
  elif _is_stopped(run, done):
    return None
  batches = train_batches(config, position, run.model.num_classes)
  window, flags, is_saved = [], collections.deque(), True
  steps = range(done + 1, training.num_steps + 1)
  for step, (batch, position, left_out) in zip(steps, batches):
    run.watch.heartbeat(f'step {step}: training')
    inputs = state, sharding.put_batch(batch, run.mesh), run.key
    canvas = batch['images'].shape[1:3]
    if canvas not in run.compiled:
      with run.summary.paused(), run.watch.paused():
        run.compiled[canvas] = _compile(run, inputs)
    run.trace.before(step - run.first_step)
    state, values = run.compiled[canvas](*inputs)
    run.trace.after(step - run.first_step, values)
    run.summary.add(
      len(batch['valid']) * jax.process_count(),
      functools.partial(jax.block_until_ready, values),
    )
    flags.append((step, batch['image_ids'], inputs[1], values))
    last = step == training.num_steps
    log = last or step % training.log_every_steps == 0
    show = _is_due(step, training.summary_every_steps)
    # The end is evaluated from its checkpoint.
    evaluator = run.evaluator
    look = evaluator and not last and evaluator.options.is_due(step)
    save = last or look or step % training.checkpoint_every_steps == 0
    stop = not last and run.stop.requested(step)
    # What is saved, logged or evaluated is known to be finite.
    settled = log or save or show or stop
    window += _settle(run, flags, state, 0 if settled else _FLAG_LAG)
    run.writer.advance(step)
    if show and values['finite']:
      named = {**seed_names.tensorboard(values), **run.summary.seed_rates()}
      run.writer.board_scalars(step, named)
    if log and window:
      _log(run, step, window, left_out)
      window = []
    # What a full disk did not take is tried again before long.
    if save or stop or (log and not is_saved):
      is_saved = run.saved.save(step, state, position, config, run.classes)
    if (last or stop) and not is_saved:
      raise _not_saved(run, step)
    if stop:
      raise stopping.Stopped(f'step {step}')
    if look:
      values = _evaluate(run, step, state)
      if values is not None and not is_saved:
        raise _not_saved(run, step)
      if values is not None:
        return values
    run.watch.heartbeat(f'step {step + 1}: reading')
  return None


def _evaluate(run: Run, step: int, state) -> dict[str, float] | None:
  """Evaluates on the way; returns the numbers if the run should end."""
  with run.summary.paused(), run.stop.at_once():
    values = evaluations.look_at(
      run.evaluator,
      run.workdir,
      step,
      state.variables(),
      run.writer,
      run.watch.heartbeat,
    )
  return values if _is_stopped(run, step) else None


def _is_stopped(run: Run, step: int) -> bool:
  """Whether the run has learnt what it will, which is said."""
  reason = evaluations.reason_to_stop(
    run.training, run.evaluator, run.workdir, step
  )
  if reason:
    run.writer.say(reason)
  return reason is not None


def _not_saved(run: Run, step: int) -> checkpoint.SaveError:
  return checkpoint.SaveError(
    f'Step {step} could not be saved in {run.workdir}, whose disk is full. '
    'Free some space and run the same command: it goes on from the newest '
    'checkpoint.'
  )


def _settle(run: Run, flags: collections.deque, state, lag: int) -> list[dict]:
  """Reads the flags of steps but the last `lag`; metrics of the finite ones.

  Raises:
    Rewind: too many steps in a row were not finite.
  """
  finite = []
  while len(flags) > lag:
    step, image_ids, batch, values = flags.popleft()
    values = dict(values)
    if values.pop('finite'):
      finite.append(values)
      message = run.health.good_step(step, values, image_ids.tolist())
    else:
      gathered = collectives.all_gather(image_ids.tolist())
      image_ids = list(itertools.chain.from_iterable(gathered))
      message = run.health.bad_step(step, values, image_ids)
      if run.health.is_first_in_a_row():
        message += f'. {_first_nonfinite(run, step, batch, state)}'
    if message:
      run.writer.say(f'WARNING: {message}')
    if run.health.must_rewind():
      raise health.Rewind
  return finite


def _first_nonfinite(run: Run, step: int, batch, state) -> str:
  """Names the tensor where a step went wrong, seen by doing it again."""
  # The keys of `train_step`, for the same RoIs.
  key = jax.random.fold_in(run.key, step - 1)
  _, sampling_key = jax.random.split(key)
  # What is trained, which `state.variables()` need not be.
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  name = diagnosis.first_nonfinite(run.model, variables, batch, sampling_key)
  if name is None:
    return 'All tensors of the forward pass are finite: it is a gradient'
  return f'First tensor that is not finite: {name}'


def train_batches(
  config, position: Mapping[str, int], num_classes: int
) -> Iterator[tuple[dict, dict, dict[str, int]]]:
  """This host's batches from a position on.

  Each comes with the position after it, and with the number of rows and objects
  by kind that this host left out so far.
  """
  batches = input_batches.train_batches(
    **config.input,
    start_examples=position['examples'],
    salt=position['salt'],
    host_index=jax.process_index(),
    host_count=jax.process_count(),
  )
  for batch in batches:
    data_checks.check_batch_classes(batch, num_classes)
    yield batch, dict(batches.position), dict(batches.counts)


def _compile(run: Run, inputs):
  """The training step for the shapes of the inputs; replaces the state."""
  writer, mesh = run.writer, run.mesh
  height, width = inputs[1]['images'].shape[1:3]
  writer.say(f'compiling the step for {height}x{width}, once per canvas')
  start = time.monotonic()
  places = jax.tree.map(lambda x: x.sharding, inputs[0])
  step = step_lib.jit_train_step(run.model, run.optimizer, mesh, places)
  compiled = step.lower(*inputs).compile()
  writer.say(
    f'compiled in {time.monotonic() - start:.0f} s'
    f'{_operations(compiled, len(inputs[1]["images"]), mesh)}'
  )
  collectives.barrier()
  return compiled


def _operations(compiled, batch_size, mesh) -> str:
  """What the compiler counts for an image, in words; '' if it does not say."""
  costs = compiled.cost_analysis() or {}
  # The compiler counts what one device does.
  count = costs.get('flops', 0) * mesh.size / batch_size
  return f', {count / 1e9:.3g} GFLOP an image' if count > 0 else ''


def _log(run: Run, step: int, window, left_out: Mapping[str, int]) -> None:
  """Reports a window of steps, and what of the input was left out so far."""
  values = metrics.means(window)
  # Read after the values: they are there when the device has done the steps.
  rate = run.summary.window_rate()
  run.summary.values = values
  named = {**values, 'images_per_second': rate}
  if run.health.skipped:
    named['skipped_steps'] = run.health.skipped
  named |= {f'left_out_{kind}': n for kind, n in left_out.items() if n}
  run.writer.scalars(step, {f'train/{k}': v for k, v in named.items()})
  note = '' if run.summary.is_warm() else ' (warm-up)'
  run.writer.show(step, run.training.num_steps, values, rate, note)


def _is_due(step: int, every_steps: int | None) -> bool:
  return bool(every_steps) and step % every_steps == 0
