"""Trains and evaluates a config in a workdir.

A run writes `config.json`, `checkpoints/`, `metrics.jsonl`, TensorBoard events,
`eval/detections-STEP.json` and `pictures/` into its workdir. The same command
again continues from the newest checkpoint.
"""

import collections
import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from maskrcnn_jax.input_pipeline import batches as input_batches
from maskrcnn_jax.models import override
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.training import checkpoint, metrics, sharding
from maskrcnn_jax.training import train_step as step_lib
from maskrcnn_jax.training.evaluator import (
  Evaluator,
  check_batch_size,
  class_names,
)

# Steps that may run before the flag of a step is read, so that the device
# always has work while the host waits.
_FLAG_LAG = 2


class NonFiniteError(FloatingPointError):
  """A loss or a gradient is not finite; the parameters were not updated."""


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
  """The section `training` of a config.

  Attributes:
    num_steps: length of the run.
    seed: of the initial parameters and of the sampling of RoIs.
    log_every_steps: metrics are means over so many steps.
    checkpoint_every_steps: the end of the run is always saved.
    keep_checkpoints: how many stay on disk, the newest.
    pictures: how many images of an evaluation are drawn.
  """

  num_steps: int
  seed: int = 0
  log_every_steps: int = 50
  checkpoint_every_steps: int = 1000
  keep_checkpoints: int = 3
  pictures: int = 8

  def __post_init__(self):
    for name in ('num_steps', 'log_every_steps', 'checkpoint_every_steps'):
      if getattr(self, name) < 1:
        raise ValueError(
          f'training.{name} must be at least 1, got {getattr(self, name)}.'
        )


def train(config, workdir) -> None:
  """Trains up to `config.training.num_steps`, or continues to.

  Args:
    config: a ConfigDict with the sections `model, input, optimizer, training`.
    workdir: directory of the run; made if missing.

  Raises:
    ValueError: an input is wrong, or the workdir holds another model.
    NonFiniteError: training diverged.
  """
  _train(config, workdir, evaluator=None)


def train_and_evaluate(config, workdir) -> dict[str, float]:
  """Trains, evaluating on the way and at the end.

  Args:
    config: a ConfigDict with all sections.
    workdir: directory of the run; made if missing.

  Returns:
    The 24 numbers of the last evaluation.

  Raises:
    ValueError: an input is wrong, or the workdir holds another model.
    FileNotFoundError: the annotations file is missing.
    NonFiniteError: training diverged.
  """
  checkpoint.check_workdir(workdir, config)
  evaluator = Evaluator(config, workdir)
  _train(config, workdir, evaluator)
  return _evaluate(evaluator, workdir)


def evaluate(config, workdir, step: int | None = None) -> dict[str, float]:
  """Evaluates a checkpoint on every image of the evaluation set.

  Args:
    config: a ConfigDict with the sections `model, input, training, evaluation`.
    workdir: directory of a run.
    step: which checkpoint; the newest if None.

  Returns:
    The 24 numbers, `eval/AP` to `eval/mask_ARl`.

  Raises:
    FileNotFoundError: the workdir holds no such checkpoint.
    ValueError: an input is wrong, or the workdir holds another model.
  """
  checkpoint.check_workdir(workdir, config, step)
  return _evaluate(Evaluator(config, workdir), workdir, step)


def _evaluate(evaluator, workdir, step=None) -> dict[str, float]:
  variables, _ = checkpoint.restore(workdir, step)
  step = checkpoint.latest_step(workdir) if step is None else step
  with metrics.MetricWriter(workdir, enabled=_is_first_host()) as writer:
    return evaluator(step, variables, writer)


