"""Mask R-CNN as a chain of stages, for training and for detection.

The model's own functions, called one by one; a test holds the gradients of the
chain to those of the training step, and its detections to the model's.
"""

import functools

import jax

from maskrcnn_jax.benchmarks.chain import Stage
from maskrcnn_jax.models import detections as detections_lib
from maskrcnn_jax.models import layers
from maskrcnn_jax.models import losses as losses_lib
from maskrcnn_jax.models import proposals as proposals_lib
from maskrcnn_jax.models import targets as targets_lib
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.ops import images as image_ops


def training_stages(model: MaskRCNN) -> list[Stage]:
  """What happens in a step before the update.

  Args:
    model: to train.

  Returns:
    Stages that take `images`, `image_sizes`, `valid`, `instances`,
    `batch_stats`, and the keys `rpn_key` and `sampling_key`; the last one makes
    `losses`.
  """
  here = functools.partial
  apply = here(_apply, model)
  return [
    *_feature_stages(model, train=True),
    Stage(
      'proposals',
      here(_propose, model, model.train_proposals),
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
      'sampled',
      fixed=('proposals', 'instances', 'sampling_key'),
    ),
    Stage(
      'RoI targets',
      here(_roi_targets, model),
      'roi_targets',
      fixed=('sampled', 'instances', 'valid'),
    ),
    Stage(
      'RoIAlign of boxes',
      lambda params, pyramid, sampled: model.align(
        pyramid, sampled[0].boxes, model.box_size
      ),
      'box_features',
      inputs=('pyramid',),
      fixed=('sampled',),
    ),
    Stage(
      'box head',
      lambda params, box_features, sampled, valid, batch_stats: apply(
        params,
        batch_stats,
        lambda model, x, valid: model.box_head(x, valid, train=True),
        box_features,
        sampled[0].valid & valid[:, None],
      ),
      'box',
      params=('box_head',),
      inputs=('box_features',),
      fixed=('sampled', 'valid', 'batch_stats'),
    ),
    Stage(
      'RoIAlign of masks',
      lambda params, pyramid, sampled: model.align(
        pyramid, sampled[1].boxes, model.mask_size
      ),
      'mask_features',
      inputs=('pyramid',),
      fixed=('sampled',),
    ),
    Stage(
      'mask head',
      lambda params, mask_features, sampled, batch_stats: apply(
        params,
        batch_stats,
        lambda model, x, rois: model.mask_head(
          x, rois.classes, rois.valid, train=True
        ),
        mask_features,
        sampled[1],
      ),
      'mask_logits',
      params=('mask_head',),
      inputs=('mask_features',),
      fixed=('sampled', 'batch_stats'),
    ),
    Stage(
      'losses',
      here(_losses, model),
      'losses',
      inputs=('rpn', 'box', 'mask_logits'),
      fixed=('sampled', 'rpn_targets', 'roi_targets', 'valid'),
    ),
  ]


def detection_stages(model: MaskRCNN) -> list[Stage]:
  """What happens in detection.

  Args:
    model: to detect with.

  Returns:
    Stages that take `images`, `image_sizes` and `batch_stats`; the last one
    makes `masks`, the one that selects makes `detections`.
  """
  apply = functools.partial(_apply, model)
  return [
    *_feature_stages(model, train=False),
    Stage(
      'proposals',
      functools.partial(_propose, model, model.test_proposals),
      'proposals',
      fixed=('rpn', 'images', 'image_sizes'),
    ),
    Stage(
      'RoIAlign of boxes',
      lambda params, pyramid, proposals: model.align(
        pyramid, proposals.boxes, model.box_size
      ),
      'box_features',
      inputs=('pyramid',),
      fixed=('proposals',),
    ),
    Stage(
      'box head',
      lambda params, box_features, batch_stats: apply(
        params, batch_stats, lambda model, x: model.box_head(x), box_features
      ),
      'box',
      params=('box_head',),
      inputs=('box_features',),
      fixed=('batch_stats',),
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
      lambda params, pyramid, detections: model.align(
        pyramid, detections.boxes, model.mask_size
      ),
      'mask_features',
      inputs=('pyramid',),
      fixed=('detections',),
    ),
    Stage(
      'mask head',
      lambda params, mask_features, detections, batch_stats: jax.nn.sigmoid(
        apply(
          params,
          batch_stats,
          lambda model, x, classes: model.mask_head(x, classes),
          mask_features,
          detections.classes,
        )
      ),
      'masks',
      params=('mask_head',),
      inputs=('mask_features',),
      fixed=('detections', 'batch_stats'),
    ),
  ]


