"""Learning rates: recorded schedules, shares, cosine and warm-up by hand."""

import json

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.optimization import optimizer, schedule
from maskrcnn_jax.optimization.optimizer import OptimizerOptions


def recorded_schedule(recording):
  """Options of a recorded schedule, from the values in the file."""
  values = recording['values']
  boundaries = [int(step) for step in recording['boundaries']]
  params = json.loads(str(recording['meta']))['params']
  if 'init_value' in params:
    # NVIDIA: warm-up is its first interval; rates are for one image.
    scale = params['local_batch_size']
    return OptimizerOptions(
      learning_rate=float(values[0]) * scale,
      warmup_steps=boundaries[0],
      warmup_learning_rate=params['init_value'] * scale,
      decay_steps=tuple(boundaries[1:]),
      decay_factors=tuple(float(x / values[0]) for x in values[1:]),
      inclusive_decay=False,
    )
  return OptimizerOptions(
    learning_rate=float(values[0]),
    warmup_steps=params['warmup_steps'],
    warmup_learning_rate=params['warmup_learning_rate'],
    decay_steps=tuple(boundaries),
    decay_factors=tuple(params['learning_rate_decay_levels']),
  )


@pytest.mark.parametrize(
  'path', golden_files.files('10_lr_*.npz'), ids=lambda path: path.stem
)
def test_schedules_match_the_recordings(path):
  recording = golden_files.load(path)
  options = recorded_schedule(recording)
  rates = jax.vmap(schedule.learning_rate(options))(
    jnp.asarray(recording['steps'])
  )
  # Relative to every single value, not only to the largest.
  np.testing.assert_allclose(rates, recording['lr'], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('inclusive, at_boundary', [(True, 1.0), (False, 0.5)])
def test_rate_falls_after_or_at_the_boundary(inclusive, at_boundary):
  rate_at = schedule.learning_rate(
    OptimizerOptions(
      learning_rate=1.0,
      warmup_steps=0,
      decay_steps=(5, 8),
      decay_factors=(0.5, 0.25),
      inclusive_decay=inclusive,
    )
  )
  rates = [float(rate_at(step)) for step in (0, 4, 5, 6, 9)]
  assert rates == [1.0, 1.0, at_boundary, 0.5, 0.25]


def test_warmup_by_hand():
  rate_at = schedule.learning_rate(
    OptimizerOptions(
      learning_rate=1.0, warmup_steps=4, warmup_learning_rate=0.2
    )
  )
  rates = [float(rate_at(step)) for step in range(6)]
  np.testing.assert_allclose(rates, [0.2, 0.4, 0.6, 0.8, 1, 1], rtol=1e-6)


def test_shares_are_of_the_schedules_length():
  options = OptimizerOptions(
    learning_rate=1.0,
    warmup_steps=0,
    num_steps=90,
    decay_steps=(2 / 3, 80),
    inclusive_decay=False,
  )
  assert options.depends_on_length
  assert schedule.decay_steps(options) == (60, 80)
  rate_at = schedule.learning_rate(options)
  rates = [float(rate_at(step)) for step in (59, 60, 79, 80)]
  np.testing.assert_allclose(rates, [1.0, 0.1, 0.1, 0.01], rtol=1e-6)


def test_a_cosine_by_hand():
  rate_at = schedule.learning_rate(
    OptimizerOptions(
      learning_rate=2.0,
      warmup_steps=0,
      schedule='cosine',
      num_steps=6,
      final_factor=0.25,
    )
  )
  # The cosine of 0, 60, 90, 120 and 180 degrees; beyond, the end.
  rates = [float(rate_at(step)) for step in (0, 2, 3, 4, 6, 9)]
  expected = [2.0, 1.625, 1.25, 0.875, 0.5, 0.5]
  np.testing.assert_allclose(rates, expected, rtol=1e-6)


@pytest.mark.parametrize(
  'fields', [{'schedule': 'cosine'}, {'decay_steps': (0.5, 0.75)}]
)
def test_a_schedule_without_its_length_is_refused(fields):
  rate_at = schedule.learning_rate(OptimizerOptions(**fields))
  with pytest.raises(UserError) as error:
    rate_at(0)
  assert error.value.argument == 'optimizer.num_steps'


def test_the_length_is_that_of_the_training_unless_it_is_given():
  model = MaskRCNN(num_classes=2)
  lengths = [
    optimizer.make_optimizer(model, fields, 100).options.num_steps
    for fields in (
      {'schedule': 'cosine'},
      {'schedule': 'cosine', 'num_steps': 50},
      {},
    )
  ]
  assert lengths == [100, 50, None]
