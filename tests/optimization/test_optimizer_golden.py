"""AdamW and schedules against recorded numbers of PyTorch and fvcore."""

import json

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskrcnn_jax.optimization import optimizer, schedule
from maskrcnn_jax.optimization.optimizer import OptimizerOptions

SOURCE = 'detectron2'


def recorded_adamw(recorded):
  """Arrays of every step, options and factors of the rate of a recording."""
  indices = golden_files.numbers(recorded, r'initial/p(\d+)')
  steps = golden_files.numbers(recorded, r'grad_(\d+)/p0')
  decay = float(recorded['weight_decay'])
  # Names that decay or not by the rule for kernels.
  kinds = {}
  for i in indices:
    own = float(recorded['weight_decays'][i])
    assert own in (0.0, decay)
    kinds[i] = 'kernel' if own else 'bias'

  def tree(value):
    return {f'p{i}': {kinds[i]: value(i)} for i in indices}

  def arrays(name):
    return tree(lambda i: recorded[f'{name}/p{i}'])

  shares = np.float64(recorded['lr_schedule'])
  options = OptimizerOptions(
    kind='adamw',
    learning_rate=float(recorded['lr'] * shares[0]),
    warmup_steps=0,
    decay_steps=tuple(steps[1:]),
    decay_factors=tuple(float(x) for x in shares[1:] / shares[0]),
    inclusive_decay=False,
    adam_decays=tuple(float(x) for x in recorded['betas']),
    adam_epsilon=float(recorded['eps']),
    weight_decay=decay,
    bias_gradient_factor=1.0,
  )
  factors = tree(lambda i: float(recorded['lr_multipliers'][i]))
  return steps, arrays, options, factors


def assert_trees_near(actual, expected, tolerance):
  jax.tree.map(
    lambda a, b: golden_files.assert_near(a, b, tolerance), actual, expected
  )


@pytest.fixture(name='recorded')
def fixture_recorded(request):
  return golden_files.load(request.param[0])


@golden_files.each('adamw_*.npz', SOURCE)
def test_adamw_steps_match_pytorch(recorded):
  """Updates by themselves: they are far smaller than the parameters.

  The recorded `initial` arrays are those of the float64 steps; the float32
  steps began elsewhere, so their first one is not repeated.
  """
  steps, arrays, options, factors = recorded_adamw(recorded)
  initial = arrays('initial')
  trainable = jax.tree.map(lambda _: True, factors)
  adamw = optimizer.transformation(options, initial, trainable, factors)
  state, before, rounded = adamw.init(initial), initial, None
  for step in steps:
    gradients = arrays(f'grad_{step}')
    start = jax.tree.map(jnp.float32, before)
    updates, new_state = adamw.update(gradients, state, start, step=step)
    after = arrays(f'f64_after_{step}')
    expected = jax.tree.map(lambda a, b: a - np.float64(b), after, before)
    assert_trees_near(updates, expected, 2e-5)
    if rounded is not None:
      updates, _ = adamw.update(gradients, state, rounded, step=step)
      moved = optax.apply_updates(rounded, updates)
      assert_trees_near(moved, arrays(f'after_{step}'), 3e-7)
    state, before = new_state, after
    rounded = arrays(f'after_{step}')
  for name, attribute in (('exp_avg', 'mu'), ('exp_avg_sq', 'nu')):
    found = optax.tree.get(state, attribute)
    assert_trees_near(found, arrays(name), 1e-6)
    assert_trees_near(found, arrays(f'f64_{name}'), 1e-6)


@golden_files.each('adamw_*.npz', SOURCE)
def test_adamw_moves_nothing_that_is_frozen(recorded):
  _, arrays, options, factors = recorded_adamw(recorded)
  initial = arrays('initial')
  trainable = jax.tree.map(lambda _: True, factors)
  trainable['p0'] = dict.fromkeys(trainable['p0'], False)
  adamw = optimizer.transformation(options, initial, trainable, factors)
  state = adamw.init(initial)
  updates, state = adamw.update(arrays('grad_0'), state, initial, step=0)
  assert not np.any(jax.tree.leaves(updates['p0'])[0])
  assert np.any(jax.tree.leaves(updates['p1'])[0])
  others = [x.shape for name in ('p1', 'p2') for x in initial[name].values()]
  stored = [x.shape for x in jax.tree.leaves(optax.tree.get(state, 'mu'))]
  assert set(others) <= set(stored)
  assert len(stored) == len(jax.tree.leaves(initial)) - 1


def recorded_options(recorded):
  """Options of a recorded schedule, by steps and by shares if it has them."""
  warmup, factor = recorded['warmup_length'], recorded['warmup_factor']
  common = {
    'warmup_steps': warmup,
    'inclusive_decay': False,
    'num_steps': recorded['max_iter'],
  }
  if recorded['kind'] == 'cosine':
    start = recorded['start_value']
    yield OptimizerOptions(
      **common,
      learning_rate=start,
      warmup_learning_rate=factor * start,
      schedule='cosine',
      final_factor=recorded['end_value'] / start,
      cosine_after_warmup=recorded['rescale_interval'],
    )
    return
  assert not recorded['rescale_interval']
  steps, values = recorded['milestones'], recorded['values']
  if recorded['warmup_method'] == 'constant':
    # The rate of a constant warm-up is one more step of the schedule.
    steps, values = [warmup, *steps], [factor * values[0], *values]
    common['warmup_steps'] = 0
  for scale in (1, recorded['max_iter']):
    yield OptimizerOptions(
      **common,
      learning_rate=values[0],
      warmup_learning_rate=factor * values[0],
      decay_steps=tuple(x / scale for x in steps),
      decay_factors=tuple(x / values[0] for x in values[1:]),
    )


@pytest.mark.parametrize(
  'path',
  golden_files.files('schedule_*.json', SOURCE),
  ids=lambda path: path.stem,
)
def test_schedules_match_fvcore(path):
  recorded = json.loads(path.read_text())
  steps = jnp.asarray(recorded['steps'])
  for options in recorded_options(recorded):
    rates = jax.vmap(schedule.learning_rate(options))(steps)
    # A cosine in float32 ends at 0 where it should be 1e-9.
    np.testing.assert_allclose(
      rates, recorded['multipliers'], rtol=1e-6, atol=1.2e-7
    )
