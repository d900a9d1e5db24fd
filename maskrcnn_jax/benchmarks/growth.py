"""How time and memory of a step grow with what there is to do."""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from maskrcnn_jax.benchmarks import measure
from maskrcnn_jax.benchmarks.subject import make_subject
from maskrcnn_jax.benchmarks.train_step import Step
from maskrcnn_jax.errors import UserError

# Images in a batch; sides of a square canvas; objects in every image; classes
# with background, up to LVIS.
AXES = {
  'batch': (1, 2, 4, 8),
  'canvas': (256, 512, 832, 1344),
  'objects': (1, 10, 30, 100),
  'classes': (2, 21, 91, 1203),
}
_OUT_OF_MEMORY = 'RESOURCE_EXHAUSTED'


def run(
  config: Any,
  rounds: int = 3,
  warmup: int = 1,
  axes: Mapping[str, Sequence[int]] = AXES,
) -> list[dict[str, Any]]:
  """Steps with drawn images, one size changed at a time; the others stay.

  Args:
    config: a ConfigDict with the sections `model` and `input`.
    rounds: that count; the steps of an axis run by turns.
    warmup: rounds before them.
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
      subject = make_subject(*changed(config, axis, value))
      batch_sizes[value] = subject.batch_size
      steps[value] = _fitting_step(subject)
    seconds = measure.alternate(
      {str(x): step.seconds for x, step in steps.items() if step},
      rounds,
      warmup,
      axis,
    )
    for value, step in steps.items():
      row = {'axis': axis, 'value': value}
      nothing = {'seconds': None, 'images_per_second': None, 'program': None}
      if step:
        nothing = {
          **measure.throughput(seconds[str(value)], batch_sizes[value]),
          'program': step.program.costs(),
        }
      rows.append(row | nothing)
  return rows


def changed(
  config: Any, axis: str, value: int
) -> tuple[Any, bool, int, int | None]:
  """What `make_subject` takes, with one size changed.

  Args:
    config: stays as it is.
    axis: of `AXES`.
    value: of the axis.
  """
  config = copy.deepcopy(config)
  num_objects = None
  if axis == 'batch':
    config.input.batch_size = value
  elif axis == 'canvas':
    config.input.canvases = ((value, value),)
  elif axis == 'objects':
    num_objects = value
  elif axis == 'classes':
    config.model.num_classes = value
  else:
    raise UserError(f'axes must be of {", ".join(AXES)}, got {axis!r}.')
  is_real, num_batches = False, 1
  return config, is_real, num_batches, num_objects


def _fitting_step(subject) -> Step | None:
  """The compiled step, run once; None if its memory is not there."""
  try:
    step = Step(subject)
    step.seconds(0)
  except jax.errors.JaxRuntimeError as error:
    if _OUT_OF_MEMORY not in str(error):
      raise
    logging.info('there is not enough memory for it')
    return None
  return step