def _feature_stages(model, train) -> list[Stage]:
  """From images to the outputs of the region proposal network."""
  # Which images count matters to the statistics of norms.
  more = ('valid', 'batch_stats') if train else ('batch_stats',)
  apply = functools.partial(_apply, model)

  def backbone(params, images, image_sizes, batch_stats, valid=None):
    x = normalized(model, images, image_sizes)
    return apply(
      params,
      batch_stats,
      lambda model, x, valid: model.resnet(x, valid, train),
      x,
      valid,
    )

  return [
    Stage(
      'backbone',
      backbone,
      'features',
      params=('backbone',),
      fixed=('images', 'image_sizes', *more),
    ),
    Stage(
      'FPN',
      lambda params, features, batch_stats, valid=None: apply(
        params,
        batch_stats,
        lambda model, x, valid: model.fpn(x, valid, train),
        features,
        valid,
      ),
      'pyramid',
      params=('fpn',),
      inputs=('features',),
      fixed=more,
    ),
    Stage(
      'RPN',
      lambda params, pyramid: apply(
        params, {}, lambda model, x: model.rpn_head(x), pyramid
      ),
      'rpn',
      params=('rpn_head',),
      inputs=('pyramid',),
    ),
  ]


def normalized(
  model: MaskRCNN, images: jax.Array, image_sizes: jax.Array
) -> jax.Array:
  """Images as the backbone of a model takes them."""
  x = image_ops.normalize(
    images, image_sizes, model.pixel_mean, model.pixel_std, model.bgr
  )
  return x.astype(layers.output_dtype(model.dtype))


def _apply(model, params, batch_stats, method, *arguments):
  """What a part of the model makes of its arguments."""
  outputs, _ = model.apply(
    {'params': params, 'batch_stats': batch_stats},
    *arguments,
    method=method,
    mutable=['batch_stats'],
  )
  return outputs


def _propose(model, options, params, rpn, images, image_sizes, valid=None):
  del params
  anchors = model.anchor_boxes(images.shape[1:3])
  proposals = proposals_lib.propose(
    rpn, anchors, image_sizes, options, model.plus_one
  )
  if valid is None:
    return proposals
  return proposals.replace(valid=proposals.valid & valid[:, None])


def _rpn_targets(model, params, images, instances, valid, rpn_key):
  del params
  anchors = model.anchor_boxes(images.shape[1:3])
  return targets_lib.rpn_targets(
    anchors, instances, valid, rpn_key, model.rpn_targets
  )


def _sample(model, params, proposals, instances, sampling_key):
  """RoIs for boxes, and those of them that have a place for masks."""
  del params

  def sample(model):
    candidates = proposals.valid.shape[1] + instances.valid.shape[1]
    priorities = jax.random.uniform(
      model.make_rng('sampling'), (proposals.valid.shape[0], candidates)
    )
    return targets_lib.sample_rois(
      proposals, instances, priorities, model.sampling
    )

  rois = model.apply({}, rngs={'sampling': sampling_key}, method=sample)
  return rois, targets_lib.mask_rois(rois, model.sampling)


def _roi_targets(model, params, sampled, instances, valid):
  """Deltas of all RoIs, masks of those that have a place."""
  del params
  rois, pooled = sampled
  rois = rois.replace(valid=rois.valid & valid[:, None])
  deltas = targets_lib.roi_box_targets(
    rois, instances, model.box_weights, model.plus_one
  )
  masks = targets_lib.mask_targets(
    pooled, instances, 2 * model.mask_size, model.mask_threshold
  )
  return deltas, masks


def _losses(
  model, params, rpn, box, mask_logits, sampled, rpn_targets, roi_targets, valid
):
  del params
  (rois, pooled), (deltas, masks) = sampled, roi_targets
  counted = pooled.valid & valid[:, None]
  return {
    **losses_lib.rpn_losses(rpn, rpn_targets, valid, model.losses),
    **losses_lib.box_losses(
      box, rois.classes, deltas, rois.valid & valid[:, None], model.losses
    ),
    'mask': losses_lib.mask_loss(mask_logits, masks, counted),
  }
