"""The five loss terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models import losses as losses_lib
from maskrcnn_jax.models.heads import BoxOutputs, RPNOutputs
from maskrcnn_jax.models.losses import LossOptions
from maskrcnn_jax.models.targets import RPNTargets

HABANA = LossOptions(rpn_samples=8)
TORCHVISION = LossOptions(
  rpn_normalizer='sampled',
  box_normalizer='rois',
  box_delta=1 / 9,
  smooth_l1=True,
)
FAMILIES = pytest.mark.parametrize('options', [HABANA, TORCHVISION])


def assert_same_losses(actual, expected, rtol=1e-5):
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(actual[name], value, rtol=rtol)


def huber(errors, delta, smooth_l1):
  """By pieces, in float64."""
  errors = np.abs(np.float64(errors))
  small = 0.5 * errors**2
  large = delta * errors - 0.5 * delta**2
  losses = np.where(errors <= delta, small, large)
  return losses / delta if smooth_l1 else losses


def sigmoid_entropy(logits, targets):
  probabilities = 1 / (1 + np.exp(-np.float64(logits)))
  return -np.where(
    targets > 0.5, np.log(probabilities), np.log(1 - probabilities)
  )


def rpn_case(seed=0, batch=2):
  """Outputs and targets of two levels; the second has no match."""
  rng = np.random.default_rng(seed)
  logits, deltas, labels, matched, wanted = {}, {}, {}, {}, {}
  for level, num in {2: 20, 3: 6}.items():
    logits[level] = rng.normal(size=(batch, num)).astype(np.float32)
    deltas[level] = rng.normal(size=(batch, num, 4)).astype(np.float32)
    labels[level] = rng.integers(-1, 2 if level == 2 else 1, (batch, num))
    # More anchors match than are sampled.
    matched[level] = labels[level] == 1
    if level == 2:
      matched[level] |= rng.uniform(size=(batch, num)) < 0.3
    wanted[level] = rng.normal(size=(batch, num, 4)) / 5
    wanted[level][:, ::3, 1] = 0.0  # Does not count in Habana's.
    wanted[level] = np.where(
      matched[level][..., None], wanted[level], 0.0
    ).astype(np.float32)
  return RPNOutputs(logits, deltas), RPNTargets(labels, matched, wanted)


def test_rpn_losses_of_habana_match_their_definition():
  outputs, targets = rpn_case()
  losses = losses_lib.rpn_losses(outputs, targets, jnp.ones(2, bool), HABANA)
  objectness, box = 0.0, 0.0
  for level, labels in targets.labels.items():
    entropy = sigmoid_entropy(outputs.objectness_logits[level], labels)
    objectness += np.sum(entropy[labels >= 0]) / 16
    errors = outputs.box_deltas[level] - targets.box_deltas[level]
    counted = targets.box_deltas[level] != 0
    if np.any(counted):
      box += np.mean(huber(errors, 1 / 9, False)[counted])
  assert_same_losses(losses, {'rpn_objectness': objectness, 'rpn_box': box})


def test_rpn_losses_of_torchvision_match_their_definition():
  outputs, targets = rpn_case()
  losses = losses_lib.rpn_losses(
    outputs, targets, jnp.ones(2, bool), TORCHVISION
  )
  objectness, box, count = 0.0, 0.0, 0
  for level, labels in targets.labels.items():
    entropy = sigmoid_entropy(outputs.objectness_logits[level], labels)
    objectness += np.sum(entropy[labels >= 0])
    errors = outputs.box_deltas[level] - targets.box_deltas[level]
    box += np.sum(huber(errors, 1 / 9, True)[labels == 1])
    count += np.sum(labels >= 0)
  expected = {'rpn_objectness': objectness / count, 'rpn_box': box / count}
  assert_same_losses(losses, expected)


def unlabelled(targets, images):
  """Targets as of images that are not valid."""

  def blank(value, by_level):
    return {
      level: np.where(images.reshape(-1, *[1] * (x.ndim - 1)), value, x)
      for level, x in by_level.items()
    }

  return RPNTargets(
    blank(-1, targets.labels),
    blank(False, targets.matched),
    blank(0.0, targets.box_deltas),
  )


@FAMILIES
def test_images_that_are_not_valid_change_no_rpn_loss(options):
  outputs, targets = rpn_case()
  expected = losses_lib.rpn_losses(outputs, targets, jnp.ones(2, bool), options)
  invalid = np.arange(3) == 2
  twice = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), (outputs, targets))
  targets = unlabelled(twice[1], invalid)
  actual = losses_lib.rpn_losses(twice[0], targets, ~invalid, options)
  assert_same_losses(actual, expected, 1e-6)


def box_case(seed=0, batch=2, num=12, num_classes=5):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(batch, num, num_classes)).astype(np.float32)
  deltas = rng.normal(size=(*logits.shape, 4)).astype(np.float32)
  classes = rng.integers(0, num_classes, (batch, num)).astype(np.int32)
  classes[:, num // 2 :] = 0
  valid = np.broadcast_to(np.arange(num) < num - 3, (batch, num))
  targets = rng.normal(size=(batch, num, 4)).astype(np.float32)
  return BoxOutputs(logits, deltas), classes, targets, valid


@FAMILIES
def test_box_losses_match_their_definition(options):
  outputs, classes, targets, valid = box_case()
  losses = losses_lib.box_losses(outputs, classes, targets, valid, options)
  entropy, box, num_foreground = 0.0, 0.0, 0
  for image, row in np.argwhere(valid):
    logits = np.float64(outputs.class_logits[image, row])
    label = classes[image, row]
    entropy += np.log(np.sum(np.exp(logits))) - logits[label]
    if label > 0:
      errors = outputs.box_deltas[image, row, label] - targets[image, row]
      box += np.sum(huber(errors, options.box_delta, options.smooth_l1))
      num_foreground += 1
  count = np.sum(valid) if options is TORCHVISION else 4 * num_foreground
  expected = {'class': entropy / np.sum(valid), 'box': box / count}
  assert_same_losses(losses, expected)


@FAMILIES
def test_padding_changes_no_box_loss(options):
  outputs, classes, targets, valid = box_case()
  expected = losses_lib.box_losses(outputs, classes, targets, valid, options)
  # Padding whose outputs are wild, and which even has a class.
  wild = jax.tree.map(
    lambda x: np.concatenate([x, np.full_like(x, 1e4)], axis=1),
    (outputs, targets),
  )
  actual = losses_lib.box_losses(
    wild[0],
    np.concatenate([classes, classes], axis=1),
    wild[1],
    np.concatenate([valid, np.zeros_like(valid)], axis=1),
    options,
  )
  assert_same_losses(actual, expected, 1e-6)


def test_mask_loss_matches_its_definition():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
  masks = rng.integers(0, 2, logits.shape).astype(np.float32)
  foreground = np.array([[True, True, False], [False, True, False]])
  loss = losses_lib.mask_loss(logits, masks, foreground)
  expected = np.mean(sigmoid_entropy(logits, masks)[foreground])
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  # Soft targets: half the loss of a cell that is set, half of one that is not.
  soft = losses_lib.mask_loss(logits, np.full_like(masks, 0.5), foreground)
  halves = [
    losses_lib.mask_loss(logits, np.full_like(masks, x), foreground)
    for x in (0.0, 1.0)
  ]
  np.testing.assert_allclose(soft, np.mean(halves), rtol=1e-5)
  wild = np.concatenate([logits, np.full_like(logits, 1e4)], axis=1)
  padded = losses_lib.mask_loss(
    wild,
    np.concatenate([masks, 0 * masks], axis=1),
    np.concatenate([foreground, 0 * foreground], axis=1) > 0,
  )
  np.testing.assert_allclose(padded, loss, rtol=1e-6)


@FAMILIES
def test_losses_of_padding_alone_are_0_with_zero_gradients(options):
  rpn, rpn_targets = rpn_case()
  rpn_targets = unlabelled(rpn_targets, np.ones(2, bool))
  box, classes, targets, _ = box_case()
  nothing = np.zeros(classes.shape, bool)
  masks = np.ones((*classes.shape, 4, 4), np.float32)

  def total(rpn, box, mask_logits):
    terms = losses_lib.rpn_losses(rpn, rpn_targets, nothing[:, 0], options)
    terms |= losses_lib.box_losses(box, classes, targets, nothing, options)
    terms['mask'] = losses_lib.mask_loss(mask_logits, masks, nothing)
    return sum(terms.values()), terms

  # Large outputs, which would overflow without care.
  arguments = jax.tree.map(lambda x: 1e4 * x, (rpn, box, masks))
  gradients, terms = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(
    *arguments
  )
  assert set(terms) == {'rpn_objectness', 'rpn_box', 'class', 'box', 'mask'}
  for value in terms.values():
    assert value.dtype == jnp.float32
    assert value == 0.0
  for gradient in jax.tree.leaves(gradients):
    np.testing.assert_array_equal(gradient, 0.0)


@FAMILIES
def test_without_foreground_box_and_mask_loss_are_0(options):
  outputs, classes, targets, valid = box_case()
  losses = losses_lib.box_losses(outputs, 0 * classes, targets, valid, options)
  assert losses['box'] == 0.0
  assert losses['class'] > 0.0


@FAMILIES
def test_right_answers_cost_nothing(options):
  rpn, rpn_targets = rpn_case()
  rpn = RPNOutputs(
    jax.tree.map(
      lambda x: np.float32(200 * (x == 1) - 100), rpn_targets.labels
    ),
    rpn_targets.box_deltas,
  )
  losses = losses_lib.rpn_losses(rpn, rpn_targets, jnp.ones(2, bool), options)
  outputs, classes, targets, valid = box_case()
  outputs = BoxOutputs(
    100 * jax.nn.one_hot(classes, 5),
    np.broadcast_to(targets[:, :, None], outputs.box_deltas.shape),
  )
  losses |= losses_lib.box_losses(outputs, classes, targets, valid, options)
  masks = np.float32(np.arange(32).reshape(1, 2, 4, 4) % 2)
  losses['mask'] = losses_lib.mask_loss(
    200 * masks - 100, masks, np.ones((1, 2), bool)
  )
  for value in losses.values():
    np.testing.assert_allclose(value, 0.0, atol=1e-6)


@pytest.mark.parametrize('name', ['rpn_normalizer', 'box_normalizer'])
def test_errors_name_the_option(name):
  with pytest.raises(UserError) as error:
    LossOptions(**{name: 'batch'})
  assert error.value.argument == f'model.losses.{name}'
  assert error.value.given == 'batch'
