"""Training step, detection and backbone: time, and growth of the step.

Each function returns rows, see `measure.run`; beside torchvision with ratios.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskrcnn_jax.benchmarks import examples, measure
from maskrcnn_jax.benchmarks.options import BenchOptions
from maskrcnn_jax.benchmarks.subject import Subject, make_subject
from maskrcnn_jax.benchmarks.torchvision_process import TorchvisionProcess
from maskrcnn_jax.distributed import arrays
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.inference import detection
from maskrcnn_jax.models import layers
from maskrcnn_jax.ops import images as image_ops
from maskrcnn_jax.training import train_step

# Images in a batch; sides of a square canvas; objects in every image; classes
# with background, up to LVIS.
AXES = {
  'batch': (1, 2, 4, 8),
  'canvas': (256, 512, 832, 1344),
  'objects': (1, 10, 30, 100),
  'classes': (2, 21, 91, 1203),
}
_OURS = 'maskrcnn_jax'


def step_side(subject: Subject) -> measure.Side:
  """The compiled training step, with a state that each call replaces.

  Its facts are the `losses` and `foreground`, the RoIs of every image that the
  mask head computes.
  """
  batches, (state, *_, key) = subject.batches(), step_arguments(subject)
  step = jitted_step(subject, state)
  run, program = measure.compile_program(step, state, batches[0], key)
  foreground = [subject.model.sampling.num_mask_rows] * subject.batch_size

  def seconds(number):
    nonlocal state
    batch = batches[number % len(batches)]
    seconds, (state, metrics) = measure.seconds_of(run, state, batch, key)
    losses = {name: float(x) for name, x in metrics.items()}
    if not metrics['finite']:
      # The work would not be that of training.
      raise UserError(
        f'Step {number} is not finite: {losses}.', item=number, given=losses
      )
    side.facts['losses'] = losses
    return seconds

  side = measure.Side(
    *(seconds, subject.batch_size, program),
    facts={'foreground': foreground},
    compiled=run,
  )
  return side


def step_arguments(subject: Subject) -> tuple[Any, Any, Any]:
  """State, first batch and key."""
  key = arrays.put_replicated(jax.random.key(0), subject.mesh)
  return subject.state(), subject.batches()[0], key


def jitted_step(subject: Subject, state: Any) -> Any:
  """The training step, not compiled yet, for the shardings of a state."""
  shardings = jax.tree.map(lambda x: x.sharding, state)
  return train_step.jit_train_step(
    subject.model, subject.optimizer, subject.mesh, shardings
  )


def detection_side(subject: Subject) -> measure.Side:
  """Compiled detection, with weights that find many objects.

  Its fact is the number of `detections` in every image.
  """
  variables = subject.state(examples.DETECTION_BACKGROUND).variables()
  variables = arrays.put_replicated(variables, subject.mesh)
  inputs = [(x['images'], x['image_sizes']) for x in subject.batches()]
  detect = detection.jit_detect(subject.model, subject.mesh)
  run, program = measure.compile_program(detect, variables, *inputs[0])

  def seconds(number):
    images = inputs[number % len(inputs)]
    seconds, found = measure.seconds_of(run, variables, *images)
    side.facts['detections'] = np.sum(found.valid, axis=1).tolist()
    return seconds

  side = measure.Side(seconds, subject.batch_size, program, compiled=run)
  return side


def backbone_side(subject: Subject) -> measure.Side:
  """The compiled backbone in training, with a gradient of ones of its maps."""
  model, batch = subject.model, subject.batches()[0]
  pixels = batch['images'], batch['image_sizes']
  pixels = image_ops.normalize(
    *pixels, model.pixel_mean, model.pixel_std, model.bgr
  ).astype(layers.output_dtype(model.dtype))
  variables = {
    kind: {'backbone': tree.get('backbone', {})}
    for kind, tree in subject.state().variables().items()
  }

  def forward_and_backward(variables, pixels, valid):
    def features(params):
      maps, _ = model.apply(
        {**variables, 'params': params},
        *(pixels, valid, True),
        method=lambda model, *inputs: model.body(*inputs),
        rngs={'drop_path': jax.random.key(0)},
        mutable=['batch_stats'],
      )
      return maps

    maps, gradients = jax.vjp(features, variables['params'])
    return maps, gradients(jax.tree.map(jnp.ones_like, maps))

  arguments = variables, pixels, batch['valid']
  run, program = measure.compile_program(forward_and_backward, *arguments)
  return measure.Side(
    lambda number: measure.seconds_of(run, *arguments)[0],
    *(subject.batch_size, program),
  )


def training(
  subject: Subject, other: TorchvisionProcess | None, options: BenchOptions
) -> list[measure.Row]:
  """Rows of a training step.

  The mask head of `torchvision` sees as many foreground RoIs as ours, which
  skips none; that of `torchvision, free-running` those that the model found,
  beside ours as it trains. `other` has the same model and batches; None: it is
  not measured.
  """
  if not other:
    return _compare({_OURS: step_side(subject)}, options, 'train step')
  other.load_weights(subject.state().variables())
  whole, rows = subject.skipping_nothing(), []
  for name, own, foreground in (
    ('', whole, subject.model.sampling.num_mask_rows),
    (', free-running', subject, None),
  ):
    if not rows or whole.model != subject.model:
      ours = step_side(own)
    theirs = other.side('train_step', subject.batch_size, foreground=foreground)
    sides = {f'{_OURS}{name}': ours, f'torchvision{name}': theirs}
    rows += _compare(sides, options, 'train step')
  return rows


def inference(
  subject: Subject, other: TorchvisionProcess | None, options: BenchOptions
) -> list[measure.Row]:
  """Rows of detection; see `training`.

  Up to masks of 28x28 cells on both sides, see `detection_side`. torchvision's
  `pasting_seconds`, of masks into images, are not part of its time.
  """
  sides = {_OURS: detection_side(subject)}
  if other:
    state = subject.state(examples.DETECTION_BACKGROUND)
    other.load_weights(state.variables())
    sides['torchvision'] = other.side('detect', subject.batch_size)
  return _compare(sides, options, 'inference')


def backbone(
  subject: Subject, other: TorchvisionProcess | None, options: BenchOptions
) -> list[measure.Row]:
  """Rows of the backbone, forward and backward; see `training`.

  The weights of a ConvNeXt or a ViT are random values of its own on each side.
  """
  sides = {_OURS: backbone_side(subject)}
  if other:
    if subject.model.backbone.kind == 'resnet':
      other.load_weights(subject.state().variables())
    sides[subject.peer] = other.side('backbone', subject.batch_size)
  return _compare(sides, options, 'backbone')


def _compare(sides, options, title):
  return measure.add_ratios(
    measure.run(sides, options.rounds, options.warmup, title)
  )


def growth(
  config: Any,
  options: BenchOptions,
  axes: Mapping[str, Sequence[int]] = AXES,
) -> list[measure.Row]:
  """Rows of a step with synthetic images, one size changed at a time.

  Rows are named as in `batch 8`; where the memory does not suffice they have no
  times. The steps of an axis run in turn.
  """
  rows = []
  for axis, values in axes.items():
    sides = {}
    for value in values:
      logging.info('compiling a step for %s = %d', axis, value)
      subject = subject_of(config, axis, value)
      sides[f'{axis} {value}'] = _fitting_step(subject)
    fitting = {name: side for name, side in sides.items() if side}
    measured = measure.run(fitting, options.rounds, options.warmup, axis)
    by_name = {row['name']: row for row in measured}
    rows += [by_name.get(name, {'name': name}) for name in sides]
  return rows


def subject_of(config: Any, axis: str, value: int) -> Subject:
  """The subject of a config, which stays as it is, with one of `AXES` set."""
  config = copy.deepcopy(config)
  if axis == 'batch':
    config.input.batch_size = value
  elif axis == 'canvas':
    config.input.canvases = ((value, value),)
  elif axis == 'classes':
    config.model.num_classes = value
  num_objects = value if axis == 'objects' else None
  return make_subject(config, False, num_batches=1, num_objects=num_objects)


def _fitting_step(subject) -> measure.Side | None:
  """The compiled step, run once; None if it does not fit into the memory."""
  try:
    side = step_side(subject)
    side.seconds(0)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    logging.info('it does not fit into the memory')
    return None
  return side
