"""The stages of a step and of detection, each compiled and timed alone.

Each runs on the values that it has within the whole. In training those with a
gradient run forward and backward, from the gradients that they get there. What
the compiler fuses or overlaps across stages, their sum does not show.
"""

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
from maskrcnn_jax.benchmarks.subject import Subject
from maskrcnn_jax.structures import Instances
from maskrcnn_jax.training import optimizer as optimizer_lib
from maskrcnn_jax.training import train_step


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
    `train` and `inference`: a list of `name`, `seconds` (see `measure.summary`)
    and `program` (see `measure.Program`), in the order in which they run.
  """
  del other
  result = {}
  for kind, make in (
    ('train', _training_programs),
    ('inference', _detection_programs),
  ):
    made = make(subject)
    seconds = measure.alternate(
      {name: _timed(*program) for name, program in made.items()},
      rounds,
      warmup,
      f'stages of {kind}',
    )
    result[kind] = [
      {
        'name': name,
        'seconds': measure.summary(seconds[name]),
        'program': program.costs(),
      }
      for name, (program, _) in made.items()
    ]
  return result


def _timed(program, arguments):
  return lambda number: measure.seconds_of(program.run, *arguments)[0]


def _training_programs(subject) -> dict[str, tuple[measure.Program, tuple]]:
  """By name a compiled stage and its arguments, in the order of the step."""
  model, state = subject.model, subject.state()
  stages = model_stages.training_stages(model, state.batch_stats)
  values = _first_values(subject)
  values['rpn_key'], values['sampling_key'] = jax.random.split(
    jax.random.key(0)
  )
  values, cotangents, gradients = jax.jit(
    lambda params, values: chain.run_backward(stages, params, values, 'losses')
  )(state.params, values)
  programs = {}
  for stage in stages:
    arguments = stage.arguments(state.params, values)
    function = stage.forward
    if stage.has_gradient:
      function, arguments = stage.both, (*arguments, cotangents[stage.output])
    program = measure.compile_program(function, *arguments)
    programs[stage.name] = program, arguments
  program = measure.compile_program(
    lambda state, gradients: update(subject.optimizer, state, gradients),
    state,
    gradients,
  )
  programs['optimizer'] = program, (state, gradients)
  return programs


def _detection_programs(subject) -> dict[str, tuple[measure.Program, tuple]]:
  """By name a compiled stage and its arguments, in the order of detection."""
  state = subject.state(example_weights.DETECTION_BACKGROUND)
  stages = model_stages.detection_stages(subject.model, state.batch_stats)
  values = _first_values(subject)
  values = jax.jit(
    lambda params, values: chain.run_forward(stages, params, values)
  )(state.params, values)
  programs = {}
  for stage in stages:
    arguments = stage.arguments(state.params, values)
    program = measure.compile_program(stage.forward, *arguments)
    programs[stage.name] = program, arguments
  return programs


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


def _first_values(subject) -> dict[str, Any]:
  """What the first stages take: a batch."""
  batch = subject.batches()[0]
  instances = Instances(**batch['instances'])
  valid = instances.valid & batch['valid'][:, None]
  return {**batch, 'instances': instances.replace(valid=valid)}
