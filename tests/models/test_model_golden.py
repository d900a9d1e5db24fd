"""The whole model, against recordings of both published systems.

The same formula weights and images went through Habana's system (`hb`) and
NVIDIA's (`nv`); here they go through the shipped configs. The sampled anchors
and RoIs are injected.
"""

import dataclasses
import json

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recorded_model
import recorded_run
from golden_files import assert_near
from recorded_run import FORWARD, GRADIENT, MANIFESTS

from maskrcnn_jax.models import proposals as proposals_lib
from maskrcnn_jax.models import targets as targets_lib
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.ops import images as image_ops
from maskrcnn_jax.optimization import optimizer as optimizer_lib
from maskrcnn_jax.optimization import parameters
from maskrcnn_jax.structures import Instances

each_manifest = pytest.mark.parametrize(
  'path', MANIFESTS, ids=lambda path: path.stem
)


@pytest.fixture(
  name='case',
  scope='module',
  params=recorded_run.CASES,
  ids=lambda case: f'{case[0].stem.removesuffix("_manifest")}-{case[1]}',
)
def fixture_case(request):
  return recorded_run.load_case(*request.param)


def inspect(model, images, image_sizes, rois):
  """Intermediate results of detection; applied as a method of the model."""
  images = image_ops.normalize(
    images, image_sizes, model.pixel_mean, model.pixel_std
  )
  features = model.body(images)
  pyramid = model.fpn(features)
  rpn = model.rpn_head(pyramid)
  proposals = {
    kind: proposals_lib.propose(
      rpn, model.anchor_boxes(images.shape[1:3]), image_sizes, options
    )
    for kind, options in (
      ('rpn', model.test_proposals),
      ('train', model.train_proposals),
    )
  }
  return {
    'images': images,
    'features': features,
    'pyramid': pyramid,
    'rpn': rpn,
    'proposals': proposals,
    'box': model.box_head(model.align(pyramid, rois, model.box_size)),
  }


@pytest.fixture(name='detected', scope='module')
def fixture_detected(case):
  """Detections, and the results of `inspect` for the recorded proposals."""

  @jax.jit
  def run(variables, images, image_sizes, rois):
    inspected = case.model.apply(
      variables, images, image_sizes, rois, method=inspect
    )
    inspected['detections'] = case.model.apply(
      variables, images, image_sizes, method='detect'
    )
    return inspected

  return run(
    case.variables,
    case.pixels,
    case.image_sizes,
    case.files['rpn']['proposal_rois'],
  )


@pytest.fixture(name='trained', scope='module')
def fixture_trained(case):
  """Losses, their gradients and those of the weight decay."""
  inputs = recorded_run.make_train_inputs(case)
  trainable = recorded_run.trainable_parameters(case)

  @jax.jit
  def run(params, batch_stats, inputs):
    def loss(params):
      losses, outputs = recorded_run.training_losses(
        case.model, {'params': params, 'batch_stats': batch_stats}, inputs
      )
      return sum(losses.values()), (losses, outputs)

    gradients, (losses, outputs) = jax.grad(loss, has_aux=True)(params)
    decay, decay_gradients = jax.value_and_grad(
      lambda params: optimizer_lib.weight_decay_loss(
        params, trainable, case.optimizer.weight_decay
      )
    )(params)
    return {
      'losses': {**losses, 'l2_loss': decay},
      'outputs': outputs,
      'no_l2': gradients,
      'total': jax.tree.map(jnp.add, gradients, decay_gradients),
    }

  return run(**case.variables, inputs=inputs)


def assert_same_proposals(boxes, scores, expected_boxes, expected_scores):
  """Every expected row is found, whatever the order, but for two of them."""
  assert len(boxes) == len(expected_boxes)
  largest = np.abs(expected_boxes).max()
  distances = np.abs(expected_boxes[:, None] - boxes).max(axis=-1) / largest
  distances += np.abs(expected_scores[:, None] - scores)
  partners = np.argmin(distances, axis=1)
  found = np.min(distances, axis=1) <= 2 * FORWARD
  assert np.sum(~found) <= 2
  assert len(set(partners[found])) == np.sum(found)
  assert_near(boxes[partners[found]], expected_boxes[found], FORWARD)
  assert_near(scores[partners[found]], expected_scores[found], FORWARD)


@each_manifest
def test_weights_are_the_recorded_ones(path):
  recorded = golden_files.load(path)
  entries = recorded_model.manifest(recorded)
  assert [entry['name'] for entry in entries] == list(recorded['names'])
  for entry, total, first in zip(
    entries, recorded['sum_f64'], recorded['first4']
  ):
    array = recorded_model.make_array(entry, recorded_model.salt(recorded))
    size = np.sum(np.abs(array), dtype=np.float64)
    assert abs(np.sum(array, dtype=np.float64) - total) <= 1e-9 * size
    start = array.ravel()[:4]
    np.testing.assert_allclose(start, first[: start.size], rtol=1e-6)


