"""Losses and their gradients of the trusted implementations."""

import dataclasses

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
from golden_files import assert_near, swap_axes

from maskrcnn_jax.models import losses as losses_lib
from maskrcnn_jax.models import targets as targets_lib
from maskrcnn_jax.models.heads import BoxOutputs, RPNOutputs
from maskrcnn_jax.models.losses import LossOptions
from maskrcnn_jax.models.targets import RPNTargetOptions, RPNTargets
from maskrcnn_jax.ops import boxes as box_ops

TORCHVISION = LossOptions(
  rpn_normalizer='sampled',
  rpn_delta=1 / 9,
  box_normalizer='rois',
  box_delta=1 / 9,
  smooth_l1=True,
)
DETECTRON2 = LossOptions(
  rpn_normalizer='images',
  rpn_delta=0.0,
  box_normalizer='rois',
  box_delta=0.0,
  smooth_l1=True,
)


def values_and_gradients(losses, *arguments):
  """Losses by name, and the gradients of their sum."""

  def total(*arguments):
    terms = losses(*arguments)
    return sum(terms.values()), terms

  numbers = tuple(range(len(arguments)))
  run = jax.jit(jax.value_and_grad(total, numbers, has_aux=True))
  (_, terms), gradients = run(*arguments)
  return terms, gradients


@golden_files.each('08_loss_rpn*.npz')
def test_rpn_losses_of_nvidia(recorded):
  params = golden_files.params(recorded)
  batch = params['batch']

  def by_level(name, *shape):
    return {
      level: recorded[f'{name}_level{level}'].reshape(batch, -1, *shape)
      for level in golden_files.levels(recorded)
    }

  deltas = by_level('box_targets', 4)
  targets = RPNTargets(
    labels=by_level('score_targets'),
    matched={level: np.any(x != 0, axis=-1) for level, x in deltas.items()},
    box_deltas=deltas,
  )
  # One recording divides by more images than it has.
  samples = params['rpn_batch_size_per_im'] * params['train_batch_size']
  options = LossOptions(
    rpn_samples=samples // batch, rpn_delta=params['huber_delta']
  )

  def losses(logits, deltas):
    outputs = RPNOutputs(logits, deltas)
    valid = jnp.ones(batch, bool)
    return losses_lib.rpn_losses(outputs, targets, valid, options)

  terms, (logit_gradient, delta_gradient) = values_and_gradients(
    losses, by_level('score_outputs'), by_level('box_outputs', 4)
  )
  assert_near(terms['rpn_objectness'], recorded['rpn_score_loss'], 1e-5)
  assert_near(terms['rpn_box'], recorded['rpn_box_loss'], 1e-5)
  for level in golden_files.levels(recorded):
    assert_near(logit_gradient[level], by_level('grad_score')[level], 1e-5)
    assert_near(delta_gradient[level], by_level('grad_box', 4)[level], 1e-5)


@golden_files.each('08_loss_fastrcnn*.npz')
def test_box_losses_of_nvidia(recorded):
  logits = recorded['class_outputs']
  deltas = recorded['box_outputs'].reshape(*logits.shape, 4)
  # Class -1 does not count.
  valid = recorded['class_targets'] >= 0
  classes = np.where(valid, recorded['class_targets'], 0).astype(np.int32)

  def losses(logits, deltas):
    return losses_lib.box_losses(
      BoxOutputs(logits, deltas),
      classes,
      recorded['box_targets'],
      valid,
      LossOptions(),
    )

  terms, gradients = values_and_gradients(losses, logits, deltas)
  assert_near(terms['class'], recorded['class_loss'], 1e-5)
  assert_near(terms['box'], recorded['box_loss'], 1e-5)
  # There rows that do not count still have a gradient: that of a cross-entropy
  # without any class, which adds nothing to the recorded loss.
  expected = recorded['grad_class_outputs']
  assert_near(gradients[0][valid], expected[valid], 1e-5)
  assert not np.any(gradients[0][~valid])
  expected = recorded['grad_box_outputs'].reshape(deltas.shape)
  assert_near(gradients[1], expected, 1e-5)