def _train(config, workdir, evaluator: Evaluator | None) -> None:
  """The loop over the steps; leaves the last state as a checkpoint."""
  training = override.make(TrainingOptions, config.training, 'training')
  num_steps = training.num_steps
  checkpoint.check_workdir(workdir, config)
  check_batch_size('input', config.input.batch_size)
  done = checkpoint.latest_step(workdir) or 0
  if done >= num_steps:
    if _is_first_host():
      print(f'{workdir} has {done} of {num_steps} steps: nothing to train.')
    return
  mesh = sharding.make_mesh()
  model = MaskRCNN.from_config(config.model)
  batches = _train_batches(config, workdir, model.num_classes)
  first = next(batches)
  init_key, key = jax.random.split(jax.random.key(training.seed))
  state, optimizer = step_lib.create_train_state(
    model, config.optimizer, first[0], init_key
  )
  state = jax.device_put(state, sharding.replicated(mesh))
  restored = checkpoint.restore_latest(workdir, state, config)
  state = restored.state if restored else state
  checkpoint.claim_workdir(workdir, config)
  classes = class_names(config.get('evaluation', {}).get('annotations_file'))
  compiled, window, flags = {}, [], collections.deque()
  rate = metrics.ImageRate()
  with (
    checkpoint.CheckpointWriter(workdir, training.keep_checkpoints) as saved,
    metrics.MetricWriter(workdir, num_steps, done, _is_first_host()) as writer,
  ):
    if restored:
      writer.say(f'continuing from step {done} of {workdir}')
    steps = range(done + 1, num_steps + 1)
    batches = itertools.chain([first], batches)
    for step, (batch, position) in zip(steps, batches):
      inputs = state, sharding.put_batch(batch, mesh), key
      canvas = batch['images'].shape[1:3]
      if canvas not in compiled:
        with rate.paused():
          compiled[canvas] = _compile(model, optimizer, mesh, inputs, writer)
      state, values = compiled[canvas](*inputs)
      rate.add(len(batch['valid']) * jax.process_count())
      flags.append((step, batch['image_ids'], values))
      last = step == num_steps
      log = last or step % training.log_every_steps == 0
      save = last or step % training.checkpoint_every_steps == 0
      look = evaluator and _is_due(step, evaluator.options.every_steps)
      # What is saved, logged or evaluated comes from finite steps only.
      _check_finite(flags, 0 if log or save or look else _FLAG_LAG)
      window.append({k: v for k, v in values.items() if k != 'finite'})
      writer.advance(step)
      if log:
        _log(writer, step, num_steps, window, rate)
        window = []
      if save:
        saved.save(step, state, position, config, classes)
      if look and not last:  # The end is evaluated from its checkpoint.
        with rate.paused():
          evaluator(step, state.variables(), writer)


def _is_due(step: int, every_steps: int) -> bool:
  return every_steps > 0 and step % every_steps == 0


def _train_batches(
  config, workdir, num_classes: int
) -> Iterator[tuple[dict, dict]]:
  """This host's batches, each with the position after it."""
  position = {'examples': 0, 'salt': 0}
  if checkpoint.latest_step(workdir) is not None:
    position = checkpoint.read_position(workdir)
  batches = input_batches.train_batches(
    **config.input,
    start_examples=position['examples'],
    salt=position['salt'],
    host_index=jax.process_index(),
    host_count=jax.process_count(),
  )
  for batch in batches:
    _check_classes(batch, num_classes)
    yield batch, dict(batches.position)


def _compile(model, optimizer, mesh, inputs, writer):
  """The training step for the shapes of the inputs; replaces the state."""
  height, width = inputs[1]['images'].shape[1:3]
  writer.say(f'compiling the step for {height}x{width}, once per canvas')
  start = time.monotonic()
  replicated = sharding.replicated(mesh)
  step = jax.jit(
    functools.partial(step_lib.train_step, model, optimizer),
    in_shardings=(replicated, sharding.batch_sharding(mesh), replicated),
    out_shardings=replicated,
    donate_argnums=0,
  )
  compiled = step.lower(*inputs).compile()
  writer.say(f'compiled in {time.monotonic() - start:.0f} s')
  return compiled


def _check_finite(flags: collections.deque, lag: int = 0) -> None:
  """Raises for the first step that was not applied; leaves `lag` unread."""
  while len(flags) > lag:
    step, image_ids, values = flags.popleft()
    if not values['finite']:
      raise NonFiniteError(
        f'step {step}: {_what_is_not_finite(values)}; images '
        f'{image_ids.tolist()}. The parameters were not updated, and no later '
        'checkpoint was written.'
      )


def _what_is_not_finite(values: Mapping) -> str:
  """The terms at fault; the total and the gradient only if no term is."""
  sums = ('total_loss', 'gradient_norm')
  wrong = {k: float(v) for k, v in values.items() if not np.isfinite(v)}
  terms = [f'{k} is {v}' for k, v in wrong.items() if k not in sums]
  if terms:
    return f'loss term {", ".join(terms)}'
  return ', '.join(f'{k} is {wrong[k]}' for k in sums if k in wrong)


def _check_classes(batch: Mapping, num_classes: int) -> None:
  """Raises for an instance whose class the model does not have."""
  classes = batch['instances']['classes']
  rows = np.flatnonzero(np.max(classes, axis=1, initial=0) >= num_classes)
  if rows.size:
    raise ValueError(
      f'Image {batch["image_ids"][rows[0]]} has class '
      f'{np.max(classes[rows[0]])}; model.num_classes is {num_classes}, so '
      f'classes may be 1 to {num_classes - 1}.'
    )


def _log(writer, step, num_steps, window, rate) -> None:
  """Reports a window of steps."""
  values = metrics.means(window)
  # Read after the values: they are there when the device has done the steps.
  values['images_per_second'] = rate.read()
  writer.scalars(step, {f'train/{k}': v for k, v in values.items()})
  speed = values['images_per_second']
  writer.show(step, num_steps, values['total_loss'], speed)


def _is_first_host() -> bool:
  return jax.process_index() == 0
