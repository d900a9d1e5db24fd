"""Trains and evaluates a config in a workdir.

A run writes `config.json`, `checkpoints/`, `metrics.jsonl`, TensorBoard events,
`curves.png`, `eval/detections-STEP.json`, `eval/classes-STEP.md` and
`pictures/` into its workdir. The same command again continues from the newest
checkpoint, whatever it started from.
"""

import functools
from collections.abc import Mapping

import jax

from maskrcnn_jax import charts
from maskrcnn_jax.checkpoints import store as checkpoint
from maskrcnn_jax.distributed import mesh as sharding
from maskrcnn_jax.distributed import model_sharding, watchdog
from maskrcnn_jax.models import override
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.training import (
  data_checks,
  evaluations,
  finetuning,
  health,
  metrics,
  pretrained,
  steps,
  stopping,
  summary,
  tracing,
  train_state,
)
from maskrcnn_jax.training import train_step as step_lib
from maskrcnn_jax.training.evaluator import Evaluator
from maskrcnn_jax.training.options import TrainingOptions

_START = {'examples': 0, 'salt': 0}


def train(config, workdir, notes: Mapping[str, str] | None = None) -> None:
  """Trains up to `config.training.num_steps`, or continues to.

  Args:
    config: a ConfigDict with the sections `model, input, optimizer, training`.
    workdir: directory of the run; made if missing.
    notes: texts by file name, kept in the workdir beside the config.

  Raises:
    ValueError: an input is wrong, or the workdir holds another model.
    NonFiniteError: training diverged, also with other data.
    Stopped: SIGTERM asked for it; the state is saved.
  """
  checkpoint.check_workdir(workdir, config)
  classes = data_checks.run_classes(config, workdir)
  _train(config, workdir, None, notes, classes)


def train_and_evaluate(
  config, workdir, notes: Mapping[str, str] | None = None
) -> dict[str, float]:
  """Trains, evaluating on the way and at the end.

  The end may come early, see `training.patience`.

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
    NonFiniteError: training diverged, also with other data.
    Stopped: SIGTERM asked for it; the state is saved.
  """
  checkpoint.check_workdir(workdir, config)
  classes = data_checks.run_classes(config, workdir)
  evaluator = Evaluator(config, workdir)
  values = _train(config, workdir, evaluator, notes, classes)
  if values is not None:
    return values
  step = checkpoint.latest_step(workdir)
  if not evaluator.options.is_due(step, is_last=True):
    return {}
  variables, _ = checkpoint.restore(workdir)
  return _evaluate(evaluator, workdir, step, variables, config)