@golden_files.each('08_loss_mask*.npz')
def test_mask_loss_of_nvidia(recorded):
  def losses(logits):
    loss = losses_lib.mask_loss(
      logits,
      recorded['mask_targets'].astype(np.float32),
      recorded['selected_class_targets'] > 0,
    )
    return {'mask': loss}

  terms, (gradient,) = values_and_gradients(losses, recorded['mask_outputs'])
  assert_near(terms['mask'], recorded['mask_loss'], 1e-5)
  assert_near(gradient, recorded['grad_mask_outputs'], 1e-5)


def joined(recorded, name):
  """The arrays NAME_0, NAME_1 ... of the images, concatenated."""
  images = golden_files.numbers(recorded, rf'{name}_(\d+)')
  return np.concatenate([recorded[f'{name}_{image}'] for image in images])


@golden_files.each('ops_losses*.npz', 'torchvision', 'rpn_.*')
def test_rpn_losses_of_torchvision(recorded):
  labels = []
  images = golden_files.numbers(recorded, r'labels_(\d+)')
  for image in images:
    num = len(recorded[f'labels_{image}'])
    # The recorded sampler takes the first.
    sampled = targets_lib.sample_labels(
      recorded[f'labels_{image}'].astype(np.int32),
      -jnp.arange(num, dtype=jnp.float32),
      RPNTargetOptions(num_samples=64),
    )
    for label, name in ((1, 'pos'), (0, 'neg')):
      np.testing.assert_array_equal(
        np.flatnonzero(sampled == label), recorded[f'sampled_{name}_{image}']
      )
    labels.append(sampled)
  labels = jnp.stack(labels)
  deltas = np.stack([recorded[f'targets_{image}'] for image in images])
  matched = np.stack([recorded[f'labels_{image}'] for image in images]) == 1
  targets = RPNTargets({2: labels}, {2: matched}, {2: swap_axes(deltas)})

  def losses(logits, deltas):
    outputs = RPNOutputs({2: logits}, {2: deltas})
    valid = jnp.ones(len(images), bool)
    return losses_lib.rpn_losses(outputs, targets, valid, TORCHVISION)

  terms, gradients = values_and_gradients(
    losses,
    recorded['objectness'].reshape(len(images), -1),
    swap_axes(recorded['deltas']).reshape(len(images), -1, 4),
  )
  assert_near(terms['rpn_objectness'], recorded['loss_objectness'], 1e-5)
  assert_near(terms['rpn_box'], recorded['loss_box'], 1e-5)
  expected = recorded['grad_objectness'].reshape(len(images), -1)
  assert_near(gradients[0], expected, 1e-5)
  expected = swap_axes(recorded['grad_deltas']).reshape(len(images), -1, 4)
  assert_near(gradients[1], expected, 1e-5)


@golden_files.each('ops_losses*.npz', 'torchvision', 'frcnn_.*')
def test_box_losses_of_torchvision(recorded):
  logits = recorded['class_logits'][None]
  shape = (*logits.shape, 4)
  classes = joined(recorded, 'labels')[None]
  targets = joined(recorded, 'targets')[None]

  def losses(logits, deltas):
    return losses_lib.box_losses(
      BoxOutputs(logits, deltas),
      classes,
      swap_axes(targets),
      np.ones(classes.shape, bool),
      TORCHVISION,
    )

  deltas = swap_axes(recorded['box_regression'].reshape(shape))
  terms, gradients = values_and_gradients(losses, logits, deltas)
  assert_near(terms['class'], recorded['loss_classifier'], 1e-5)
  assert_near(terms['box'], recorded['loss_box_reg'], 1e-5)
  assert_near(gradients[0], recorded['grad_class_logits'][None], 1e-5)
  expected = swap_axes(recorded['grad_box_regression'].reshape(shape))
  assert_near(gradients[1], expected, 1e-5)


