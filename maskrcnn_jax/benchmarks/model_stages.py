"""Mask R-CNN as a chain of stages, for training and for detection.

The model's own functions, called one by one; a test holds the gradients of the
chain to those of the training step, and its detections to the model's.
"""

import functools
from typing import Any

import jax

from maskrcnn_jax.benchmarks.chain import Stage
from maskrcnn_jax.models import detections as detections_lib
from maskrcnn_jax.models import layers
from maskrcnn_jax.models import losses as losses_lib
from maskrcnn_jax.models import proposals as proposals_lib
from maskrcnn_jax.models import targets as targets_lib
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.ops import images as image_ops


def training_stages(model: MaskRCNN, batch_stats: Any) -> list[Stage]:
  """What happens in a step before the update.

  Args:
    model: to train.
    batch_stats: of it.

  Returns:
    Stages that take `images`, `image_sizes`, `valid`, `instances`, and the keys
    `rpn_key` and `sampling_key`; the last one makes `losses`.
  """
  here = functools.partial
  propose = here(_propose, model, model.train_proposals)
  align = here(_align, model)
  return [
    *_feature_stages(model, batch_stats, train=True),
    Stage(
      'proposals',
      propose,
      'proposals',
      fixed=('rpn', 'images', 'image_sizes', 'valid'),
    ),
    Stage(
      'RPN targets',
      here(_rpn_targets, model),
      'rpn_targets',
      fixed=('images', 'instances', 'valid', 'rpn_key'),
    ),
    Stage(
      'RoI sampling',
      here(_sample, model),
      'rois',
      fixed=('proposals', 'instances', 'sampling_key'),
    ),
    Stage(
      'RoI targets',
      here(_roi_targets, model),
      'roi_targets',
      fixed=('rois', 'instances'),
    ),
    Stage(
      'RoIAlign of boxes',
      lambda params, pyramid, rois: align(pyramid, rois, model.box_size),
      'box_features',
      inputs=('pyramid',),
      fixed=('rois',),
    ),
    Stage(
      'box head',
      here(_box_head, model),
      'box',
      params=('box_head',),
      inputs=('box_features',),
    ),
    Stage(
      'RoIAlign of masks',
      lambda params, pyramid, rois: align(
        pyramid, _foreground(model, rois), model.mask_size
      ),
      'mask_features',
      inputs=('pyramid',),
      fixed=('rois',),
    ),
    Stage(
      'mask head',
      lambda params, mask_features, rois: _mask_head(
        model, params, mask_features, _foreground(model, rois)
      ),
      'mask_logits',
      params=('mask_head',),
      inputs=('mask_features',),
      fixed=('rois',),
    ),
    Stage(
      'losses',
      here(_losses, model),
      'losses',
      inputs=('rpn', 'box', 'mask_logits'),
      fixed=('rois', 'rpn_targets', 'roi_targets', 'valid'),
    ),
  ]


def detection_stages(model: MaskRCNN, batch_stats: Any) -> list[Stage]:
  """What happens in detection.

  Args:
    model: to detect with.
    batch_stats: of it.

  Returns:
    Stages that take `images`, `image_sizes` and `valid`; the last one makes
    `masks`, the one that selects makes `detections`.
  """
  here = functools.partial
  align = here(_align, model)
  return [
    *_feature_stages(model, batch_stats, train=False),
    Stage(
      'proposals',
      here(_propose, model, model.test_proposals),
      'proposals',
      fixed=('rpn', 'images', 'image_sizes', 'valid'),
    ),
    Stage(
      'RoIAlign of boxes',
      lambda params, pyramid, proposals: align(
        pyramid, proposals, model.box_size
      ),
      'box_features',
      inputs=('pyramid',),
      fixed=('proposals',),
    ),
    Stage(
      'box head',
      here(_box_head, model),
      'box',
      params=('box_head',),
      inputs=('box_features',),
    ),
    Stage(
      'detections',
      lambda params, box, proposals, image_sizes: (
        detections_lib.select_detections(
          box,
          proposals,
          image_sizes,
          model.detections,
          model.box_weights,
          model.plus_one,
        )
      ),
      'detections',
      fixed=('box', 'proposals', 'image_sizes'),
    ),
    Stage(
      'RoIAlign of masks',
      lambda params, pyramid, detections: align(
        pyramid, detections, model.mask_size
      ),
      'mask_features',
      inputs=('pyramid',),
      fixed=('detections',),
    ),
    Stage(
      'mask head',
      lambda params, mask_features, detections: jax.nn.sigmoid(
        _mask_head(model, params, mask_features, detections)
      ),
      'masks',
      params=('mask_head',),
      inputs=('mask_features',),
      fixed=('detections',),
    ),
  ]


