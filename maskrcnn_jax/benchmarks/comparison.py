"""Training step, detection and backbone, alone or beside torchvision's."""

from typing import Any

import jax
import numpy as np

from maskrcnn_jax.benchmarks import examples, measure, stages
from maskrcnn_jax.benchmarks.subject import Subject
from maskrcnn_jax.benchmarks.torchvision_process import TorchvisionProcess
from maskrcnn_jax.distributed import mesh as mesh_lib
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.training import train_step


class Step:
  """The compiled step with a state that each call replaces."""

  def __init__(self, subject: Subject):
    """Compiles the step of a subject."""
    self._batches = subject.batches()
    self._state = subject.state()
    self._key = jax.device_put(
      jax.random.key(0), mesh_lib.replicated(subject.mesh)
    )
    step = jitted_step(subject, self._state)
    self.program = measure.compile_program(
      step, self._state, self._batches[0], self._key
    )
    self.losses = None

  def seconds(self, number: int) -> float:
    """Seconds of a step on the batch of a round.

    Raises:
      UserError: the loss is not finite, so the work is not that of training.
    """
    batch = self._batches[number % len(self._batches)]
    seconds, (self._state, metrics) = measure.seconds_of(
      self.program.run, self._state, batch, self._key
    )
    self.losses = {name: float(x) for name, x in metrics.items()}
    if not metrics['finite']:
      raise UserError(
        f'Step {number} is not finite: {self.losses}.',
        item=number,
        given=self.losses,
      )
    return seconds


def jitted_step(subject: Subject, state: Any):
  """`jit_train_step` for the shardings of a state."""
  return train_step.jit_train_step(
    subject.model,
    subject.optimizer,
    subject.mesh,
    jax.tree.map(lambda x: x.sharding, state),
  )


def training(
  subject: Subject,
  other: TorchvisionProcess | None = None,
  rounds: int = 5,
  warmup: int = 2,
) -> dict[str, Any]:
  """Times of a training step, images a second, work and memory.

  Args:
    subject: to train.
    other: with the same model and batches; None: none.
    rounds: that count.
    warmup: rounds before them.

  Returns:
    `ours` with `program` (see `measure.Program`), `seconds`,
    `images_per_second`, `losses` and `foreground`, the RoIs of every image that
    the mask head computes. With another side also `torchvision`, whose mask
    head sees as many foreground RoIs as ours, `torchvision_free`, where it sees
    those that the model found, and `ratios` of our time to theirs.
  """
  step = Step(subject)
  foreground = subject.model.sampling.num_mask_rows
  sides, answers = {'ours': step.seconds}, {}

  def theirs(name, num_rois):
    def seconds(number):
      answers[name] = other.ask(
        'train_step', number=number, foreground=num_rois
      )
      return answers[name]['seconds']

    return seconds

  if other:
    other.load_weights(subject.state().variables())
    sides['torchvision'] = theirs('torchvision', foreground)
    sides['torchvision_free'] = theirs('torchvision_free', None)
  seconds = measure.alternate(sides, rounds, warmup, 'train step')
  result = measure.compare(seconds, subject.batch_size)
  result['ours'] |= {
    'program': step.program.costs(),
    'foreground': [foreground] * subject.batch_size,
    'losses': step.losses,
  }
  for name, answer in answers.items():
    result[name]['foreground'] = answer['foreground']
    result[name]['losses'] = answer['loss']
  return result


def inference(
  subject: Subject,
  other: TorchvisionProcess | None = None,
  rounds: int = 5,
  warmup: int = 2,
) -> dict[str, Any]:
  """Times of detection, images a second, work and memory.

  Up to masks of 28x28 cells on both sides; the time in which torchvision pastes
  them into images is reported apart.

  Args:
    subject: to detect with; its weights find objects in plenty.
    other: see `training`.
    rounds: likewise.
    warmup: likewise.

  Returns:
    `ours` with `program`, `seconds`, `images_per_second` and the `detections`
    of every image. With another side also `torchvision`, with `pasting`, and
    `ratios` of our time to theirs.
  """
  batches = subject.batches()
  variables = subject.state(examples.DETECTION_BACKGROUND).variables()
  program = measure.compile_program(
    lambda variables, images, sizes: train_step.detect(
      subject.model, variables, images, sizes
    ),
    variables,
    batches[0]['images'],
    batches[0]['image_sizes'],
  )
  found, pasting = {}, []

  def ours(number):
    batch = batches[number % len(batches)]
    seconds, detections = measure.seconds_of(
      program.run, variables, batch['images'], batch['image_sizes']
    )
    found['ours'] = np.sum(detections.valid, axis=1).tolist()
    return seconds

  def theirs(number):
    answer = other.ask('detect', number=number)
    found['torchvision'] = answer['detections']
    pasting.append(answer['pasting_seconds'])
    return answer['seconds']

  sides = {'ours': ours}
  if other:
    other.load_weights(variables)
    sides['torchvision'] = theirs
  seconds = measure.alternate(sides, rounds, warmup, 'inference')
  result = measure.compare(seconds, subject.batch_size)
  for name in sides:
    result[name]['detections'] = found[name]
  result['ours']['program'] = program.costs()
  if other:
    result['torchvision']['pasting'] = measure.summary(pasting[warmup:])
  return result


def backbone(
  subject: Subject,
  other: TorchvisionProcess | None = None,
  rounds: int = 5,
  warmup: int = 2,
) -> dict[str, Any]:
  """Times of the backbone forward and backward, from normalised images.

  Args:
    subject: whose backbone it is, with its frozen stages; the first batch.
    other: see `training`.
    rounds: likewise.
    warmup: likewise.

  Returns:
    As `training`.
  """
  state = subject.state()
  calls, _ = stages.record_training(subject, state, only='backbone')
  call, arguments = calls['backbone']
  program = measure.compile_program(call.forward_and_backward, *arguments)
  sides = {
    'ours': lambda number: measure.seconds_of(program.run, *arguments)[0]
  }
  if other:
    other.load_weights(state.variables())
    sides['torchvision'] = lambda number: other.ask('backbone', number=0)[
      'seconds'
    ]
  seconds = measure.alternate(sides, rounds, warmup, 'backbone')
  result = measure.compare(seconds, subject.batch_size)
  result['ours']['program'] = program.costs()
  return result
