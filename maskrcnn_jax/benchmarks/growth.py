"""Growth of a step's time and memory with batch, canvas, objects, classes."""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from maskrcnn_jax.benchmarks import measure
from maskrcnn_jax.benchmarks.comparison import Step
from maskrcnn_jax.benchmarks.subject import Subject, make_subject

# Images in a batch; sides of a square canvas; objects in every image; classes
# with background, up to LVIS.
AXES = {
  'batch': (1, 2, 4, 8),
  'canvas': (256, 512, 832, 1344),
  'objects': (1, 10, 30, 100),
  'classes': (2, 21, 91, 1203),
}


def run(
  config: Any,
  rounds: int,
  warmup: int,
  axes: Mapping[str, Sequence[int]] = AXES,
) -> list[dict[str, Any]]:
  """Steps with synthetic images, one size changed at a time.

  Args:
    config: a ConfigDict with the sections `model` and `input`.
    rounds: measured rounds; the steps of an axis run in turn.
    warmup: rounds before them, not measured.
    axes: values by axis, see `AXES`.

  Returns:
    Of every axis and value: `axis`, `value`, `seconds` (see `measure.summary`),
    `images_per_second` and `program` (see `measure.Program`). Where the memory
    does not suffice the last three are None.
  """
  rows = []
  for axis, values in axes.items():
    steps, batch_sizes = {}, {}
    for value in values:
      logging.info('compiling a step for %s = %d', axis, value)
      subject = subject_of(config, axis, value)
      batch_sizes[value] = subject.batch_size
      steps[value] = _fitting_step(subject)
    sides = {value: step.seconds for value, step in steps.items() if step}
    seconds = measure.alternate(sides, rounds, warmup, axis)
    for value, step in steps.items():
      row = {'seconds': None, 'images_per_second': None, 'program': None}
      if step:
        row = measure.throughput(seconds[value], batch_sizes[value])
        row['program'] = step.program.costs()
      rows.append({'axis': axis, 'value': value, **row})
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


def _fitting_step(subject) -> Step | None:
  """The compiled step, run once; None if it does not fit into the memory."""
  try:
    step = Step(subject)
    step.seconds(0)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    logging.info('it does not fit into the memory')
    return None
  return step
