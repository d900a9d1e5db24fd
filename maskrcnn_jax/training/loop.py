"""Training loop: read, step, settle, log, save, evaluate.

A run writes `config.json`, `checkpoints/`, `metrics.jsonl`, TensorBoard events,
`curves.png`, `eval/detections-STEP.json`, `eval/classes-STEP.md` and
`pictures/` into its workdir. The same command again continues from the newest
checkpoint.
"""

import functools
import itertools
import time
from collections.abc import Mapping

import jax

from maskrcnn_jax import charts, override
from maskrcnn_jax.checkpoints import records_note, store, workdir_lock
from maskrcnn_jax.datasets import categories
from maskrcnn_jax.distributed import (
  allocator,
  arrays,
  collectives,
  model_sharding,
)
from maskrcnn_jax.distributed import mesh as mesh_lib
from maskrcnn_jax.distributed.termination import Stopped, Termination
from maskrcnn_jax.distributed.watchdog import config_watchdog
from maskrcnn_jax.habana import metric_names
from maskrcnn_jax.input_pipeline import batches as input_batches
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.optimization import epochs
from maskrcnn_jax.optimization.optimizer import make_optimizer
from maskrcnn_jax.training import (
  checkpoint_evaluation,
  class_checks,
  metrics,
  pretrained,
  summary,
  train_step,
)
from maskrcnn_jax.training import monitor as monitor_lib
from maskrcnn_jax.training.checkpoint_evaluation import evaluate as evaluate
from maskrcnn_jax.training.evaluator import Evaluator
from maskrcnn_jax.training.options import TrainingOptions, check_options

# Steps that may run before the metrics of a step are read: work for the device.
_LAG = 2


def train(config, workdir, notes: Mapping[str, str] | None = None) -> None:
  """Trains without evaluations; see `train_and_evaluate`."""
  train_and_evaluate(config, workdir, notes, evaluated=False)


def train_and_evaluate(
  config,
  workdir,
  notes: Mapping[str, str] | None = None,
  evaluated: bool = True,
) -> dict[str, float]:
  """Trains up to `config.training.num_steps`, or continues to.

  Args:
    config: a ConfigDict with the sections `model, input, optimizer, training`,
      and `evaluation` if the run is evaluated.
    workdir: directory of the run; made if missing.
    notes: texts by file name, kept in the workdir beside the config.

  Returns:
    The 24 numbers of the last evaluation; {} without one or on a later host.

  Raises:
    UserError: an input is wrong, or the workdir is in use or of another model.
    FileNotFoundError: the annotations file is missing.
    NonFiniteError: training diverged, also with other data.
    SaveError: the last step could not be saved.
    Stopped: SIGTERM or Ctrl-C ended the run; the state is saved.
  """
  with workdir_lock.held(workdir):
    return _train(config, workdir, notes, evaluated)