def evaluate(
  config,
  workdir,
  step: int | str | None = None,
  source: str | None = None,
) -> dict[str, float]:
  """Evaluates a checkpoint on every image of the evaluation set.

  Args:
    config: a ConfigDict with the sections `model, input, training, evaluation`.
    workdir: directory of a run, or where the results shall be.
    step: which checkpoint of the workdir, its number or `'best'`; the newest
      if None.
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
    if checkpoint.is_checkpoint(source):
      classes = data_checks.checkpoint_classes(source)
      data_checks.check_validation_classes(config, classes, source)
    evaluator = Evaluator(config, workdir)
    return _evaluate(evaluator, workdir, step, variables, config)
  checkpoint.check_workdir(workdir, config, step)
  if step is None:
    step = checkpoint.latest_step(workdir)
  else:
    step = checkpoint.step_of(workdir, step)
  if step is None:
    found = checkpoint.foreign_checkpoints(workdir)
    hint = f' There is {found[-1]}: name it with --checkpoint.' if found else ''
    raise FileNotFoundError(
      f'{workdir} holds no checkpoint, so there is nothing to evaluate.{hint}'
    )
  classes = data_checks.checkpoint_classes(workdir, step)
  data_checks.check_validation_classes(config, classes, workdir)
  evaluator = Evaluator(config, workdir)
  variables, _ = checkpoint.restore(workdir, step)
  return _evaluate(evaluator, workdir, step, variables, config)


def _evaluate(evaluator, workdir, step, variables, config) -> dict[str, float]:
  with (
    metrics.MetricWriter(workdir, enabled=_is_first_host()) as writer,
    _watchdog(config) as watch,
  ):
    return evaluations.look_at(
      evaluator, workdir, step, variables, writer, watch.heartbeat
    )


def _watchdog(config) -> watchdog.Watchdog:
  return watchdog.Watchdog(config.get('runtime', {}).get('watchdog_seconds', 0))


def _train(
  config, workdir, evaluator: Evaluator | None, notes, classes
) -> dict[str, float] | None:
  """Trains from the newest checkpoint on; leaves the last state as one.

  Returns:
    What `steps.run_steps` returns.
  """
  training = override.make(TrainingOptions, config.training, 'training')
  num_steps = training.num_steps
  evaluations.check(training, evaluator)
  checkpoint.check_workdir(workdir, config)
  mesh = sharding.config_mesh(config)
  shard_state = sharding.config_shard_state(config)
  model = MaskRCNN.from_config(config.model)
  data_checks.check_batch_size('input', config.input.batch_size, mesh)
  done = checkpoint.latest_step(workdir) or 0
  if done >= num_steps:
    if _is_first_host():
      print(f'{workdir} has {done} of {num_steps} steps: nothing to train.')
    return None
  trace = tracing.Trace(workdir, training.profile)
  if not done:
    pretrained.check(training.pretrained, model)
  # Read before anything is made, so that wrong data leave nothing behind.
  first, *_ = next(steps.train_batches(config, _START, model.num_classes))
  init_key, key = jax.random.split(jax.random.key(training.seed))
  create = functools.partial(
    step_lib.create_train_state, model, config.optimizer, first, init_key
  )

  def resume():
    """State, optimizer, finished steps, data position, what was loaded."""
    fresh, optimizer = create()
    places = sharding.state_shardings(fresh, mesh, shard_state)
    state = sharding.put(fresh, places)
    restored = checkpoint.restore_latest(workdir, state, config)
    if restored:
      return restored.state, optimizer, restored.step, restored.position, ''
    if not training.pretrained:
      return state, optimizer, 0, _START, ''
    state, account = pretrained.start_from(
      training.pretrained,
      fresh,
      finetuning.load_options(training, data_checks.names_of(classes)),
    )
    state = sharding.put(train_state.restart_average(state), places)
    return state, optimizer, 0, _START, account

  state, optimizer, done, position, account = resume()
  checkpoint.check_can_save(workdir, state, training.keep_checkpoints)
  checkpoint.claim_workdir(workdir, config, notes)
  with (
    charts.drawn_at_end(workdir, _is_first_host()),
    checkpoint.CheckpointWriter(workdir, **training.kept()) as saved,
    metrics.MetricWriter(workdir, num_steps, done, _is_first_host()) as writer,
    summary.RunSummary(writer, training.log_file) as account_of_run,
    trace,
    stopping.Termination() as stop,
    _watchdog(config) as watch,
  ):
    run = steps.Run(
      config=config,
      workdir=workdir,
      training=training,
      mesh=mesh,
      model=model_sharding.shard_model(model, mesh, shard_state),
      optimizer=optimizer,
      key=key,
      evaluator=evaluator,
      classes=data_checks.saved_classes(classes),
      first_step=done,
      compiled={},
      saved=saved,
      writer=writer,
      summary=account_of_run,
      trace=trace,
      health=health.Health(training.max_bad_steps),
      stop=stop,
      watch=watch,
    )
    _say_start(run, state, account)
    while True:
      try:
        return steps.run_steps(run, state, done, position)
      except health.Rewind:
        saved.wait()
        state, _, done, position, _ = resume()
        run.health.rewind(done)
        position = {**position, 'salt': position['salt'] + 1}
        writer.say(
          f'WARNING: going back to step {done}, and on with other data (salt '
          f'{position["salt"]})'
        )


def _say_start(run: steps.Run, state, account: str) -> None:
  """Tells what is about to be trained, and from what."""
  writer, config, mesh = run.writer, run.config, run.mesh
  kind = mesh.devices.flat[0].device_kind
  writer.say(
    f'training on {mesh.size} {kind} with {config.input.batch_size} images a '
    'step'
  )
  sizes = jax.tree.map(lambda x: x.size, state.params)
  learning = jax.tree.map(
    lambda size, learns: size * learns,
    sizes,
    run.optimizer.trainable(state.params),
  )
  counts = [sum(jax.tree.leaves(tree)) for tree in (sizes, learning)]
  fixed = sum(x.size for x in jax.tree.leaves(state.batch_stats))
  writer.say(
    f'{counts[0] + fixed:,} numbers in the model, {counts[1]:,} of them trained'
  )
  if run.first_step:
    writer.say(f'continuing from step {run.first_step} of {run.workdir}')
  else:
    writer.hyperparameters(_flat(config))
  for line in account.splitlines():
    writer.say(line)
  for path in checkpoint.foreign_checkpoints(run.workdir)[-1:]:
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


def _is_first_host() -> bool:
  return jax.process_index() == 0