@golden_files.each('ops_losses*.npz', 'torchvision', 'mask_.*')
def test_mask_loss_of_torchvision(recorded):
  masks = joined(recorded, 'projected_targets')
  classes = np.concatenate(
    [
      recorded[f'gt_labels_{image}'][recorded[f'matched_{image}']]
      for image in golden_files.numbers(recorded, r'matched_(\d+)')
    ]
  )
  rows = np.arange(len(classes))

  def losses(logits, foreground):
    own = logits[rows, classes]
    loss = losses_lib.mask_loss(own[None], masks[None], foreground[None])
    return {'mask': loss}

  foreground = np.ones(len(classes), bool)
  terms, (gradient,) = values_and_gradients(
    lambda logits: losses(logits, foreground), recorded['mask_logits']
  )
  assert_near(terms['mask'], recorded['loss_mask'], 1e-5)
  assert_near(gradient, recorded['grad_mask_logits'], 1e-5)
  nothing = losses(recorded['mask_logits'], ~foreground)['mask']
  assert nothing == recorded['loss_mask_no_rois']


@golden_files.each('ops_rpn_loss*.npz', 'detectron2')
def test_rpn_losses_of_detectron2(recorded):
  """L1 and cross-entropy, divided by the images times the samples of each."""
  labels = recorded['labels'].astype(np.int32)
  matched = swap_axes(recorded['matched_gt_boxes'])
  deltas = box_ops.encode(matched, swap_axes(recorded['anchors']))
  targets = RPNTargets({2: labels}, {2: labels == 1}, {2: deltas})
  options = dataclasses.replace(
    DETECTRON2, rpn_samples=int(recorded['batch_size_per_image'])
  )

  def losses(logits, deltas):
    outputs = RPNOutputs({2: logits}, {2: deltas})
    valid = jnp.ones(len(labels), bool)
    return losses_lib.rpn_losses(outputs, targets, valid, options)

  terms, gradients = values_and_gradients(
    losses, recorded['logits'], swap_axes(recorded['deltas'])
  )
  assert_near(terms['rpn_objectness'], recorded['loss_rpn_cls'], 1e-5)
  assert_near(terms['rpn_box'], recorded['loss_rpn_loc'], 1e-5)
  assert_near(gradients[0], recorded['grad_logits'], 1e-5)
  assert_near(gradients[1], swap_axes(recorded['grad_deltas']), 1e-5)


@golden_files.each('ops_box_loss*.npz', 'detectron2')
def test_box_losses_of_detectron2(recorded):
  # The background is the last class there, which has no deltas.
  logits = np.roll(recorded['scores'], 1, axis=-1)[None]
  num = int(recorded['num_classes'])
  classes = (recorded['gt_classes'] + 1) % (num + 1)
  proposals = swap_axes(recorded['proposals'])
  targets = box_ops.encode(
    swap_axes(recorded['gt_boxes']), proposals, (10.0, 10.0, 5.0, 5.0)
  )

  def by_class(name):
    array = swap_axes(recorded[name].reshape(-1, num, 4))
    return np.pad(array, ((0, 0), (1, 0), (0, 0)))[None]

  def losses(logits, deltas):
    valid = jnp.ones((1, len(proposals)), bool)
    return losses_lib.box_losses(
      BoxOutputs(logits, deltas),
      classes[None],
      targets[None],
      valid,
      DETECTRON2,
    )

  terms, gradients = values_and_gradients(losses, logits, by_class('deltas'))
  assert_near(terms['class'], recorded['loss_cls'], 1e-5)
  assert_near(terms['box'], recorded['loss_box_reg'], 1e-5)
  expected = np.roll(recorded['grad_scores'], 1, axis=-1)[None]
  assert_near(gradients[0], expected, 1e-5)
  assert_near(gradients[1], by_class('grad_deltas'), 1e-5)


@golden_files.each('ops_mask_loss*.npz', 'detectron2')
def test_mask_loss_of_detectron2(recorded):
  rows, classes = np.arange(len(recorded['gt_classes'])), recorded['gt_classes']
  own = recorded['logits_f16'].astype(np.float32)[rows, classes][None]
  bits = np.unpackbits(recorded['target_bits'], axis=1)
  masks = bits[:, : own[0, 0].size].reshape(own.shape).astype(np.float32)
  foreground = np.ones((1, len(rows)), bool)

  def losses(logits):
    return {'mask': losses_lib.mask_loss(logits, masks, foreground)}

  terms, (gradient,) = values_and_gradients(losses, own)
  assert_near(terms['mask'], recorded['loss'], 1e-5)
  assert_near(gradient[0], recorded['grad_at_classes'], 1e-5)
