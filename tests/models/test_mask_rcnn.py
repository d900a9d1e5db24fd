"""The assembly: shapes, parameters, types and options."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import narrow_models
import numpy as np
import pytest
import tiny_model

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models import layers
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.ops import images as image_ops
from maskrcnn_jax.structures import Instances
from maskrcnn_jax.training import train_step
from maskrcnn_jax.weights import load_report

CANVAS = (96, 160)
# Cells of 96x160 by level; the last one is rounded up.
CELLS = {2: 24 * 40, 3: 12 * 20, 4: 6 * 10, 5: 3 * 5, 6: 2 * 3}


def make_inputs(batch=2, num_instances=5):
  instances = Instances(
    boxes=jnp.zeros((batch, num_instances, 4)),
    classes=jnp.zeros((batch, num_instances), jnp.int32),
    masks=jnp.zeros((batch, num_instances, 28, 28), jnp.uint8),
    valid=jnp.zeros((batch, num_instances), bool),
  )
  images = jnp.zeros((batch, *CANVAS, 3), jnp.uint8)
  sizes = jnp.broadcast_to(jnp.float32(CANVAS), (batch, 2))
  return images, sizes, instances


@functools.cache
def shapes_of(dtype):
  """Shapes of the default model in training and in detection."""
  model = MaskRCNN(dtype=dtype)
  images, sizes, instances = make_inputs()
  keys = {'params': jax.random.key(0), 'sampling': jax.random.key(1)}
  outputs, variables = jax.eval_shape(
    model.init_with_output, keys, images, sizes, instances
  )
  detections = jax.eval_shape(
    functools.partial(model.apply, method='detect'), variables, images, sizes
  )
  return outputs, variables, detections


def shapes(tree):
  return {key: value.shape for key, value in tree.items()}


def test_shapes_of_the_default_model_in_training():
  outputs, _, _ = shapes_of('float32')
  assert shapes(outputs.rpn.objectness_logits) == {
    level: (2, 3 * cells) for level, cells in CELLS.items()
  }
  assert shapes(outputs.rpn.box_deltas) == {
    level: (2, 3 * cells, 4) for level, cells in CELLS.items()
  }
  assert outputs.rois.boxes.shape == (2, 512, 4)
  assert outputs.box.class_logits.shape == (2, 512, 91)
  assert outputs.box.box_deltas.shape == (2, 512, 91, 4)
  # A quarter of the RoIs have a mask.
  assert outputs.mask_logits.shape == (2, 128, 28, 28)


def test_shapes_of_the_default_model_in_detection():
  _, _, detections = shapes_of('float32')
  assert detections.boxes.shape == (2, 100, 4)
  assert detections.masks.shape == (2, 100, 28, 28)
  for array in (detections.scores, detections.classes, detections.valid):
    assert array.shape == (2, 100)


def count(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


def test_parameters_of_the_default_model_are_those_of_habana():
  _, variables, _ = shapes_of('float32')
  params = variables['params']
  frozen = count([params['backbone'][name] for name in ('stem', 'stage2')])
  assert count(params) - frozen == 44_178_993
  assert count(variables) == 44_507_633
  assert set(params) == {'backbone', 'fpn', 'rpn_head', 'box_head', 'mask_head'}


@pytest.mark.parametrize('dtype', layers.PRECISIONS)
def test_parameters_and_outputs_are_float32(dtype):
  outputs, variables, detections = shapes_of(dtype)
  for array in jax.tree.leaves((variables, outputs, detections)):
    if jnp.issubdtype(array.dtype, jnp.floating):
      assert array.dtype == jnp.float32
  assert detections.classes.dtype == outputs.rois.classes.dtype == jnp.int32
  assert detections.valid.dtype == outputs.rois.valid.dtype == bool


def test_pyramid_has_the_type_of_the_precision():
  images, sizes, _ = make_inputs()
  _, variables, _ = shapes_of('bfloat16')
  for dtype, (_, activations) in layers.PRECISIONS.items():
    pyramid = jax.eval_shape(
      functools.partial(MaskRCNN(dtype=dtype).apply, method='pyramid'),
      variables,
      images,
      sizes,
    )
    assert {x.dtype for x in pyramid.values()} == {jnp.dtype(activations)}


def test_config_changes_the_fields_it_names():
  config = {
    'num_classes': 5,
    'box_weights': [1, 2, 3, 4],
    'sampling': {'num_rois': 64, 'matching': {'positive_iou': 0.6}},
    'backbone': {'depth': 18},
  }
  model = MaskRCNN.from_config(config)
  default = MaskRCNN()
  assert model.box_weights == (1, 2, 3, 4)
  assert model.backbone == dataclasses.replace(default.backbone, depth=18)
  matching = dataclasses.replace(default.sampling.matching, positive_iou=0.6)
  assert model.sampling == dataclasses.replace(
    default.sampling, num_rois=64, matching=matching
  )
  assert model.test_proposals == default.test_proposals
  assert MaskRCNN.from_config({}) == default
  hash(model)  # As a static argument of jit has to be.


@pytest.mark.parametrize(
  'config, argument, wanted',
  [
    ({'num_clases': 5}, 'model.num_clases', 'num_classes'),
    ({'sampling': {'rois': 5}}, 'model.sampling.rois', 'num_rois'),
    (
      {'sampling': {'matching': {'zzz': 1}}},
      'model.sampling.matching.zzz',
      'positive_iou',
    ),
    ({'backbone': {'deph': 18}}, 'model.backbone.deph', 'depth'),
    ({'name': 'x'}, 'model.name', 'num_classes'),
  ],
)
def test_unknown_config_fields_are_named(config, argument, wanted):
  with pytest.raises(UserError) as error:
    MaskRCNN.from_config(config)
  assert error.value.argument == argument
  assert wanted in error.value.wanted


def test_canvases_that_do_not_fit_are_refused():
  model = MaskRCNN()
  sizes = jnp.ones((1, 2))
  run = functools.partial(
    jax.eval_shape,
    functools.partial(model.init, method='detect'),
    jax.random.key(0),
  )
  with pytest.raises(UserError) as error:
    run(jnp.zeros((1, 96, 100, 3)), sizes)
  assert error.value.argument == 'input.canvases'
  assert error.value.given == (96, 100)
  with pytest.raises(ValueError, match=r'^images .*\(1, 96, 96\)'):
    run(jnp.zeros((1, 96, 96)), sizes)


@pytest.mark.slow
def test_detections_of_an_image_are_its_own():
  """Neither other images nor what lies outside an image change them."""
  model = tiny_model.make_model()
  batch = tiny_model.make_batch()
  images, sizes = batch['images'], batch['image_sizes']
  variables = jax.jit(functools.partial(model.init, method='detect'))(
    jax.random.key(0), images, sizes
  )
  run = jax.jit(functools.partial(model.apply, method='detect'))
  expected = run(variables, images, sizes)
  assert np.all(np.sum(expected.valid, axis=1) > 0)
  assert np.all(np.isfinite(expected.masks))
  outside = images.copy()
  for image, (height, width) in zip(outside, sizes.astype(int)):
    image[height:] = 200.0
    image[:, width:] = 200.0
  assert np.any(outside != images)
  outside[1] = 0.0
  actual = run(variables, outside, sizes)
  for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    np.testing.assert_allclose(x[0], y[0], rtol=1e-5, atol=1e-5)
  for box, size in zip(expected.boxes, sizes):
    assert np.all(box[:, 2:] <= size - 1)


def test_bgr_images():
  """The mean and the deviation belong to the colour, not to the place."""
  pixels = np.full((1, 1, 2, 3), (51.0, 102.0, 204.0), np.float32)
  actual = image_ops.normalize(
    pixels, np.float32([[1, 1]]), (0.1, 0.2, 0.3), (1.0, 2.0, 4.0), bgr=True
  )
  np.testing.assert_allclose(actual[0, 0, 0], [0.125, 0.1, 0.1], rtol=1e-6)
  assert not np.any(actual[0, 0, 1])


@pytest.mark.slow
def test_a_step_of_the_second_torchvision_version():
  """All of it at once: finite, and every layer outside of the backbone moves.

  The blocks of the backbone begin as the identity, without a gradient, and a
  scale of 1 may be too far from its small gradient to move.
  """
  model = tiny_model.make_model(norm='batch', **narrow_models.SECOND)
  batch = tiny_model.make_batch()
  state, optimizer = tiny_model.make_state(model, batch)
  step = functools.partial(train_step.train_step, model, optimizer)
  updated, metrics = jax.jit(step)(state, batch)
  assert metrics['finite']
  before, after = (load_report.flatten(x.variables()) for x in (state, updated))
  moved = {name for name in before if np.any(before[name] != after[name])}
  for leaf in ('kernel', 'mean', 'variance'):
    names = {name for name in before if name.endswith(f'/{leaf}')}
    names = {name for name in names if not name.startswith('backbone/')}
    assert names and names <= moved
