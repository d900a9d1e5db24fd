"""Stages of a training step and of detection, each compiled and timed alone.

The stages are the model's own submodules and methods: one run of the model
records what it passes to each of them, and a stage is such a call again. In
training, a stage with a gradient runs forward and backward, from a gradient of
ones. The sum of the stages lacks what the compiler fuses or overlaps across
them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from maskrcnn_jax.benchmarks import examples, measure
from maskrcnn_jax.benchmarks.subject import Subject
from maskrcnn_jax.models import detections as detections_lib
from maskrcnn_jax.models import proposals as proposals_lib
from maskrcnn_jax.models import targets as targets_lib
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.structures import Instances
from maskrcnn_jax.training import train_step

# Stages by submodule and method; `align` is called for boxes, then for masks.
_NAMES = {
  ('backbone', '__call__'): ('backbone',),
  ('fpn', '__call__'): ('FPN',),
  ('rpn_head', '__call__'): ('RPN',),
  ('sample',): ('proposals and RoI sampling',),
  ('align',): ('RoIAlign of boxes', 'RoIAlign of masks'),
  ('box_head', '__call__'): ('box head',),
  ('mask_head', '__call__'): ('mask head',),
}
# Functions and their arguments, by the name of the stage.
Stages = dict[str, tuple[Callable, tuple]]


@dataclasses.dataclass(frozen=True)
class Call:
  """A call of a submodule or method of the model, to be made again.

  Attributes:
    module: the model or one of its submodules, unbound.
    method: its name.
    static: the arguments that are no arrays, by position.
  """

  module: nn.Module
  method: str
  static: Mapping[int, Any]

  def forward(self, variables: Any, arrays: Mapping[int, Any]) -> Any:
    """The output; `arrays` are the other arguments, by position."""
    given = {**self.static, **arrays}
    arguments = [given[position] for position in sorted(given)]
    return _apply(self.module, variables, self.method, *arguments)

  def forward_and_backward(self, variables, arrays) -> Any:
    """The output, and the gradients of parameters and first argument."""
    params, inputs = variables.get('params', {}), {0: arrays[0]}
    # Pixels need no gradient, and none passes through the choice of RoIs.
    if self.module.name == 'backbone' or self.method == 'sample':
      inputs = {}
    if not (params or inputs):
      return self.forward(variables, arrays)
    return _with_gradients(
      lambda params, inputs: self.forward(
        {**variables, 'params': params}, {**arrays, **inputs}
      ),
      params,
      inputs,
    )


def _keys():
  """Keys of RPN targets and of RoIs, made of key 0 as `loss_fn` makes them."""
  return jax.random.split(jax.random.key(0))


def _apply(module, variables, method, *arguments):
  output, _ = module.apply(
    variables,
    *arguments,
    method=method,
    rngs={'sampling': _keys()[1]},
    mutable=['batch_stats'],
  )
  return output


def _with_gradients(function: Callable, *arguments: Any) -> tuple[Any, Any]:
  """Outputs, and the gradients of their sum."""
  output, vjp = jax.vjp(function, *arguments)
  return output, vjp(jax.tree.map(jnp.ones_like, output))


def record_calls(
  model: MaskRCNN,
  variables: Mapping[str, Any],
  method: str,
  *arguments: Any,
  only: str | None = None,
) -> tuple[dict[str, tuple[Call, tuple]], Any]:
  """Runs the model once and records the calls that are stages.

  Args:
    model: to run.
    variables: of the model.
    method: to call, with the `arguments`.
    only: name of the one stage to record; nothing behind it is computed.

  Returns:
    calls: each with its variables and arrays, by the name of the stage, in the
      order in which they ran.
    output: of the method; None with `only`.
  """
  calls, own_variables = {}, {}

  def run(variables, arguments):
    arrays = {}

    def intercept(next_function, args, kwargs, context):
      path, method = context.module.path, context.method_name
      names = _NAMES.get((*path, method), ())
      name = next((x for x in names if x not in calls), None)
      if name:
        given, static = {}, {}
        for position, x in enumerate(args):
          is_array = any(isinstance(y, jax.Array) for y in jax.tree.leaves(x))
          (given if is_array else static)[position] = x
        arrays[name] = given
        calls[name] = Call(context.module.clone(parent=None), method, static)
        # The model's own methods need none.
        own_variables[name] = {
          kind: tree[path[0]]
          for kind, tree in variables.items()
          if path and path[0] in tree
        }
      return next_function(*args, **kwargs)

    with nn.intercept_methods(intercept):
      output = _apply(model, variables, method, *arguments)
    if only:
      return {only: own_variables[only]}, {only: arrays[only]}, None
    return own_variables, arrays, output

  own, arrays, output = jax.jit(run)(variables, arguments)
  return {x: (calls[x], (own[x], arrays[x])) for x in calls if x in own}, output


def record_training(
  subject: Subject, state: Any, only: str | None = None
) -> tuple[dict[str, tuple[Call, tuple]], Any]:
  """`record_calls` of a training step's forward pass, of the first batch."""
  batch = subject.batches()[0]
  return record_calls(
    subject.model,
    state.variables(),
    '__call__',
    batch['images'],
    batch['image_sizes'],
    Instances(**batch['instances']),
    batch['valid'],
    only=only,
  )


