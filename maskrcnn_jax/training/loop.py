"""Trains and evaluates a config in a workdir.

A run writes `config.json`, `checkpoints/`, `metrics.jsonl`, TensorBoard events,
`eval/detections-STEP.json` and `pictures/` into its workdir. The same command
again continues from the newest checkpoint, whatever it started from.
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
from maskrcnn_jax.training import (
  checkpoint,
  metrics,
  pretrained,
  seed_names,
  sharding,
  summary,
  tracing,
)
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
    pretrained: prefix of a TensorFlow checkpoint, of a backbone or of a whole
      Mask R-CNN, that a run starts from; None or '' for random values.
    summary_every_steps: TensorBoard also shows metrics of single steps under
      the seed's names, this often; None: not.
    log_file: JSON lines that sum up the run under the seed's names; None: none.
    profile: first and last step to trace for TensorBoard's profiler, counted
      from the start of the process; None: no trace.
  """

  num_steps: int
  seed: int = 0
  log_every_steps: int = 50
  checkpoint_every_steps: int = 1000
  keep_checkpoints: int = 3
  pictures: int = 8
  pretrained: str | None = None
  summary_every_steps: int | None = None
  log_file: str | None = None
  profile: tuple[int, int] | None = None

  def __post_init__(self):
    for name in ('num_steps', 'log_every_steps', 'checkpoint_every_steps'):
      if getattr(self, name) < 1:
        raise ValueError(
          f'training.{name} must be at least 1, got {getattr(self, name)}.'
        )


def train(config, workdir, notes: Mapping[str, str] | None = None) -> None:
  """Trains up to `config.training.num_steps`, or continues to.

  Args:
    config: a ConfigDict with the sections `model, input, optimizer, training`.
    workdir: directory of the run; made if missing.
    notes: texts by file name, kept in the workdir beside the config.

  Raises:
    ValueError: an input is wrong, or the workdir holds another model.
    NonFiniteError: training diverged.
  """
  _train(config, workdir, None, notes)


def train_and_evaluate(
  config, workdir, notes: Mapping[str, str] | None = None
) -> dict[str, float]:
  """Trains, evaluating on the way and at the end.

  Args:
    config: a ConfigDict with all sections.
    workdir: directory of the run; made if missing.
    notes: see `train`.

  Returns:
    The 24 numbers of the last evaluation; {} on all hosts but the first, or if
    `evaluation.skip_first` leaves it out.

  Raises:
    ValueError: an input is wrong, or the workdir holds another model.
    FileNotFoundError: the annotations file is missing.
    NonFiniteError: training diverged.
  """
  checkpoint.check_workdir(workdir, config)
  evaluator = Evaluator(config, workdir)
  _train(config, workdir, evaluator, notes)
  step = checkpoint.latest_step(workdir)
  if not evaluator.options.is_due(step, is_last=True):
    return {}
  return _evaluate(evaluator, workdir, step, checkpoint.restore(workdir)[0])


def evaluate(
  config, workdir, step: int | None = None, source: str | None = None
) -> dict[str, float]:
  """Evaluates a checkpoint on every image of the evaluation set.

  Args:
    config: a ConfigDict with the sections `model, input, training, evaluation`.
    workdir: directory of a run, or where the results shall be.
    step: which checkpoint of the workdir; the newest if None.
    source: a checkpoint to take in place of the workdir's: of another run, or
      of a whole Mask R-CNN by TensorFlow.

  Returns:
    The 24 numbers, `eval/AP` to `eval/mask_ARl`; {} on all hosts but the first.

  Raises:
    FileNotFoundError: the workdir holds no such checkpoint.
    ValueError: an input is wrong, or the checkpoint is of another model.
  """
  if source is not None:
    model = MaskRCNN.from_config(config.model)
    variables, step = pretrained.whole_model(source, model, config)
    return _evaluate(Evaluator(config, workdir), workdir, step, variables)
  checkpoint.check_workdir(workdir, config, step)
  if step is None:
    step = checkpoint.latest_step(workdir)
  if step is None:
    found = checkpoint.foreign_checkpoints(workdir)
    hint = f' There is {found[-1]}: name it with --checkpoint.' if found else ''
    raise FileNotFoundError(
      f'{workdir} holds no checkpoint, so there is nothing to evaluate.{hint}'
    )
  evaluator = Evaluator(config, workdir)
  variables, _ = checkpoint.restore(workdir, step)
  return _evaluate(evaluator, workdir, step, variables)


def _evaluate(evaluator, workdir, step, variables) -> dict[str, float]:
  with metrics.MetricWriter(workdir, enabled=_is_first_host()) as writer:
    return evaluator(step, variables, writer)