@each_manifest
def test_every_variable_has_its_recorded_shape(path):
  model, _ = recorded_run.make_model('hb')
  expected = recorded_run.formula_variables(path)
  instances = Instances(
    boxes=jnp.zeros((1, 1, 4)),
    classes=jnp.ones((1, 1), jnp.int32),
    masks=jnp.zeros((1, 1, 112, 112)),
    valid=jnp.ones((1, 1), bool),
  )
  actual = jax.eval_shape(
    lambda key: model.init(
      {'params': key, 'sampling': key},
      jnp.zeros((1, 64, 64, 3)),
      jnp.full((1, 2), 64.0),
      instances,
    ),
    jax.random.key(0),
  )
  shapes = jax.tree.map(lambda x: x.shape, actual)
  assert shapes == jax.tree.map(lambda x: x.shape, expected)


@each_manifest
def test_the_same_variables_are_trained(path):
  entries = recorded_model.manifest(golden_files.load(path))
  trainable = parameters.trainable_parameters(
    recorded_run.formula_variables(path)['params'],
    MaskRCNN().backbone.frozen_stages,
  )
  for entry in entries:
    ours = recorded_model.collection(entry) == 'params'
    ours = ours and bool(recorded_model.look_up(trainable, entry['name']))
    assert ours == entry['trainable'], entry['name']


@each_manifest
def test_images_follow_from_their_formula(path):
  inputs = golden_files.load(recorded_run.sibling(path, 'inputs'))
  params = json.loads(str(inputs['meta']))['params']
  images = recorded_model.images(
    params['image_seed'], params['size'], params['valid']
  )
  if 'images' in inputs:
    np.testing.assert_allclose(images, inputs['images'], atol=1e-6)
  else:
    np.testing.assert_allclose(
      images[:, ::16, ::16], inputs['images_slice'], atol=1e-6
    )


@pytest.mark.slow
def test_normalized_images(case, detected):
  assert_near(detected['images'], case.inputs['images'], 1e-6)
  for image, (height, width) in zip(
    np.asarray(detected['images']), case.image_sizes.astype(int)
  ):
    assert not image[height:].any()
    assert not image[:, width:].any()


@pytest.mark.slow
@pytest.mark.parametrize('part, prefix', [('features', 'C'), ('pyramid', 'P')])
def test_feature_maps(case, detected, part, prefix):
  levels = [2, 3, 4, 5] if prefix == 'C' else [2, 3, 4, 5, 6]
  assert sorted(detected[part]) == levels
  recorded_run.assert_maps(detected[part], case.files['eval'], prefix)


@pytest.mark.slow
def test_rpn_outputs(case, detected):
  recorded = case.files['rpn']
  rows = recorded.get('rpn_rows', slice(None))
  for name, values in (
    ('rpn_scores', detected['rpn'].objectness_logits),
    ('rpn_boxes', detected['rpn'].box_deltas),
  ):
    actual = np.concatenate([values[level] for level in sorted(values)], axis=1)
    assert_near(actual[:, rows], recorded[name], FORWARD, name)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['rpn', 'train'])
def test_proposals(case, detected, kind):
  """As sets: scores that differ in their last bits may change places."""
  recorded, proposals = case.files[kind], detected['proposals'][kind]
  for image, scores in enumerate(recorded['proposal_scores']):
    rows = scores > 0.0
    valid = np.asarray(proposals.valid[image])
    assert_same_proposals(
      np.asarray(proposals.boxes[image])[valid],
      np.asarray(proposals.scores[image])[valid],
      recorded['proposal_rois'][image][rows],
      scores[rows],
    )


def array_of(recorded, prefix):
  """The only array whose name starts with a prefix."""
  (name,) = [name for name in recorded if name.startswith(prefix)]
  return recorded[name]


def assert_box_outputs(class_logits, box_deltas, recorded):
  """Compares the rows that are recorded, the first ones."""
  expected = recorded['class_outputs']
  assert_near(class_logits[:, : expected.shape[1]], expected, FORWARD)
  expected = array_of(recorded, 'box_outputs_head')
  batch, rows = expected.shape[:2]
  assert_near(box_deltas[:, :rows].reshape(batch, rows, -1), expected, FORWARD)


@pytest.mark.slow
def test_box_head_on_recorded_proposals(case, detected):
  box = detected['box']
  assert_box_outputs(box.class_logits, box.box_deltas, case.files['eval'])


@pytest.mark.slow
def test_detections(case, detected):
  """Matched by class, box and score: the order may differ as above."""
  recorded, detections = case.files['eval'], detected['detections']
  expected_masks = array_of(recorded, 'detection_masks_head')
  for image, count in enumerate(recorded['num_detections']):
    ours = detections.image(image)
    assert len(ours.scores) == count
    boxes = recorded['detection_boxes'][image, :count]
    classes = recorded['detection_classes'][image, :count]
    distances = np.abs(boxes[:, None] - ours.boxes).max(axis=-1)
    distances[classes[:, None] != ours.classes] = np.inf
    partners = np.argmin(distances, axis=1)
    assert len(set(partners)) == count
    assert_near(ours.boxes[partners], boxes, FORWARD)
    scores = recorded['detection_scores'][image, :count]
    assert_near(ours.scores[partners], scores, FORWARD)
    masks = ours.masks[partners]
    means = recorded['detection_masks_mean'][image, :count]
    assert_near(masks.mean(axis=(1, 2)), means, FORWARD)
    expected = expected_masks[image][:count]
    assert_near(masks[: len(expected)], expected, FORWARD)


