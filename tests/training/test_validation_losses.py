"""Validation losses: each image as a batch of its own."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_model
from eight_devices import run_on_eight

from maskrcnn_jax.distributed import mesh as sharding
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import scores
from maskrcnn_jax.training import train_state, train_step, validation_losses

SEEDS = np.uint32([7, 8, 2**31])


@pytest.fixture(scope='module')
def sampled():
  """Losses of a model that samples, with batch norm that learns."""
  model = tiny_model.make_model(norm='batch')
  batch = tiny_model.make_batch((2, 0, 3))
  variables = jax.jit(lambda key: train_state.init_variables(model, key))(
    jax.random.key(0)
  )
  program = jax.jit(lambda *x: validation_losses.image_losses(model, *x))
  return model, variables, batch, lambda *x: jax.device_get(program(*x))


def rows(batch, order):
  return jax.tree.map(lambda x: x[list(order)], batch)


@pytest.mark.slow
def test_an_image_has_its_losses_whatever_is_beside_it(sampled):
  _, variables, batch, program = sampled
  losses = program(variables, batch, SEEDS)
  assert set(losses) == {*scores.TERMS, 'valid'}
  turned = program(variables, rows(batch, (2, 0, 1)), SEEDS[[2, 0, 1]])
  # An image that is a filler, and the noise in it, are nobody's loss.
  filler = rows(batch, (0, 1, 2))
  filler['valid'] = np.array([True, False, True])
  filler['images'] = filler['images'].copy()
  filler['images'][1] = 255
  without = program(variables, filler, SEEDS)
  for term in scores.TERMS:
    values = np.asarray(losses[term])
    assert values.shape == (3,) and np.all(np.isfinite(values)), term
    np.testing.assert_allclose(turned[term], values[[2, 0, 1]], rtol=1e-5)
    np.testing.assert_allclose(without[term][[0, 2]], values[[0, 2]], rtol=1e-5)
    assert without[term][1] == 0
  # Nothing to learn boxes and masks from; the others say something.
  assert losses['mask'][1] == losses['box'][1] == losses['rpn_box'][1] == 0
  assert losses['class'][1] > 0 and losses['rpn_objectness'][1] > 0
  np.testing.assert_array_equal(without['valid'], filler['valid'])


def test_what_is_drawn_depends_on_the_image_alone(sampled):
  _, variables, batch, program = sampled
  same = rows(batch, (0, 0, 0))
  losses = program(variables, same, np.uint32([7, 7, 9]))
  assert losses['class'][0] == losses['class'][1] != losses['class'][2]
  again = program(variables, same, np.uint32([7, 7, 9]))
  jax.tree.map(np.testing.assert_array_equal, losses, again)


def test_batch_norm_takes_what_it_has_stored(sampled):
  _, variables, batch, program = sampled
  before = program(variables, batch, SEEDS)
  stored = jax.tree.map(lambda x: 4 * x + 1, variables['batch_stats'])
  after = program({**variables, 'batch_stats': stored}, batch, SEEDS)
  assert abs(float(before['class'][0]) - float(after['class'][0])) > 1e-4


def test_means_are_over_the_valid_images(sampled):
  """And what is put in twice, in batches of any order, changes nothing."""
  model, variables, batch, program = sampled
  losses = validation_losses.ValidationLosses(model, sharding.make_mesh(1))
  losses._losses = program  # The same, compiled already.
  ids = {'image_ids': SEEDS.astype(np.int64) + 2**40}
  batch = {**batch, **ids}
  filler = {**rows(batch, (2, 1, 0)), 'valid': np.array([True, False, False])}
  filler = {**filler, 'image_ids': batch['image_ids'][[2, 1, 0]]}
  told = []
  found = losses(variables, [filler, batch], told.append)
  assert told == [1, 2]
  assert tuple(found) == scores.LOSSES
  each = program(variables, {k: batch[k] for k in batch if k not in ids}, SEEDS)
  for term in scores.TERMS:
    values = np.asarray(each[term], np.float64)
    expected = (values.sum() + values[2]) / 4
    np.testing.assert_allclose(
      found[f'{scores.LOSS}_{term}'], expected, rtol=1e-5
    )
  terms = [found[f'{scores.LOSS}_{term}'] for term in scores.TERMS]
  np.testing.assert_allclose(found[scores.LOSS], np.sum(terms), rtol=1e-12)
  assert losses(variables, [batch, filler], told.append) == found
  none = {**batch, 'valid': np.zeros(3, bool)}
  assert losses(variables, [none], told.append) == {}


def test_a_class_that_the_model_lacks_is_named(sampled):
  model, variables, batch, _ = sampled
  losses = validation_losses.ValidationLosses(model, sharding.make_mesh(1))
  instances = {**batch['instances'], 'classes': np.full((3, 4), 9, np.int32)}
  wrong = {**batch, 'instances': instances, 'image_ids': np.arange(5, 8)}
  with pytest.raises(UserError) as error:
    losses(variables, [wrong], print)
  assert error.value.argument == 'model.num_classes'
  assert (error.value.item, error.value.wanted) == (5, 10)


@pytest.mark.long
def test_the_losses_of_an_image_are_those_of_a_step_with_it_alone():
  # As many samples as there are candidates: what is drawn does not matter.
  model = tiny_model.make_model(
    rpn_targets={'num_samples': 4096},
    sampling={'num_rois': 64, 'foreground_fraction': 0.5},
    losses={'rpn_samples': 1020},
  )
  # The cap is of training alone.
  capped = dataclasses.replace(model.sampling, num_mask_rois=2)
  batch = tiny_model.make_batch((2, 0, 3))
  variables = train_state.init_variables(model, jax.random.key(0))
  losses = jax.jit(
    lambda *x: validation_losses.image_losses(model.clone(sampling=capped), *x)
  )(variables, batch, SEEDS)
  step = jax.jit(
    lambda variables, batch, key: train_step.loss_fn(
      model, variables['params'], variables['batch_stats'], batch, key
    )[0]
  )
  for row in range(3):
    expected = step(variables, rows(batch, [row]), jax.random.key(row))
    for term in scores.TERMS:
      np.testing.assert_allclose(
        losses[term][row], expected[term], rtol=2e-5, atol=1e-7, err_msg=term
      )


LAYOUTS = """
import contextlib, pathlib
import tiny_run
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.training import evaluator
folder = pathlib.Path(arguments[0])
jax.config.update('jax_disable_most_optimizations', True)
config = tiny_run.make_config(*tiny_run.write_dataset(folder))
config.input.canvases = ((128, 64),)
config.evaluation.losses = True
model = MaskRCNN.from_config(config.model)
variables = train_state.init_variables(model, jax.random.key(0))
for batch_size, runtime in (
  (1, {'num_devices': 1}), (2, {'num_devices': 1}), (4, {'num_devices': 4}),
  (4, {'num_devices': 8, 'spatial': 2}),
):
  config.evaluation.batch_size = batch_size
  config.runtime = runtime
  evaluate = evaluator.Evaluator(config, folder)
  batches = evaluate._batches(with_instances=True)
  found = evaluate._losses(variables, batches, lambda _: None)
  print(json.dumps(found), file=sys.stderr)
  if batch_size == 1:
    expected = found
  assert set(found) == set(expected) and found['eval/loss'] > 1
  for name, value in found.items():
    np.testing.assert_allclose(value, expected[name], rtol=1e-5, err_msg=name)
print(0)
"""


@pytest.mark.long
def test_batch_size_and_devices_do_not_matter(tmp_path):
  run_on_eight(LAYOUTS, str(tmp_path))
