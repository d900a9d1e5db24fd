"""Stages of a training step and of detection, each compiled and timed alone.

The stages are the model's own submodules and methods: one run of the model
records what it passes to each of them, and a stage is such a call again. In
training, a stage with a gradient runs forward and backward, from a gradient of
ones. The sum of the stages lacks what the compiler fuses or overlaps across
them.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from maskrcnn_jax.benchmarks import examples, measure
from maskrcnn_jax.benchmarks.options import BenchOptions
from maskrcnn_jax.benchmarks.subject import Subject
from maskrcnn_jax.models import detections as detections_lib
from maskrcnn_jax.models import targets as targets_lib
from maskrcnn_jax.models.layout import Layout
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.structures import Instances
from maskrcnn_jax.training import train_step

# Stages by submodule and method; `align` is called for boxes, then for masks.
_NAMES = {
  ('backbone', '__call__'): ('backbone',),
  ('fpn', '__call__'): ('FPN',),
  ('rpn_head', '__call__'): ('RPN',),
  ('align',): ('RoIAlign of boxes', 'RoIAlign of masks'),
  ('box_head', '__call__'): ('box head',),
  ('mask_head', '__call__'): ('mask head',),
}
_TRAINING = _NAMES | {('sample',): ('proposals and RoI sampling',)}
_DETECTION = _NAMES | {('_propose',): ('proposals',)}
# Pixels need no gradient, and none passes through the choice of RoIs.
_WITHOUT_INPUT_GRADIENT = ('backbone', 'proposals and RoI sampling')
# Functions and their arguments, by the name of the stage.
Stages = dict[str, tuple[Callable, tuple]]


def _apply(module, variables, method, *arguments):
  # The key of RoIs as `loss_fn` makes it of key 0.
  output, _ = module.apply(
    variables,
    *arguments,
    method=method,
    rngs={'sampling': jax.random.split(jax.random.key(0))[1]},
    mutable=['batch_stats'],
  )
  return output


def record_calls(
  names: Mapping[tuple[str, ...], tuple[str, ...]],
  model: MaskRCNN,
  variables: Mapping[str, Any],
  method: str,
  *arguments: Any,
  only: str | None = None,
) -> tuple[Stages, Any]:
  """Runs the model once and records the calls that are stages.

  Args:
    names: of the stages, by submodule and method.
    model: to run.
    variables: of the model.
    method: to call, with the `arguments`.
    only: name of the one stage to record; nothing behind it is computed.

  Returns:
    stages: each of its variables and of its arguments that are arrays, by
      position, in the order in which they ran.
    output: of the method; None with `only`.
  """
  calls = {}

  def run(variables, arguments):
    recorded = {}

    def intercept(next_function, args, kwargs, context):
      module, path = context.module, context.module.path
      stages = names.get((*path, context.method_name), ())
      stage = next((x for x in stages if x not in recorded), None)
      if stage and only in (None, stage):
        given, static = {}, {}
        for position, x in enumerate(args):
          is_array = any(isinstance(y, jax.Array) for y in jax.tree.leaves(x))
          (given if is_array else static)[position] = x
        recorded[stage] = given
        module, method = module.clone(parent=None), context.method_name
        calls[stage] = path, functools.partial(_call, module, method, static)
      return next_function(*args, **kwargs)

    with nn.intercept_methods(intercept):
      output = _apply(model, variables, method, *arguments)
    return recorded, None if only else output

  recorded, output = jax.jit(run)(variables, arguments)
  stages = {}
  for name, (path, call) in calls.items():
    # The model's own methods need no variables.
    own = {
      kind: tree[path[0]]
      for kind, tree in variables.items()
      if path and path[0] in tree
    }
    stages[name] = call, (own, recorded[name])
  return stages, output


def _call(module, method, static, variables, arrays):
  """The output of a recorded call; arguments by position."""
  given = {**static, **arrays}
  arguments = [given[position] for position in sorted(given)]
  return _apply(module, variables, method, *arguments)


def _forward_and_backward(name, call, variables, arrays):
  """The output, and the gradients of parameters and first argument."""
  params, inputs = variables.get('params', {}), {0: arrays[0]}
  if name in _WITHOUT_INPUT_GRADIENT:
    inputs = {}
  if not (params or inputs):
    return call(variables, arrays)
  return _with_gradients(
    lambda params, inputs: call(
      {**variables, 'params': params}, {**arrays, **inputs}
    ),
    params,
    inputs,
  )


def _with_gradients(function: Callable, *arguments: Any) -> tuple[Any, Any]:
  """Outputs, and the gradients of their sum."""
  output, vjp = jax.vjp(function, *arguments)
  return output, vjp(jax.tree.map(jnp.ones_like, output))


def record_training(
  subject: Subject, state: Any, only: str | None = None
) -> tuple[Stages, Any]:
  """`record_calls` of a step, forward and backward, of the first batch."""
  batch = subject.batches()[0]
  # Stages are submodules as they are called on one device.
  model = subject.skipping_nothing().model
  layout = dataclasses.replace(model.layout, share=Layout.share)
  model = model.clone(layout=layout)
  calls, outputs = record_calls(
    *(_TRAINING, model, state.variables(), '__call__'),
    *(batch['images'], batch['image_sizes']),
    *(Instances(**batch['instances']), batch['valid']),
    only=only,
  )
  stages = {
    name: (functools.partial(_forward_and_backward, name, call), arguments)
    for name, (call, arguments) in calls.items()
  }
  return stages, outputs


def training_stages(subject: Subject) -> Stages:
  """A training step: its calls, then targets, losses and update."""
  model, state, batch = subject.model, subject.state(), subject.batches()[0]
  calls, outputs = record_training(subject, state)
  anchors = model.anchor_boxes(batch['images'].shape[1:3])

  def rpn_targets(instances, valid):
    key = jax.random.split(jax.random.key(0))[0]
    return targets_lib.rpn_targets(
      anchors, instances, valid, key, model.rpn_targets
    )

  def losses(outputs, instances, valid, targets):
    def of_logits(rpn, box, mask_logits):
      made = outputs.replace(rpn=rpn, box=box, mask_logits=mask_logits)
      return train_step.training_losses(model, made, instances, valid, targets)

    return _with_gradients(
      of_logits, outputs.rpn, outputs.box, outputs.mask_logits
    )

  def update(state, gradients):
    updates, opt_state = subject.optimizer.transformation(state.params).update(
      gradients, state.opt_state, state.params, step=state.step
    )
    return optax.apply_updates(state.params, updates), opt_state

  truth = Instances(**batch['instances']), batch['valid']
  targets = jax.jit(rpn_targets)(*truth)
  return {
    **calls,
    'RPN targets': (rpn_targets, truth),
    'RoI targets and losses': (losses, (outputs, *truth, targets)),
    # Any gradients will do.
    'optimizer': (update, (state, state.params)),
  }


def detection_stages(subject: Subject) -> Stages:
  """Detection, with weights that find many objects."""
  model, batch = subject.model, subject.batches()[0]
  images, sizes = batch['images'], batch['image_sizes']
  variables = subject.state(examples.DETECTION_BACKGROUND).variables()
  stages, _ = record_calls(
    _DETECTION, model, variables, 'detect', images, sizes
  )

  def select(box, proposals, sizes):
    return detections_lib.select_detections(
      box, proposals, sizes, model.detections, model.box_weights, model.plus_one
    )

  proposals, box = (
    jax.jit(function)(*arguments)
    for function, arguments in (stages['proposals'], stages['box head'])
  )
  stages['NMS and selection'] = select, (box, proposals, sizes)
  return stages


def run(
  subject: Subject, options: BenchOptions
) -> dict[str, list[measure.Row]]:
  """Rows of the stages of training and of detection."""
  return {
    f'stages of {kind}, each alone': measure.run(
      {name: side(*stage) for name, stage in make(subject).items()},
      *(options.rounds, options.warmup, 'stages'),
    )
    for kind, make in (
      ('training', training_stages),
      ('detection', detection_stages),
    )
  }


def side(function: Callable, arguments: tuple) -> measure.Side:
  """A compiled stage."""
  run, program = measure.compile_program(function, *arguments)
  return measure.Side(
    lambda number: measure.seconds_of(run, *arguments)[0], program=program
  )