@pytest.mark.slow
def test_targets_of_recorded_rois(case):
  recorded, model = case.files['train'], case.model
  instances = recorded_run.make_instances(case.inputs)
  rois, order = recorded_run.make_rois(recorded)
  foreground = rois.classes > 0
  deltas = targets_lib.roi_box_targets(
    rois, instances, model.box_weights, model.plus_one
  )
  expected = np.stack(
    [x[i] for x, i in zip(recorded['encoded_box_targets'], order)]
  )
  assert_near(deltas[foreground], expected[foreground], 1e-5)
  first = rois.first(model.sampling.num_foreground)
  np.testing.assert_array_equal(first.boxes, recorded['fg_rois'])
  masks = targets_lib.mask_targets(
    first, instances, 2 * model.mask_size, model.mask_threshold
  )
  foreground = first.classes > 0
  differing = masks[foreground] != recorded['mask_targets'][foreground]
  assert not np.any(differing)


@pytest.mark.slow
def test_training_outputs(case, trained):
  recorded, outputs = case.files['train'], trained['outputs']
  _, order = recorded_run.make_rois(recorded)
  back = np.argsort(order, axis=1)[..., None]
  logits = np.take_along_axis(np.asarray(outputs.box.class_logits), back, 1)
  deltas = np.asarray(outputs.box.box_deltas)
  deltas = np.take_along_axis(deltas, back[..., None], 1)
  assert_box_outputs(logits, deltas, recorded)
  expected = array_of(recorded, 'mask_outputs_head')
  rows = np.asarray(outputs.rois.classes)[:, : expected.shape[1]] > 0
  actual = np.asarray(outputs.mask_logits)[:, : expected.shape[1]]
  assert_near(actual[rows], expected[rows], FORWARD)


@pytest.mark.slow
def test_losses(case, trained):
  recorded_run.assert_losses(trained['losses'], case.files['train'])


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['total', 'no_l2'])
def test_gradient_norms(case, trained, kind):
  recorded = case.files['train']
  names = [str(name) for name in recorded['grad_names']]
  gradients = [recorded_model.look_up(trained[kind], name) for name in names]
  norms = np.array([np.linalg.norm(np.float64(x)) for x in gradients])
  expected = recorded[f'grad_norm_{kind}']
  np.testing.assert_allclose(norms, expected, rtol=GRADIENT)
  for block, norm in zip(
    recorded['block_names'], recorded[f'block_grad_norm_{kind}']
  ):
    inside = [name.startswith(f'{block}/') for name in names]
    assert_near(np.linalg.norm(norms[inside]), norm, GRADIENT, block)
  norm = recorded[f'global_grad_norm_{kind}']
  assert_near(np.linalg.norm(norms), norm, GRADIENT)


@pytest.mark.slow
def test_gradients(case, trained):
  """The first 16 entries of each, and sums as a share of what they could be."""
  recorded = case.files['train']
  for name, first, total in zip(
    map(str, recorded['grad_names']),
    recorded['grad_first16_total'],
    recorded['grad_sum_total_f64'],
  ):
    gradient = np.asarray(recorded_model.look_up(trained['total'], name))
    gradient = recorded_model.change_layout(name, gradient).ravel()
    first = first[: gradient.size]
    error = np.max(np.abs(gradient[: first.size] - first))
    assert error <= GRADIENT * np.max(np.abs(gradient)), name
    error = abs(np.sum(gradient, dtype=np.float64) - total)
    assert error <= GRADIENT * np.sum(np.abs(gradient)), name


@pytest.mark.slow
def test_frozen_parameters_have_no_gradient(trained):
  backbone = trained['total']['backbone']
  for stage in ('stem', 'stage2'):
    assert all(not np.any(x) for x in jax.tree.leaves(backbone[stage]))


def test_factor_of_bias_gradients(case):
  """The first update from gradients of 1, at a learning rate of 1."""
  recorded = case.files['train']
  options = dataclasses.replace(
    case.optimizer, learning_rate=1.0, warmup_steps=0
  )
  ones = jax.tree.map(lambda _: jnp.ones(1), case.variables['params'])
  transformation = optimizer_lib.transformation(
    options, ones, recorded_run.trainable_parameters(case)
  )
  updates, _ = transformation.update(
    ones, transformation.init(ones), ones, step=0
  )
  for name, factor in zip(
    recorded['grad_names'], recorded['bias_grad_multiplier']
  ):
    assert recorded_model.look_up(updates, str(name)) == -factor, name