def _train(config, workdir, notes, evaluated: bool) -> dict[str, float]:
  # Whatever can be checked is checked before anything is written.
  config = epochs.with_steps(config)
  training = override.make(TrainingOptions, config.training, 'training')
  store.check_workdir(workdir, config)
  classes = class_checks.run_classes(config, workdir)
  evaluator = Evaluator(config, workdir) if evaluated else None
  check_options(training, evaluator and evaluator.options)
  mesh = mesh_lib.config_mesh(config)
  model = MaskRCNN.from_config(config.model)
  optimizer = make_optimizer(model, config.optimizer, training.num_steps)
  num_parts = optimizer.options.accumulate_steps
  arrays.check_batch_size(config.input.batch_size, mesh, num_parts)
  profile = summary.Profile(workdir, training.profile)
  done, num_steps = store.latest_step(workdir) or 0, training.num_steps
  is_first_host = jax.process_index() == 0
  if done >= num_steps:
    if is_first_host:
      print(f'{workdir} has {done} of {num_steps} steps: nothing to train.')
    return checkpoint_evaluation.evaluate_end(evaluator, config, workdir)
  if done:
    class_checks.check_training_classes(config, classes, workdir)
  else:
    pretrained.check(training.pretrained, model)

  # Restore the newest checkpoint, or make a state.
  batches = _batches(config, pretrained.START)
  first = next(batches)
  class_checks.check_batch_classes(first, model.num_classes)
  init_key, key = jax.random.split(jax.random.key(training.seed))
  start = functools.partial(
    *(pretrained.start, config, workdir, model, first, init_key, mesh),
    categories.names_of(classes),
  )
  restored, load_report = start()
  state, step = restored.state, restored.step
  position, first_step = restored.position, step
  if position != pretrained.START:
    batches, first = _batches(config, position), None
  shard_state = mesh_lib.config_shard_state(config)
  model = model_sharding.shard_model(model, mesh, shard_state)
  store.check_can_save(workdir, state, training.keep_checkpoints)
  notes = {**(notes or {}), **records_note.check(config, workdir, done)}
  store.claim_workdir(workdir, config, notes)

  with (
    charts.drawn_at_end(workdir, is_first_host),
    store.CheckpointWriter(workdir, *training.kept()) as saver,
    metrics.MetricWriter(workdir, num_steps, step, is_first_host) as writer,
    summary.RunSummary(writer, training.log_file) as run_summary,
    profile,
    Termination() as termination,
    config_watchdog(config) as watchdog,
  ):
    _announce(config, workdir, mesh, optimizer, restored, load_report, writer)
    monitor = monitor_lib.Monitor(
      training.max_bad_steps,
      functools.partial(
        monitor_lib.find_nonfinite, model, key, num_parts=num_parts
      ),
      writer.say,
    )
    compiled, window, values, is_saved = {}, [], None, True

    def evaluate():
      with run_summary.paused(), termination.exiting_at_once():
        return evaluator(step, state.variables(), writer, watchdog.heartbeat)

    # Make up for an evaluation that the process was killed before.
    if checkpoint_evaluation.is_missing(evaluator, workdir, step):
      values = evaluate()
    is_over = _stops_early(training, evaluator, workdir, step, writer)

    while not is_over and step < num_steps:
      # Read.
      step += 1
      watchdog.heartbeat(f'step {step}: reading')
      batch, first = first or next(batches), None
      class_checks.check_batch_classes(batch, model.num_classes)
      position = dict(batches.position)
      inputs = arrays.put_batch(batch, mesh)

      # Step.
      watchdog.heartbeat(f'step {step}: training')
      canvas = batch['images'].shape[1:3]
      if canvas not in compiled:
        with run_summary.paused(), watchdog.paused():
          compiled[canvas] = _compile(
            model, optimizer, mesh, state, inputs, key, writer
          )
        allocator.keep_freed_memory()
      profile.before(step - first_step)
      state, step_metrics = compiled[canvas](state, inputs, key)
      profile.after(step - first_step, step_metrics)
      run_summary.add(
        len(batch['valid']) * jax.process_count(),
        functools.partial(jax.block_until_ready, step_metrics),
      )
      is_last = step == num_steps
      stop = not is_last and termination.requested(step)
      log = is_last or step % training.log_every_steps == 0
      show = step % (training.summary_every_steps or num_steps + 1) == 0
      # The end is evaluated from its checkpoint.
      due = evaluator and not is_last and evaluator.options.is_due(step)
      save = is_last or due or stop
      save = save or step % training.checkpoint_every_steps == 0

      # Settle: what is logged, saved or evaluated must be known to be finite.
      monitor.add(step, batch['image_ids'], inputs, step_metrics)
      window += monitor.settle(state, lag=0 if log or show or save else _LAG)
      if monitor.must_rewind() or (is_last and monitor.in_streak()):
        saver.wait()
        restored, _ = start()
        state, step = restored.state, restored.step
        monitor.rewind(step)
        salt = restored.position['salt'] + 1
        text = (
          f'going back to step {step}, and on with other data (salt {salt})'
        )
        writer.say(f'WARNING: {text}')
        batches = _batches(config, {**restored.position, 'salt': salt})
        window, is_saved = [], True
        continue

      # Log.
      writer.advance(step)
      if show and step_metrics['finite']:
        named = metric_names.tensorboard(step_metrics)
        writer.board_scalars(step, {**named, **run_summary.habana_rates()})
      if log and window:
        skipped = {**batches.counts, 'steps': monitor.num_skipped}
        run_summary.log(step, num_steps, metrics.means(window), skipped)
        window = []

      # Save, and try again before long after a full disk. Nothing is saved in
      # a streak of bad steps, so that a rewind goes to before it.
      in_streak = monitor.in_streak()
      if save or (log and not is_saved):
        is_saved = not in_streak and saver.save(
          step, state, position, config, categories.saved_classes(classes)
        )

      # Evaluate.
      if due and not stop and not in_streak:
        values = evaluate()
        is_over = _stops_early(training, evaluator, workdir, step, writer)
      if (is_last or stop or is_over) and not (is_saved or in_streak):
        raise store.SaveError(
          f'Step {step} could not be saved in {workdir}, whose disk is full. '
          'Free some space; the same command goes on from its last checkpoint.'
        )
      if stop:
        raise Stopped(termination.name)
  if is_over and values is not None:
    return values
  return checkpoint_evaluation.evaluate_end(evaluator, config, workdir)


