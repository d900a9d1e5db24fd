"""Training step, detection and backbone, alone or beside torchvision's.

Results are JSON values: of each side `seconds` (see `measure.throughput`) and
`images_per_second`, of `ours` also `program` (see `measure.Program`); with
another side `ratios` of our time to theirs.
"""

from collections.abc import Callable
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
    self._key = mesh_lib.put_replicated(jax.random.key(0), subject.mesh)
    self.program = measure.compile_program(
      jitted_step(subject, self._state),
      *(self._state, self._batches[0], self._key),
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
  shardings = jax.tree.map(lambda x: x.sharding, state)
  return train_step.jit_train_step(
    subject.model, subject.optimizer, subject.mesh, shardings
  )


def training(
  subject: Subject, other: TorchvisionProcess | None, rounds: int, warmup: int
) -> dict[str, Any]:
  """Times, work and memory of a training step.

  Args:
    subject: to train.
    other: with the same model and batches; None: none.
    rounds: measured rounds.
    warmup: rounds before them, not measured.

  Returns:
    Also `losses` and `foreground`, the RoIs of every image that the mask head
    computes. The mask head of `torchvision` sees as many foreground RoIs as
    ours, that of `torchvision_free` those that the model found.
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
  result = _compare(subject, sides, rounds, warmup, 'train step', step.program)
  result['ours'] |= {
    'foreground': [foreground] * subject.batch_size,
    'losses': step.losses,
  }
  for name, answer in answers.items():
    result[name] |= {
      'foreground': answer['foreground'],
      'losses': answer['loss'],
    }
  return result


def inference(
  subject: Subject, other: TorchvisionProcess | None, rounds: int, warmup: int
) -> dict[str, Any]:
  """Times, work and memory of detection; see `training` for the arguments.

  Up to masks of 28x28 cells on both sides, with weights that find many
  objects.

  Returns:
    Also the number of `detections` of every image, and of torchvision `pasting`
    (see `measure.summary`), the time to paste masks into images, which the
    other times do not contain.
  """
  batches = subject.batches()
  variables = subject.state(examples.DETECTION_BACKGROUND).variables()
  program = measure.compile_program(*detect_call(subject, variables))
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
  result = _compare(subject, sides, rounds, warmup, 'inference', program)
  for name in sides:
    result[name]['detections'] = found[name]
  if other:
    result['torchvision']['pasting'] = measure.summary(pasting[warmup:])
  return result


def detect_call(subject: Subject, variables: Any) -> tuple:
  """Jitted detection, and its arguments for the first batch."""

  def detect(variables, images, image_sizes):
    return train_step.detect(subject.model, variables, images, image_sizes)

  batch = subject.batches()[0]
  return jax.jit(detect), variables, batch['images'], batch['image_sizes']


def backbone(
  subject: Subject, other: TorchvisionProcess | None, rounds: int, warmup: int
) -> dict[str, Any]:
  """Times and work of the backbone forward and backward, on the first batch."""
  state = subject.state()
  calls, _ = stages.record_training(subject, state, only='backbone')
  call, arguments = calls['backbone']
  program = measure.compile_program(call.forward_and_backward, *arguments)
  sides = {
    'ours': lambda number: measure.seconds_of(program.run, *arguments)[0]
  }
  if other:
    other.load_weights(state.variables())
    sides['torchvision'] = lambda _: other.ask('backbone', number=0)['seconds']
  return _compare(subject, sides, rounds, warmup, 'backbone', program)


def _compare(
  subject: Subject,
  sides: dict[str, Callable[[int], float]],
  rounds: int,
  warmup: int,
  title: str,
  program: measure.Program,
) -> dict[str, Any]:
  """Runs the sides in turn, `ours` first."""
  seconds = measure.alternate(sides, rounds, warmup, title)
  result = measure.compare(seconds, subject.batch_size)
  result['ours']['program'] = program.costs()
  return result