def _train(config, workdir, evaluator: Evaluator | None, notes) -> None:
  """The loop over the steps; leaves the last state as a checkpoint."""
  training = override.make(TrainingOptions, config.training, 'training')
  num_steps = training.num_steps
  checkpoint.check_workdir(workdir, config)
  mesh = sharding.config_mesh(config)
  check_batch_size('input', config.input.batch_size, mesh)
  done = checkpoint.latest_step(workdir) or 0
  if done >= num_steps:
    if _is_first_host():
      print(f'{workdir} has {done} of {num_steps} steps: nothing to train.')
    return
  trace = tracing.Trace(workdir, training.profile)
  model = MaskRCNN.from_config(config.model)
  if not done:
    pretrained.check(training.pretrained, model)
  batches = _train_batches(config, workdir, model.num_classes)
  first = next(batches)
  init_key, key = jax.random.split(jax.random.key(training.seed))
  state, optimizer = step_lib.create_train_state(
    model, config.optimizer, first[0], init_key
  )
  account = ''
  if training.pretrained and not done:
    state, account = pretrained.start_from(training.pretrained, state)
  state = sharding.put_replicated(state, mesh)
  restored = checkpoint.restore_latest(workdir, state, config)
  state = restored.state if restored else state
  checkpoint.claim_workdir(workdir, config, notes)
  classes = class_names(_annotations_file(config, evaluator))
  compiled, window, flags = {}, [], collections.deque()
  with (
    checkpoint.CheckpointWriter(workdir, training.keep_checkpoints) as saved,
    metrics.MetricWriter(workdir, num_steps, done, _is_first_host()) as writer,
    summary.RunSummary(writer, training.log_file) as run,
    trace,
  ):
    _say_start(writer, config, workdir, mesh, state, optimizer, done, account)
    steps = range(done + 1, num_steps + 1)
    batches = itertools.chain([first], batches)
    for step, (batch, position) in zip(steps, batches):
      inputs = state, sharding.put_batch(batch, mesh), key
      canvas = batch['images'].shape[1:3]
      if canvas not in compiled:
        with run.paused():
          compiled[canvas] = _compile(model, optimizer, mesh, inputs, writer)
      trace.before(step - done)
      state, values = compiled[canvas](*inputs)
      trace.after(step - done, values)
      run.add(
        len(batch['valid']) * jax.process_count(),
        functools.partial(jax.block_until_ready, values),
      )
      flags.append((step, batch['image_ids'], values))
      last = step == num_steps
      log = last or step % training.log_every_steps == 0
      save = last or step % training.checkpoint_every_steps == 0
      show = _is_due(step, training.summary_every_steps)
      # The end is evaluated from its checkpoint.
      look = evaluator and not last and evaluator.options.is_due(step)
      # What is saved, logged or evaluated comes from finite steps only.
      _check_finite(flags, 0 if log or save or show or look else _FLAG_LAG)
      window.append({k: v for k, v in values.items() if k != 'finite'})
      writer.advance(step)
      if show:
        named = {**seed_names.tensorboard(values), **run.seed_rates()}
        writer.board_scalars(step, named)
      if log:
        _log(writer, step, num_steps, window, run)
        window = []
      if save:
        saved.save(step, state, position, config, classes)
      if look:
        with run.paused():
          evaluator(step, state.variables(), writer)


def _is_due(step: int, every_steps: int | None) -> bool:
  return bool(every_steps) and step % every_steps == 0


def _annotations_file(config, evaluator) -> str | None:
  """Where class names come from."""
  if evaluator:
    return evaluator.annotations_file
  return config.get('evaluation', {}).get('annotations_file')


def _say_start(
  writer, config, workdir, mesh, state, optimizer, done, account
) -> None:
  """Tells what is about to be trained, and from what."""
  kind = mesh.devices.flat[0].device_kind
  writer.say(
    f'training on {mesh.size} {kind} with {config.input.batch_size} images a '
    'step'
  )
  sizes = jax.tree.map(lambda x: x.size, state.params)
  learning = jax.tree.map(
    lambda size, learns: size * learns, sizes, optimizer.trainable(state.params)
  )
  counts = [sum(jax.tree.leaves(tree)) for tree in (sizes, learning)]
  fixed = sum(x.size for x in jax.tree.leaves(state.batch_stats))
  writer.say(
    f'{counts[0] + fixed:,} numbers in the model, {counts[1]:,} of them trained'
  )
  if done:
    writer.say(f'continuing from step {done} of {workdir}')
  else:
    writer.hyperparameters(_flat(config))
  for line in account.splitlines():
    writer.say(line)
  for path in checkpoint.foreign_checkpoints(workdir)[-1:]:
    writer.say(
      f'{path} is of a TensorFlow run: it is left alone and not continued. To '
      'start from its weights, name it in training.pretrained and take another '
      'workdir.'
    )


def _flat(section, prefix='') -> dict:
  """`section.field` -> value of a config."""
  values = {}
  for name, value in section.items():
    if isinstance(value, Mapping) or hasattr(value, 'items'):
      values |= _flat(value, f'{prefix}{name}.')
    else:
      values[prefix + name] = value
  return values


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
  writer.say(
    f'compiled in {time.monotonic() - start:.0f} s'
    f'{_operations(compiled, len(inputs[1]["images"]), mesh)}'
  )
  return compiled


def _operations(compiled, batch_size, mesh) -> str:
  """What the compiler counts for an image, in words; '' if it does not say."""
  costs = compiled.cost_analysis() or {}
  # The compiler counts what one device does.
  count = costs.get('flops', 0) * mesh.size / batch_size
  return f', {count / 1e9:.3g} GFLOP an image' if count > 0 else ''


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


def _log(writer, step, num_steps, window, run) -> None:
  """Reports a window of steps."""
  values = metrics.means(window)
  # Read after the values: they are there when the device has done the steps.
  rate = run.window_rate()
  run.values = values
  named = {**values, 'images_per_second': rate}
  writer.scalars(step, {f'train/{k}': v for k, v in named.items()})
  note = '' if run.is_warm() else ' (warm-up)'
  writer.show(step, num_steps, values, rate, note)


def _is_first_host() -> bool:
  return jax.process_index() == 0
