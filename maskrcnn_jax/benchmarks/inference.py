"""Detection, alone or beside torchvision's."""

from typing import Any

import numpy as np

from maskrcnn_jax.benchmarks import example_weights, measure
from maskrcnn_jax.benchmarks.subject import Subject
from maskrcnn_jax.benchmarks.torchvision_process import TorchvisionProcess
from maskrcnn_jax.training import train_step as step_lib


def run(
  subject: Subject,
  other: TorchvisionProcess | None = None,
  rounds: int = 5,
  warmup: int = 2,
) -> dict[str, Any]:
  """Times of detection, images a second, work and memory.

  Up to masks of 28x28 cells on both sides; what pasting them into images takes
  on the other side is told apart.

  Args:
    subject: to detect with; its weights find objects in plenty.
    other: with the same model, weights and batches; None: none.
    rounds: that count.
    warmup: rounds before them.

  Returns:
    `ours` with `program`, `seconds`, `images_per_second` and the `detections`
    of every image. With another side also `torchvision`, with
    `pasting_seconds`, and `ratios` of our time to theirs.
  """
  batches = subject.batches()
  state = subject.state(example_weights.DETECTION_BACKGROUND)
  variables = state.variables()
  program = measure.compile_program(
    lambda variables, images, sizes: step_lib.detect(
      subject.model, variables, images, sizes
    ),
    variables,
    batches[0]['images'],
    batches[0]['image_sizes'],
  )
  if other:
    other.load_weights(variables)
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

  sides = {'ours': ours} | ({'torchvision': theirs} if other else {})
  seconds = measure.alternate(sides, rounds, warmup, 'inference')
  result = {
    name: measure.throughput(seconds[name], subject.batch_size)
    | {'detections': found[name]}
    for name in sides
  }
  result['ours']['program'] = program.costs()
  if other:
    result['torchvision']['pasting'] = measure.summary(pasting[warmup:])
    result['ratios'] = {
      'torchvision': measure.ratio(seconds['ours'], seconds['torchvision'])
    }
  return result
