"""Gradient accumulation: equal to the whole batch, as far as it can be."""

import functools

import eight_devices
import jax
import numpy as np
import pytest
import tiny_model

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.optimization import accumulation
from maskrcnn_jax.optimization.optimizer import make_optimizer
from maskrcnn_jax.training import monitor, train_step

# The terms are means over numbers of anchors and RoIs that images share, not
# over matched ones, of which images have different numbers.
BY_IMAGE = {
  'losses': {
    'rpn_normalizer': 'sampled',
    'box_normalizer': 'rois',
    'rpn_samples': 32,
  }
}


def rows(batch, indices):
  return jax.tree.map(lambda x: x[np.array(indices)], batch)


# The update is the gradient.
PLAIN = {'momentum': 0.0, 'learning_rate': 1.0, 'bias_gradient_factor': 1.0}


@functools.cache
def initial_state(model):
  return tiny_model.make_state(model, tiny_model.make_batch(), **PLAIN)[0]


@functools.cache
def compiled_step(model, num_parts):
  """An initial state and a step whose update is the gradient."""
  options = {**tiny_model.OPTIMIZER, **PLAIN, 'accumulate_steps': num_parts}
  optimizer = make_optimizer(model, options)
  step = functools.partial(train_step.train_step, model, optimizer)
  return initial_state(model), jax.jit(step)


def step_in_parts(model, batch, num_parts, key=3):
  """Gradients, metrics and statistics of the first step."""
  state, step = compiled_step(model, num_parts)
  after, metrics = step(state, batch, jax.random.key(key))
  gradients = jax.tree.map(np.subtract, state.params, after.params)
  return gradients, metrics, after.batch_stats


def assert_near(actual, expected, tolerance):
  def compare(path, a, b):
    largest = max(np.max(np.abs(b)), 1e-3)
    error = np.max(np.abs(np.float64(a) - np.float64(b))) / largest
    assert error <= tolerance, f'{jax.tree_util.keystr(path)}: {error}'

  jax.tree_util.tree_map_with_path(compare, actual, expected)


@pytest.fixture(name='model', scope='module')
def fixture_model():
  return tiny_model.make_model(**BY_IMAGE)


@pytest.mark.slow
def test_parts_with_equal_counts_are_the_whole_batch(model):
  """Every image is in both parts, and samples its own anchors and RoIs."""
  batch = rows(tiny_model.make_batch((2, 3)), [0, 0, 1, 1])
  whole = step_in_parts(model, batch, 1)
  parts = step_in_parts(model, batch, 2)
  assert_near(parts[1], whole[1], 1e-5)
  assert_near(parts[0], whole[0], 1e-4)
  # Another sample is further away: the test can fail.
  other = step_in_parts(model, batch, 2, key=4)
  with pytest.raises(AssertionError):
    assert_near(other[0], whole[0], 1e-2)


@pytest.mark.slow
def test_terms_with_counts_of_their_own_are_means_of_the_parts(model):
  batch = tiny_model.make_batch((1, 4, 2, 0))
  _, whole, _ = step_in_parts(model, batch, 1)
  _, parts, _ = step_in_parts(model, batch, 2)
  for term in ('rpn_objectness', 'rpn_box', 'class', 'box', 'l2_loss'):
    np.testing.assert_allclose(parts[term], whole[term], rtol=1e-5)
  # The mask term is a mean over the foreground of its part.
  assert abs(parts['mask'] / whole['mask'] - 1.0) > 1e-4


@pytest.mark.slow
def test_batch_norm_sees_one_part_after_the_other():
  model = tiny_model.make_model(norm='batch')
  batch = tiny_model.make_batch((2, 3, 1, 4))
  _, metrics, after = step_in_parts(model, batch, 2)
  state, _ = compiled_step(model, 2)
  key = jax.random.fold_in(jax.random.key(3), 0)
  stats, losses = state.batch_stats, []
  loss_fn = jax.jit(
    lambda stats, part, index: train_step.loss_fn(
      model, state.params, stats, part, key, (index, 2)
    )
  )
  for index in range(2):
    terms, stats = loss_fn(stats, rows(batch, [index, index + 2]), index)
    losses.append(sum(terms.values()))
  assert_near(after, stats, 1e-5)
  total = metrics['total_loss'] - metrics['l2_loss']
  np.testing.assert_allclose(total, np.mean(losses), rtol=1e-5)


@pytest.mark.slow
def test_the_bad_part_is_named(model):
  batch = tiny_model.make_batch((2, 3, 1, 4))
  batch['images'][3, 20, 20] = np.nan  # Row 1 of part 1.
  state, _ = compiled_step(model, 2)
  text = monitor.find_nonfinite(
    model, jax.random.key(0), state, 1, batch, num_parts=2
  )
  assert 'images[1], of the rows 1, 3' in text


def test_a_batch_that_parts_do_not_divide_is_refused():
  with pytest.raises(UserError) as error:
    accumulation.split(tiny_model.make_batch((2, 3, 1)), 2)
  assert error.value.argument == 'optimizer.accumulate_steps'
  assert error.value.given == 2


def test_part_i_holds_every_n_th_row():
  parts = accumulation.split({'x': np.arange(6)}, 2)
  np.testing.assert_array_equal(parts['x'], [[0, 2, 4], [1, 3, 5]])


_ON_DEVICES = r"""
model = tiny_model.make_model()
batch = tiny_model.make_batch([i % 4 for i in range(16)])
state, optimizer = tiny_model.make_state(
  model, batch, accumulate_steps=2, momentum=0.0
)
results, programs = [], []
for num_devices in (1, 8):
  mesh = mesh_lib.make_mesh(num_devices)
  everywhere = mesh_lib.replicated(mesh)
  laid_out = model_sharding.shard_model(model, mesh, 'none')
  step = jax.jit(
    functools.partial(train_step.train_step, laid_out, optimizer),
    in_shardings=(everywhere, mesh_lib.input_shardings(mesh), everywhere),
    out_shardings=everywhere,
  )
  inputs = jax.device_put(state, everywhere), arrays.put_batch(batch, mesh)
  compiled = step.lower(*inputs, jax.random.key(1)).compile()
  key = jax.device_put(jax.random.key(1), everywhere)
  results.append(jax.device_get(compiled(*inputs, key)))
  programs.append(compiled.as_text())


def difference(expected, actual):
  expected, actual = np.float64(expected), np.float64(actual)
  largest = max(np.max(np.abs(expected)), 1e-30)
  return float(np.max(np.abs(expected - actual)) / largest)


differences = jax.tree.leaves(jax.tree.map(difference, *results))
moved = [
  line.strip() for line in programs[1].splitlines()
  if re.search(r' (all-gather|all-to-all|collective-permute)[a-z-]*\(', line)
]
print(json.dumps({'worst': max(differences), 'moved': moved}))
"""


@pytest.mark.slow
@pytest.mark.long
def test_eight_devices_compute_what_one_does():
  found = eight_devices.run_on_eight(_ON_DEVICES)
  assert found['worst'] < 1e-5
  # No row of a batch moves to another device.
  images = [x for x in found['moved'] if '64,64,3' in x]
  assert not images