def training_stages(subject: Subject) -> Stages:
  """A training step: its calls, then targets, losses and update."""
  model, state, batch = subject.model, subject.state(), subject.batches()[0]
  calls, outputs = record_training(subject, state)
  anchors = model.anchor_boxes(batch['images'].shape[1:3])

  def rpn_targets(instances, valid):
    return targets_lib.rpn_targets(
      anchors, instances, valid, _keys()[0], model.rpn_targets
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
    **{
      name: (call.forward_and_backward, arguments)
      for name, (call, arguments) in calls.items()
    },
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
  calls, _ = record_calls(model, variables, 'detect', images, sizes)

  def propose(rpn, sizes):
    anchors = model.anchor_boxes(images.shape[1:3])
    return proposals_lib.propose(
      rpn, anchors, sizes, model.test_proposals, model.plus_one
    )

  def select(box, proposals, sizes):
    return detections_lib.select_detections(
      box, proposals, sizes, model.detections, model.box_weights, model.plus_one
    )

  stages, proposals = {}, None
  for name, (call, arguments) in calls.items():
    stages[name] = call.forward, arguments
    if name == 'RPN':
      rpn = jax.jit(call.forward)(*arguments)
      stages['proposals'] = propose, (rpn, sizes)
      proposals = jax.jit(propose)(rpn, sizes)
    elif name == 'box head':
      box = jax.jit(call.forward)(*arguments)
      stages['NMS and selection'] = select, (box, proposals, sizes)
  return stages


def run(subject: Subject, rounds: int, warmup: int) -> dict[str, Any]:
  """`measure_stages` of `train` and `inference`."""
  return {
    'train': measure_stages(training_stages(subject), rounds, warmup),
    'inference': measure_stages(detection_stages(subject), rounds, warmup),
  }


def measure_stages(
  stages: Stages, rounds: int, warmup: int
) -> list[dict[str, Any]]:
  """Compiles functions and runs them by turns.

  Returns:
    For each its `name`, `seconds` (see `measure.summary`) and `program` (see
    `measure.Program`).
  """
  programs = {
    name: measure.compile_program(function, *arguments)
    for name, (function, arguments) in stages.items()
  }

  def side(name):
    run, arguments = programs[name].run, stages[name][1]
    return lambda number: measure.seconds_of(run, *arguments)[0]

  sides = {name: side(name) for name in programs}
  seconds = measure.alternate(sides, rounds, warmup, 'stages')
  return [
    {
      'name': name,
      'seconds': measure.summary(seconds[name]),
      'program': program.costs(),
    }
    for name, program in programs.items()
  ]
