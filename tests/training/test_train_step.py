"""Training step of a tiny model: losses, padding, reproducibility, freezing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_model
from tiny_checkpoint import assert_same

from maskrcnn_jax.distributed import arrays
from maskrcnn_jax.distributed import mesh as mesh_lib
from maskrcnn_jax.optimization.optimizer import Optimizer
from maskrcnn_jax.training import train_step

TERMS = ('rpn_objectness', 'rpn_box', 'class', 'box', 'mask')
METRICS = {
  *TERMS,
  'l2_loss',
  'total_loss',
  'learning_rate',
  'gradient_norm',
  'finite',
}
# All candidates are sampled, so the result does not depend on the key.
TAKE_ALL = {
  'rpn_targets': {'num_samples': 4096},
  'sampling': {'num_rois': 64, 'foreground_fraction': 0.5},
  'losses': {'rpn_samples': 1020},
}


class Run:
  """A model with its initial state and its step, compiled for one device."""

  def __init__(self, model, batch, **optimizer):
    self.model = model
    self.mesh = mesh_lib.make_mesh(1)
    self.replicated = mesh_lib.replicated(self.mesh)
    state, self.optimizer = tiny_model.make_state(model, batch, **optimizer)
    self.state = jax.device_put(state, self.replicated)
    self.compile(self.optimizer)

  def compile(self, optimizer):
    self.jitted = jax.jit(
      functools.partial(train_step.train_step, self.model, optimizer),
      in_shardings=(
        self.replicated,
        mesh_lib.batch_sharding(self.mesh),
        self.replicated,
      ),
      out_shardings=self.replicated,
    )

  def step(self, state, batch, seed=0):
    key = jax.device_put(jax.random.key(seed), self.replicated)
    return self.jitted(state, arrays.put_batch(batch, self.mesh), key)


@pytest.fixture(scope='module')
def batch():
  return tiny_model.make_batch((2, 3))


@pytest.fixture(scope='module')
def run(batch):
  """A run without frozen parameters that samples RoIs and anchors."""
  return Run(tiny_model.make_model(), batch)


def gradients(state):
  """Gradients of the first step, which are its momentum."""
  return optax.tree.get(state.opt_state, 'trace')


def without_objects(batch):
  return {
    **batch,
    'instances': jax.tree.map(np.zeros_like, batch['instances']),
  }


def assert_trees_close(actual, expected, tolerance):
  """Compares relative to the largest entry of each array."""

  def compare(path, a, b):
    largest = max(np.max(np.abs(b)), 1e-30)
    error = np.max(np.abs(np.asarray(a, np.float64) - b)) / largest
    assert error <= tolerance, f'{jax.tree_util.keystr(path)}: {error}'

  jax.tree_util.tree_map_with_path(compare, actual, expected)


def assert_tree_finite(tree):
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    assert np.all(np.isfinite(x)), jax.tree_util.keystr(path)


def test_metrics_are_finite_scalars(run, batch):
  state, metrics = run.step(run.state, batch)
  assert set(metrics) == METRICS
  for name, value in metrics.items():
    assert value.shape == (), name
    assert value.dtype == (bool if name == 'finite' else np.float32), name
    assert np.isfinite(value), name
  assert metrics['finite']
  for name in TERMS:
    assert metrics[name] > 0, name
  total = sum(float(metrics[name]) for name in (*TERMS, 'l2_loss'))
  np.testing.assert_allclose(metrics['total_loss'], total, rtol=1e-6)
  np.testing.assert_allclose(metrics['learning_rate'], 0.02, rtol=1e-6)
  assert int(state.step) == 1
  assert_tree_finite(state)


def test_untrained_losses_are_those_of_uniform_probabilities(run, batch):
  _, metrics = run.step(run.state, batch)
  # One of two classes, for 32 anchors of each image.
  np.testing.assert_allclose(metrics['rpn_objectness'], np.log(2), rtol=0.02)
  classes = np.log(tiny_model.NUM_CLASSES)
  np.testing.assert_allclose(metrics['class'], classes, rtol=0.1)


def test_gradient_norm_includes_all_gradients(run, batch):
  state, metrics = run.step(run.state, batch)
  halved = jax.tree_util.tree_map_with_path(
    # The optimizer doubles gradients of biases.
    lambda path, x: x / 2 if path[-1].key == 'bias' else x,
    gradients(state),
  )
  norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(halved)))
  np.testing.assert_allclose(metrics['gradient_norm'], norm, rtol=1e-5)


@pytest.mark.parametrize('images', [(0,), (0, 1)])
def test_images_without_objects(run, batch, images):
  empty = without_objects(batch)
  mixed = jax.tree.map(np.copy, batch)
  for image in images:
    jax.tree.map(
      lambda x, zeros, i=image: x.__setitem__(i, zeros[i]), mixed, empty
    )
  state, metrics = run.step(run.state, mixed)
  assert metrics['finite']
  assert_tree_finite(state)
  assert metrics['rpn_objectness'] > 0
  assert metrics['class'] > 0
  for name in ('rpn_box', 'box', 'mask'):
    if len(images) == 2:
      assert metrics[name] == 0.0, name  # Exactly.
    else:
      assert metrics[name] > 0.0, name


def test_a_batch_without_valid_images_only_decays(run, batch):
  fillers = {**batch, 'valid': np.zeros(2, bool)}
  state, metrics = run.step(run.state, fillers)
  assert metrics['finite']
  for name in TERMS:
    assert metrics[name] == 0.0, name
  decay = 0.02 * run.optimizer.options.weight_decay

  def compare(path, new, old):
    if path[-1].key == 'kernel':
      np.testing.assert_allclose(new, old - decay * old, rtol=1e-6, atol=1e-9)
    else:
      np.testing.assert_array_equal(new, old)

  jax.tree_util.tree_map_with_path(compare, state.params, run.state.params)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_non_finite_losses_change_only_the_step_number(run, batch, value):
  state, _ = run.step(run.state, batch)  # The momentum is not 0.
  images = batch['images'].copy()
  images[1, 20, 20, 0] = value
  after, metrics = run.step(state, {**batch, 'images': images})
  assert not metrics['finite']
  assert not np.isfinite(metrics['total_loss'])
  assert int(after.step) == int(state.step) + 1
  assert_same(after.replace(step=state.step), state)


def test_pixels_of_the_padding_do_not_matter(run, batch):
  images = batch['images'].copy()
  for image, (height, width) in zip(images, batch['image_sizes'].astype(int)):
    image[height:], image[:, width:] = 255, 255
  assert np.any(images != batch['images'])
  expected = run.step(run.state, batch)
  assert_same(run.step(run.state, {**batch, 'images': images}), expected)


def test_a_step_is_reproducible_bit_for_bit(run, batch):
  assert_same(run.step(run.state, batch, 7), run.step(run.state, batch, 7))


def test_key_and_step_number_change_the_samples(run, batch):
  step = jax.device_put(jnp.int32(1), run.replicated)
  losses = {
    float(run.step(state, batch, seed)[1]['total_loss'])
    for seed in (7, 8)
    for state in (run.state, run.state.replace(step=step))
  }
  assert len(losses) == 4


def test_a_fixed_batch_is_overfit(run, batch):
  state = run.state
  for _ in range(60):
    state, metrics = run.step(state, batch)
  assert metrics['total_loss'] < 1.0  # From 3.4.


def test_compiles_once_without_implicit_transfers(run, batch):
  batches = [batch, without_objects(batch), tiny_model.make_batch((4, 1), 5)]
  key = jax.device_put(jax.random.key(0), run.replicated)
  state = run.state
  with jax.transfer_guard('disallow'):
    for host_batch in batches:
      state, _ = run.jitted(state, arrays.put_batch(host_batch, run.mesh), key)
  assert int(state.step) == 3
  # Neither here nor in earlier tests.
  assert run.jitted._cache_size() == 1


@pytest.fixture(scope='module')
def take_all_gradients(run):
  """Losses and gradients that do not depend on sampling."""

  def gradients(params, batch, dtype='float32'):
    model = tiny_model.make_model(dtype=dtype, **TAKE_ALL)

    def total(params):
      losses, _ = train_step.loss_fn(
        model, params, {}, batch, jax.random.key(0)
      )
      return sum(losses.values()), losses

    return jax.grad(total, has_aux=True)(params)

  compiled = jax.jit(gradients, static_argnames='dtype')
  return functools.partial(compiled, run.state.params)


@pytest.mark.slow
def test_padding_changes_nothing(batch, take_all_gradients):
  """Three more rows of instances and one more image."""
  padded = tiny_model.make_batch((2, 3, 4), max_instances=7)
  padded['valid'][2] = False
  grads, losses = take_all_gradients(padded)
  expected_grads, expected_losses = take_all_gradients(batch)
  assert_trees_close(losses, expected_losses, 1e-6)
  assert_trees_close(grads, expected_grads, 1e-5)


@pytest.mark.slow
def test_bfloat16_is_near_and_keeps_float32_parameters(
  batch, take_all_gradients
):
  grads, losses = take_all_gradients(batch, dtype='bfloat16')
  expected_grads, expected_losses = take_all_gradients(batch)
  for name in TERMS:
    assert losses[name].dtype == np.float32
  total, expected = (float(sum(x.values())) for x in (losses, expected_losses))
  np.testing.assert_allclose(total, expected, rtol=0.01)
  for x in jax.tree.leaves(grads):
    assert x.dtype == np.float32
  norms = [float(optax.tree.norm(x)) for x in (grads, expected_grads)]
  np.testing.assert_allclose(*norms, rtol=0.05)
  # Sums over thousands of cells; in bfloat16 they would be off by a seventh.
  for head, layer in (('rpn_head', 'objectness'), ('mask_head', 'deconv')):
    actual, exact = (x[head][layer]['bias'] for x in (grads, expected_grads))
    assert_trees_close(actual, exact, 0.02)


@pytest.mark.slow
def test_batch_norm_uses_only_valid_images(batch):
  run = Run(tiny_model.make_model(norm='batch'), batch)

  @jax.jit
  def stored(batch):
    return train_step.loss_fn(
      run.model,
      run.state.params,
      run.state.batch_stats,
      batch,
      jax.random.key(0),
    )[1]

  def rows(images, valid):
    taken = jax.tree.map(lambda x: x[np.array(images)], batch)
    return {**taken, 'valid': np.array(valid)}

  first = stored(rows([0, 1], [True, False]))
  other = rows([0, 1], [True, False])
  other['images'][1] = 17
  assert_same(stored(other), first)
  # The same image twice has the statistics of one.
  assert_trees_close(stored(rows([0, 0], [True, True])), first, 1e-5)
  both = stored(rows([0, 1], [True, True]))
  mean = both['backbone']['stem']['norm']['mean']
  assert np.any(mean != first['backbone']['stem']['norm']['mean'])
  # Without a valid image the statistics stay the same.
  unchanged = stored(rows([0, 1], [False, False]))
  assert_same(unchanged, run.state.batch_stats)


@pytest.mark.slow
def test_frozen_stages_have_no_gradient(batch):
  frozen = {'stem', 'stage2'}
  model = tiny_model.make_model(norm='frozen', frozen_stages=2)
  run = Run(model, batch)
  params = run.state.params
  # They have no momentum.
  num_frozen = sum(size(params['backbone'][stage]) for stage in frozen)
  assert size(gradients(run.state)) == size(params) - num_frozen
  # The model stops the gradient even if the optimizer would use it.
  optimizer = Optimizer(
    dataclasses.replace(run.optimizer.options, weight_decay=0.0),
    frozen_stages=0,
  )
  state = run.state.replace(
    opt_state=optimizer.transformation(params).init(params)
  )
  run.compile(optimizer)
  after, metrics = run.step(jax.device_put(state, run.replicated), batch)
  assert metrics['finite']
  for stage, leaves in gradients(after)['backbone'].items():
    for x in jax.tree.leaves(leaves):
      # The last norm of a block starts at 0, so it passes no gradient yet.
      assert not (stage in frozen and np.any(x != 0)), stage
    if stage not in frozen:
      assert any(np.any(x != 0) for x in jax.tree.leaves(leaves)), stage
  # Stored statistics do not change.
  assert_same(after.batch_stats, state.batch_stats)


def size(tree):
  return sum(x.size for x in jax.tree.leaves(tree))
