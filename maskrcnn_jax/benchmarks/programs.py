"""Training step, detection and backbone: time, compilation and growth.

Each function returns rows, see `measure.run`; beside torchvision with ratios.
"""

import copy
import logging
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from maskrcnn_jax.benchmarks import examples, measure, stages
from maskrcnn_jax.benchmarks.options import BenchOptions
from maskrcnn_jax.benchmarks.subject import Subject, make_subject
from maskrcnn_jax.benchmarks.torchvision_process import TorchvisionProcess
from maskrcnn_jax.distributed import mesh as mesh_lib
from maskrcnn_jax.errors import UserError
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
  batches, (state, *_, key) = subject.batches(), _step_arguments(subject)
  step = _jitted_step(subject, state)
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


def _step_arguments(subject):
  """State, first batch and key."""
  key = mesh_lib.put_replicated(jax.random.key(0), subject.mesh)
  return subject.state(), subject.batches()[0], key


def _jitted_step(subject, state):
  shardings = jax.tree.map(lambda x: x.sharding, state)
  return train_step.jit_train_step(
    subject.model, subject.optimizer, subject.mesh, shardings
  )


def _jitted_detect(subject):
  def detect(variables, images, image_sizes):
    return train_step.detect(subject.model, variables, images, image_sizes)

  return jax.jit(detect)


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

  Up to masks of 28x28 cells on both sides, with weights that find many objects;
  `detections` are those of every image. torchvision's `pasting_seconds`, of
  masks into images, are not part of its time.
  """
  variables = subject.state(examples.DETECTION_BACKGROUND).variables()
  inputs = [(x['images'], x['image_sizes']) for x in subject.batches()]
  run, program = measure.compile_program(
    _jitted_detect(subject), variables, *inputs[0]
  )

  def seconds(number):
    images = inputs[number % len(inputs)]
    seconds, found = measure.seconds_of(run, variables, *images)
    ours.facts['detections'] = np.sum(found.valid, axis=1).tolist()
    return seconds

  ours = measure.Side(seconds, subject.batch_size, program)
  sides = {_OURS: ours}
  if other:
    other.load_weights(variables)
    sides['torchvision'] = other.side('detect', subject.batch_size)
  return _compare(sides, options, 'inference')


def backbone(
  subject: Subject, other: TorchvisionProcess | None, options: BenchOptions
) -> list[measure.Row]:
  """Rows of the backbone, forward and backward; see `training`.

  The weights of a ConvNeXt or a ViT are random values of its own on each side.
  """
  state = subject.state()
  recorded, _ = stages.record_training(subject, state, only='backbone')
  sides = {_OURS: stages.side(*recorded['backbone'])}
  sides[_OURS].images = subject.batch_size
  if other:
    if subject.model.backbone.kind == 'resnet':
      other.load_weights(state.variables())
    sides[subject.peer] = other.side('backbone', subject.batch_size)
  return _compare(sides, options, 'backbone')


def _compare(sides, options, title):
  return measure.add_ratios(
    measure.run(sides, options.rounds, options.warmup, title)
  )


def compilation(subject: Subject) -> list[measure.Row]:
  """Rows of the time until the step and detection can run; see `compiled`."""
  state, batch, key = _step_arguments(subject)
  inputs = state.variables(), batch['images'], batch['image_sizes']
  return [
    *compiled(
      'train step', lambda: _jitted_step(subject, state), state, batch, key
    ),
    *compiled('inference', lambda: _jitted_detect(subject), *inputs),
  ]


def compiled(
  name: str, make: Callable[[], Any], *arguments: Any
) -> list[measure.Row]:
  """Compiles a program with an empty cache, and again with what that wrote.

  Args:
    name: of the program.
    make: returns the jitted function, the same in each call.
    arguments: of the function.

  Returns:
    Two rows: `seconds` are the sum of `trace_seconds` (Python) and
    `compile_seconds` (the compiler, or reading its program from the cache);
    `cache_bytes` is the size of the cached program.

  Raises:
    RuntimeError: the second program did not come from the cache.
  """
  options = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
  )
  former = [getattr(jax.config, option) for option in options]

  def configure(values):
    for option, value in zip(options, values):
      jax.config.update(option, value)
    compilation_cache.reset_cache()

  rows, sizes = [], []
  with tempfile.TemporaryDirectory(prefix='maskrcnn_jax_') as folder:
    try:
      for kind in ('cold', 'cached'):
        configure((folder, 0.0))
        # Of this process; files stay.
        jax.clear_caches()
        start = time.perf_counter()
        lowered = make().lower(*arguments)
        middle = time.perf_counter()
        lowered.compile()
        end = time.perf_counter()
        paths = pathlib.Path(folder).rglob('*-cache')
        sizes.append({path.name: path.stat().st_size for path in paths})
        rows.append(
          {'name': f'{name}, {kind}', **measure.timing([end - start])}
          | {'trace_seconds': middle - start, 'compile_seconds': end - middle}
          | {'cache_bytes': sum(sizes[-1].values())}
        )
    finally:
      configure(former)
  if sizes[1] != sizes[0] or not sizes[0]:
    raise RuntimeError(f'{name} did not come from the cache: {sizes}.')
  return rows


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
