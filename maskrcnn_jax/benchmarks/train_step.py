"""The training step, alone or beside torchvision's."""

from typing import Any

import jax

from maskrcnn_jax.benchmarks import measure
from maskrcnn_jax.benchmarks.subject import Subject
from maskrcnn_jax.benchmarks.torchvision_process import TorchvisionProcess
from maskrcnn_jax.distributed import mesh as sharding
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.training import train_step as step_lib


def run(
  subject: Subject,
  other: TorchvisionProcess | None = None,
  rounds: int = 5,
  warmup: int = 2,
) -> dict[str, Any]:
  """Times of a step, images a second, work and memory.

  Args:
    subject: to train.
    other: with the same model and batches; None: none.
    rounds: that count.
    warmup: rounds before them.

  Returns:
    `ours` with `program` (see `measure.Program`), `seconds` and
    `images_per_second`. With another side also `torchvision`, whose mask head
    sees as many foreground RoIs as ours, `torchvision_free`, where it sees what
    that model found, each with its `foreground` of every image, and `ratios` of
    our time to theirs.
  """
  step = Step(subject)
  foreground = subject.model.sampling.num_mask_rows
  sides, answers = {'ours': step.seconds}, {}

  def ask(name, rois):
    def seconds(number):
      answers[name] = other.ask('train_step', number=number, foreground=rois)
      return answers[name]['seconds']

    return seconds

  if other:
    other.load_weights(subject.state().variables())
    sides['torchvision'] = ask('torchvision', foreground)
    sides['torchvision_free'] = ask('torchvision_free', None)
  seconds = measure.alternate(sides, rounds, warmup, 'train step')
  result = {
    name: measure.throughput(seconds[name], subject.batch_size)
    for name in sides
  }
  result['ours']['program'] = step.program.costs()
  result['ours']['foreground'] = [foreground] * subject.batch_size
  result['ours']['losses'] = step.losses
  for name, answer in answers.items():
    result[name]['foreground'] = answer['foreground']
    result[name]['losses'] = answer['loss']
  if other:
    result['ratios'] = {
      name: measure.ratio(seconds['ours'], seconds[name]) for name in answers
    }
  return result


class Step:
  """The compiled step with a state that each call replaces."""

  def __init__(self, subject: Subject):
    """Compiles it.

    Args:
      subject: to train.
    """
    self._batches = subject.batches()
    self._state = subject.state()
    self._key = jax.random.key(0)
    places = jax.tree.map(lambda x: x.sharding, self._state)
    step = step_lib.jit_train_step(
      subject.model, subject.optimizer, subject.mesh, places
    )
    key = jax.device_put(self._key, sharding.replicated(subject.mesh))
    self._key = key
    self.program = measure.compile_program(
      step, self._state, self._batches[0], key
    )
    self.losses = None

  def seconds(self, number: int) -> float:
    """Takes a step on the batch of a round; its seconds.

    Raises:
      ValueError: the loss is not finite, so the work is not that of training.
    """
    batch = self._batches[number % len(self._batches)]
    seconds, (self._state, metrics) = measure.seconds_of(
      self.program.run, self._state, batch, self._key
    )
    if not metrics['finite']:
      raise UserError(f'Step {number} is not finite: {metrics}.')
    self.losses = {name: float(x) for name, x in metrics.items()}
    return seconds