def _batches(config, position: Mapping[str, int]):
  """This host's batches from a position on."""
  return input_batches.train_batches(
    **config.input,
    start_examples=position['examples'],
    salt=position['salt'],
    host_index=jax.process_index(),
    host_count=jax.process_count(),
  )


def _announce(
  config, workdir, mesh, optimizer, restored, load_report, writer
) -> None:
  """Reports devices, size of the model, and what the run starts from."""
  params, batch_stats = restored.state.params, restored.state.batch_stats
  sizes = [x.size for x in jax.tree.leaves((params, batch_stats))]
  trainable = jax.tree.leaves(optimizer.trainable(params))
  writer.say(
    f'training on {mesh.size} {mesh.devices.flat[0].device_kind} with '
    f'{config.input.batch_size} images a step\n{sum(sizes):,} parameters, '
    f'{sum(itertools.compress(sizes, trainable)):,} trainable'
  )
  if restored.step:
    writer.say(f'continuing from step {restored.step} of {workdir}')
  else:
    writer.hyperparameters(config)
  if load_report:
    writer.say(load_report)
  for path in store.foreign_checkpoints(workdir)[-1:]:
    writer.say(
      f'{path} is of a TensorFlow run and is not continued. To start from its '
      'weights, name it in training.pretrained and take another workdir.'
    )


def _stops_early(training, evaluator, workdir, step: int, writer) -> bool:
  """Whether the score no longer improves, as the first process finds."""
  if evaluator is None or training.patience is None:
    return False
  options = training.keep_best, training.patience, evaluator.options.is_due
  reason = ''
  if jax.process_index() == 0:
    reason = monitor_lib.reason_to_stop(workdir, step, *options)
  reason = collectives.first_error(reason)
  if reason:
    writer.say(reason)
  return bool(reason)


def _compile(model, optimizer, mesh, state, inputs, key, writer):
  """The training step for the shapes of the inputs; it donates the state."""
  start = time.monotonic()
  _, height, width, _ = inputs['images'].shape
  writer.say(f'compiling the step for {height}x{width}, once per canvas')
  shardings = jax.tree.map(lambda x: x.sharding, state)
  step = train_step.jit_train_step(model, optimizer, mesh, shardings)
  compiled = step.lower(state, inputs, key).compile()
  writer.say(f'compiled in {time.monotonic() - start:.0f} s')
  collectives.barrier()
  return compiled