def _feature_stages(model, batch_stats, train) -> list[Stage]:
  """From images to the outputs of the region proposal network."""
  return [
    Stage(
      'backbone',
      functools.partial(_backbone, model, batch_stats, train),
      'features',
      params=('backbone',),
      fixed=('images', 'image_sizes', 'valid'),
    ),
    Stage(
      'FPN',
      lambda params, features: model.apply(
        {'params': params}, features, method=lambda model, x: model.fpn(x)
      ),
      'pyramid',
      params=('fpn',),
      inputs=('features',),
    ),
    Stage(
      'RPN',
      lambda params, pyramid: model.apply(
        {'params': params}, pyramid, method=lambda model, x: model.rpn_head(x)
      ),
      'rpn',
      params=('rpn_head',),
      inputs=('pyramid',),
    ),
  ]


def _backbone(model, batch_stats, train, params, images, image_sizes, valid):
  x = image_ops.normalize(
    images, image_sizes, model.pixel_mean, model.pixel_std
  )
  x = x.astype(layers.output_dtype(model.dtype))
  features, _ = model.apply(
    {'params': params, 'batch_stats': batch_stats},
    x,
    valid,
    method=lambda model, x, valid: model.resnet(x, valid, train),
    mutable=['batch_stats'],
  )
  return features


def _propose(model, options, params, rpn, images, image_sizes, valid):
  del params
  anchors = model.anchor_boxes(images.shape[1:3])
  proposals = proposals_lib.propose(
    rpn, anchors, image_sizes, options, model.plus_one
  )
  return proposals.replace(valid=proposals.valid & valid[:, None])


def _rpn_targets(model, params, images, instances, valid, rpn_key):
  del params
  anchors = model.anchor_boxes(images.shape[1:3])
  return targets_lib.rpn_targets(
    anchors, instances, valid, rpn_key, model.rpn_targets
  )


def _sample(model, params, proposals, instances, sampling_key):
  del params

  def sample(model):
    candidates = proposals.valid.shape[1] + instances.valid.shape[1]
    priorities = jax.random.uniform(
      model.make_rng('sampling'), (proposals.valid.shape[0], candidates)
    )
    return targets_lib.sample_rois(
      proposals, instances, priorities, model.sampling
    )

  return model.apply({}, rngs={'sampling': sampling_key}, method=sample)


def _foreground(model, rois):
  return rois.first(model.sampling.num_foreground)


def _roi_targets(model, params, rois, instances):
  """Deltas of all RoIs, masks of the foreground."""
  del params
  deltas = targets_lib.roi_box_targets(
    rois, instances, model.box_weights, model.plus_one
  )
  masks = targets_lib.mask_targets(
    _foreground(model, rois),
    instances,
    2 * model.mask_size,
    model.mask_threshold,
  )
  return deltas, masks


def _align(model, pyramid, regions, size):
  return model.align(pyramid, regions.boxes, size)


def _box_head(model, params, box_features):
  return model.apply(
    {'params': params}, box_features, method=lambda model, x: model.box_head(x)
  )


def _mask_head(model, params, features, regions):
  return model.apply(
    {'params': params},
    features,
    regions.classes,
    method=lambda model, x, classes: model.mask_head(x, classes),
  )


def _losses(
  model, params, rpn, box, mask_logits, rois, rpn_targets, roi_targets, valid
):
  del params
  deltas, masks = roi_targets
  rois = rois.replace(valid=rois.valid & valid[:, None])
  foreground = _foreground(model, rois)
  return {
    **losses_lib.rpn_losses(rpn, rpn_targets, valid, model.losses),
    **losses_lib.box_losses(
      box, rois.classes, deltas, rois.valid, model.losses
    ),
    'mask': losses_lib.mask_loss(
      mask_logits, masks, foreground.valid & (foreground.classes > 0)
    ),
  }
