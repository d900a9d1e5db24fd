"""The stages of a step and of detection, each compiled and timed alone.

Each runs on the values that it has within the whole. In training those with a
gradient run forward and backward, from the gradients that they get there. What
the compiler fuses or overlaps across stages, their sum does not show.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maskrcnn_jax.benchmarks import (
  chain,
  example_weights,
  measure,
  model_stages,
)
from maskrcnn_jax.benchmarks.chain import Stage
from maskrcnn_jax.benchmarks.subject import Subject
from maskrcnn_jax.structures import Instances
from maskrcnn_jax.training import optimizer as optimizer_lib
from maskrcnn_jax.training import train_step

# By the name of a stage, compiled and with its arguments.
Programs = dict[str, tuple[measure.Program, tuple]]


def run(
  subject: Subject, other: Any = None, rounds: int = 5, warmup: int = 2
) -> dict[str, Any]:
  """Times and work of every stage.

  Args:
    subject: to train, and to detect with.
    other: not used: torchvision has no such stages.
    rounds: that count.
    warmup: rounds before them.

  Returns:
    `train` and `inference`: see `timed`, in the order in which stages run.
  """
  del other
  return {
    'train': timed(_training(subject), rounds, warmup, 'stages of training'),
    'inference': timed(
      _detection(subject), rounds, warmup, 'stages of detection'
    ),
  }


def timed(
  programs: Programs, rounds: int, warmup: int, title: str = ''
) -> list[dict[str, Any]]:
  """Runs programs by turns.

  Args:
    programs: in the order of the result.
    rounds: that count.
    warmup: rounds before them.
    title: of the progress bar.

  Returns:
    For each `name`, `seconds` (see `measure.summary`) and `program` (see
    `measure.Program`).
  """

  def runner(program, arguments):
    return lambda number: measure.seconds_of(program.run, *arguments)[0]

  sides = {name: runner(*made) for name, made in programs.items()}
  seconds = measure.alternate(sides, rounds, warmup, title)
  return [
    {
      'name': name,
      'seconds': measure.summary(seconds[name]),
      'program': program.costs(),
    }
    for name, (program, _) in programs.items()
  ]


def compile_forward(
  stages: Sequence[Stage], params: Any, values: Mapping[str, Any]
) -> Programs:
  """Compiles every stage for the values that it has in the chain.

  Args:
    stages: see `chain.run_forward`.
    params: likewise.
    values: likewise.
  """
  values = jax.jit(
    lambda params, values: chain.run_forward(stages, params, values)
  )(params, values)
  programs = {}
  for stage in stages:
    arguments = stage.arguments(params, values)
    program = measure.compile_program(stage.forward, *arguments)
    programs[stage.name] = program, arguments
  return programs


def compile_backward(
  stages: Sequence[Stage], params: Any, values: Mapping[str, Any], last: str
) -> tuple[Programs, Any]:
  """Compiles every stage with its gradients, for what it has in the chain.

  Args:
    stages: see `chain.run_backward`.
    params: likewise.
    values: likewise.
    last: likewise.

  Returns:
    The stages, those without a gradient forward only; and the gradients of the
    parameters.
  """
  values, cotangents, gradients = jax.jit(
    lambda params, values: chain.run_backward(stages, params, values, last)
  )(params, values)
  programs = {}
  for stage in stages:
    arguments, function = stage.arguments(params, values), stage.forward
    if stage.has_gradient:
      function, arguments = stage.both, (*arguments, cotangents[stage.output])
    program = measure.compile_program(function, *arguments)
    programs[stage.name] = program, arguments
  return programs, gradients


def _training(subject) -> Programs:
  """The stages of a step."""
  state = subject.state()
  values = _first_values(subject, state)
  keys = jax.random.split(jax.random.key(0))
  values['rpn_key'], values['sampling_key'] = keys
  stages = model_stages.training_stages(subject.model)
  programs, gradients = compile_backward(stages, state.params, values, 'losses')
  arguments = state, gradients
  program = measure.compile_program(
    lambda state, gradients: update(subject.optimizer, state, gradients),
    *arguments,
  )
  return programs | {'optimizer': (program, arguments)}


def _detection(subject) -> Programs:
  """The stages of detection, with weights that find objects in plenty."""
  state = subject.state(example_weights.DETECTION_BACKGROUND)
  stages = model_stages.detection_stages(subject.model)
  return compile_forward(stages, state.params, _first_values(subject, state))


def update(optimizer: train_step.Optimizer, state: Any, gradients: Any) -> Any:
  """The end of a step: weight decay, norm, update, or nothing if not finite.

  Args:
    optimizer: of the state.
    state: before the step.
    gradients: of the five losses.

  Returns:
    The state after the step, but for the step number and batch norm's arrays.
  """
  decay = jax.grad(optimizer_lib.weight_decay_loss)(
    state.params,
    optimizer.trainable(state.params),
    optimizer.options.weight_decay,
  )
  gradients = jax.tree.map(jnp.add, gradients, decay)
  finite = jnp.isfinite(optax.tree.norm(gradients))
  updates, opt_state = optimizer.transformation(state.params).update(
    gradients, state.opt_state, state.params, step=state.step
  )
  updated = state.replace(
    params=optax.apply_updates(state.params, updates), opt_state=opt_state
  )
  return jax.tree.map(
    lambda new, old: jnp.where(finite, new, old), updated, state
  )


def _first_values(subject, state) -> dict[str, Any]:
  """What the first stages take: a batch, and the arrays of norms."""
  batch = subject.batches()[0]
  instances = Instances(**batch['instances'])
  valid = instances.valid & batch['valid'][:, None]
  instances = instances.replace(valid=valid)
  return {**batch, 'instances': instances, 'batch_stats': state.batch_stats}
