"""Mask R-CNN, assembled in the order of the paper's figure."""

import typing
from collections.abc import Mapping

import flax.linen as nn
import flax.struct
import jax
import numpy as np

from maskrcnn_jax import override
from maskrcnn_jax.errors import UserError, invalid
from maskrcnn_jax.models import backbones, heads, layers, norms
from maskrcnn_jax.models import detections as detections_lib
from maskrcnn_jax.models import losses as losses_lib
from maskrcnn_jax.models import proposals as proposals_lib
from maskrcnn_jax.models import targets as targets_lib
from maskrcnn_jax.models.layout import Layout
from maskrcnn_jax.models.operations import Operations
from maskrcnn_jax.ops import anchors as anchor_ops
from maskrcnn_jax.ops import images as image_ops
from maskrcnn_jax.ops.roi_align import RoiAlignOptions, pyramid_roi_aligns
from maskrcnn_jax.structures import Detections, Instances, SampledRois


@flax.struct.dataclass
class TrainOutputs:
  """Outputs of a training pass, the inputs of the losses.

  Attributes:
    rpn: RPN head outputs for every anchor.
    rois: the sampled RoIs.
    box: box head outputs for every RoI.
    mask_logits: `[batch, n, side, side]` of the RoIs of `targets.mask_rois`.
  """

  rpn: heads.RPNOutputs
  rois: SampledRois
  box: heads.BoxOutputs
  mask_logits: jax.Array


class MaskRCNN(nn.Module):
  """Mask R-CNN with a feature pyramid (He et al. 2017; Lin et al. 2017).

  The defaults are Habana's. Option groups are documented by their dataclass,
  beside the function that takes them.

  Attributes:
    num_classes: number of classes with background, class 0.
    pyramid_channels: number of channels of every pyramid level.
    max_level: coarsest pyramid level; the finest is 2.
    rpn_convs: number of 3x3 convolutions of the region proposal head.
    box_convs: number of 3x3 convolutions of the box head.
    box_dense: number of dense layers of the box head.
    box_channels: width of these dense layers.
    mask_channels: number of channels of the mask head.
    mask_convs: number of 3x3 convolutions of the mask head.
    head_norm: normalisation after the convolutions of the pyramid, the box head
      and the mask head.
    box_size: side of the RoI features for boxes.
    mask_size: side of the RoI features for masks.
    mask_upsample: side of masks relative to it: 2, as published, or 4.
    plus_one: in proposals, RoIs and detections a box from a to b has the side
      b - a + 1, and boxes are clipped to size - 1.
    box_weights: weights of the box head's deltas, (dy, dx, dh, dw).
    mask_threshold: threshold of mask targets; None leaves them soft.
    pixel_mean: mean of RGB in 0..1, subtracted.
    pixel_std: standard deviation of RGB in 0..1, divided by.
    bgr: the backbone takes channels in the order blue, green, red (Caffe2);
      images are still RGB.
    dtype: precision of convolutions and dense layers: `float32`, `bfloat16`, or
      `bfloat16_products`, which keeps float32 between them. Parameters, boxes,
      scores and losses are float32 in each.
    layout: sharding of arrays, see `layout.Layout`; not part of a config.
    operations: see `operations.Operations`; not part of a config.
  """

  num_classes: int = 91
  backbone: backbones.BackboneOptions = backbones.BackboneOptions()
  pyramid_channels: int = 256
  max_level: int = 6
  rpn_convs: int = 1
  box_convs: int = 0
  box_dense: int = 2
  box_channels: int = 1024
  mask_channels: int = 256
  mask_convs: int = 4
  head_norm: norms.NormOptions = norms.NormOptions()
  box_size: int = 7
  mask_size: int = 14
  mask_upsample: int = 2
  anchors: anchor_ops.AnchorOptions = anchor_ops.AnchorOptions()
  train_proposals: proposals_lib.ProposalOptions = (
    proposals_lib.ProposalOptions(pre_nms_top_k=2000)
  )
  test_proposals: proposals_lib.ProposalOptions = (
    proposals_lib.ProposalOptions()
  )
  rpn_targets: targets_lib.RPNTargetOptions = targets_lib.RPNTargetOptions()
  sampling: targets_lib.SamplingOptions = targets_lib.SamplingOptions()
  roi_align: RoiAlignOptions = RoiAlignOptions()
  detections: detections_lib.DetectionOptions = (
    detections_lib.DetectionOptions()
  )
  losses: losses_lib.LossOptions = losses_lib.LossOptions()
  plus_one: bool = True
  box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
  mask_threshold: float | None = 0.5
  pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
  pixel_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
  bgr: bool = False
  dtype: str = 'float32'
  layout: Layout = Layout()
  operations: Operations = Operations()

  def setup(self):
    kind = backbones.KINDS[self.backbone.kind]
    options = kind.options(self.backbone)
    self.body = kind.body(options, dtype=self.dtype, name='backbone')
    self.fpn = kind.pyramid(
      self.pyramid_channels,
      self.max_level,
      self.dtype,
      self.layout,
      self.head_norm,
    )
    self.rpn_head = heads.RPNHead(
      anchor_ops.anchors_per_cell(self.anchors),
      self.pyramid_channels,
      self.rpn_convs,
      dtype=self.dtype,
    )
    self.box_head = heads.BoxHead(
      self.num_classes,
      self.box_channels,
      self.box_convs,
      self.box_dense,
      self.head_norm,
      dtype=self.dtype,
    )
    self.mask_head = heads.MaskHead(
      self.num_classes,
      self.mask_channels,
      self.mask_convs,
      self.head_norm,
      self.mask_upsample,
      dtype=self.dtype,
    )

  def __call__(
    self,
    images: jax.Array,
    image_sizes: jax.Array,
    instances: Instances,
    valid: jax.Array | None = None,
    rois: SampledRois | None = None,
    keys: jax.Array | None = None,
    train: bool = True,
    part: tuple[jax.Array, int] | None = None,
  ) -> TrainOutputs:
    """Outputs for the losses, with RoIs sampled around the instances.

    Args:
      images: `[batch, height, width, 3]`, RGB in 0..255, uint8 or float32.
      image_sizes: `[batch, 2]`, height and width of the part that is image.
      instances: ground truth.
      valid: `[batch]` bool, the images that contribute; None: all.
      rois: RoIs to use instead of sampling from the `sampling` stream.
      keys: `[batch]` keys that sample the RoIs of each image instead of that
        stream.
      train: whether trainable batch norm uses the statistics of this batch.
      part: see `targets.draw_priorities`.
    """
    pyramid = self.pyramid(images, image_sizes, valid, train)
    rpn = self.layout.whole(self.layout.share(self.rpn_head, pyramid))
    # RoIAlign may need any part of the maps.
    pyramid = self.layout.whole(pyramid)
    if rois is None:
      canvas = images.shape[1:3]
      rois = self.sample(rpn, canvas, image_sizes, instances, valid, keys, part)
    counted = rois.valid if valid is None else rois.valid & valid[:, None]
    foreground = targets_lib.mask_rois(rois, self.sampling)
    box_features, mask_features = self.align_both(
      pyramid, rois.boxes, foreground.boxes
    )
    box = self.box_head(box_features, counted, train)
    mask_logits = self.layout.mask_head(
      *(self.mask_head, mask_features),
      *(foreground.classes, foreground.valid, train),
    )
    return TrainOutputs(rpn, rois, box, mask_logits)

  def detect(self, images: jax.Array, image_sizes: jax.Array) -> Detections:
    """Detections in the images, with masks relative to their boxes.

    Args:
      images: `[batch, height, width, 3]`, RGB in 0..255, uint8 or float32.
      image_sizes: `[batch, 2]`, height and width of the part that is image.

    Returns:
      `[batch, detections.num_outputs]`, boxes in pixels of the canvas.
    """
    pyramid = self.pyramid(images, image_sizes)
    rpn = self.layout.whole(self.rpn_head(pyramid))
    pyramid = self.layout.whole(pyramid)
    proposals = self._propose(
      rpn, images.shape[1:3], image_sizes, self.test_proposals
    )
    box = self.box_head(self.align(pyramid, proposals.boxes, self.box_size))
    options = self.detections, self.box_weights, self.plus_one
    keep = self.operations.keep
    detections = self.layout.per_device(
      lambda *x: detections_lib.select_detections(*x, *options, keep)
    )(box, proposals, image_sizes)
    features = self.align(pyramid, detections.boxes, self.mask_size)
    logits = self.mask_head(features, detections.classes)
    return detections.replace(masks=jax.nn.sigmoid(logits))

  def pyramid(
    self,
    images: jax.Array,
    image_sizes: jax.Array,
    valid: jax.Array | None = None,
    train: bool = False,
  ) -> dict[int, jax.Array]:
    """Feature maps by level, `[batch, height / 2**l, width / 2**l, c]`."""
    _check_canvas(images)
    x = image_ops.normalize(
      images, image_sizes, self.pixel_mean, self.pixel_std, self.bgr
    )
    x = x.astype(layers.output_dtype(self.dtype))
    split = self.layout.split
    features = split(self.body(split(x), valid, train))
    return split(self.fpn(features, valid, train))

  def sample(
    self, rpn, canvas, image_sizes, instances, valid, keys=None, part=None
  ) -> SampledRois:
    """RoIs to train on, sampled with the `sampling` stream or with keys."""
    proposals = self._propose(rpn, canvas, image_sizes, self.train_proposals)
    batch, num_proposals = proposals.valid.shape
    key = self.make_rng('sampling') if keys is None else keys
    shape = batch, num_proposals + instances.valid.shape[1]
    priorities = targets_lib.draw_priorities(key, shape, part)
    if valid is not None:
      proposals = proposals.replace(valid=proposals.valid & valid[:, None])
    return self.layout.per_device(
      lambda *x: targets_lib.sample_rois(*x, self.sampling)
    )(proposals, instances, priorities)

  def _propose(self, rpn, canvas, image_sizes, options):
    anchors = self.anchor_boxes(canvas)
    return self.layout.per_device(
      lambda rpn, sizes: proposals_lib.propose(
        *(rpn, anchors, sizes, options, self.plus_one, self.operations.keep)
      )
    )(rpn, image_sizes)

  def align(self, pyramid, boxes, size) -> jax.Array:
    """RoI features `[batch, num_rois, size, size, channels]`."""
    align = self.operations.roi_align
    return self.layout.per_device(
      lambda pyramid, boxes: align(pyramid, boxes, size, self.roi_align)
    )(pyramid, boxes)

  def align_both(self, pyramid, *boxes) -> list[jax.Array]:
    """`align` for the box head and the mask head, with one gradient."""
    sizes = self.box_size, self.mask_size
    return self.layout.per_device(
      lambda pyramid, *boxes: pyramid_roi_aligns(
        pyramid, boxes, sizes, self.roi_align
      )
    )(pyramid, *boxes)

  def anchor_boxes(self, canvas: tuple[int, int]) -> dict[int, np.ndarray]:
    """Anchors `[num_anchors, 4]` by level of a canvas (height, width)."""
    levels = range(2, self.max_level + 1)
    return anchor_ops.pyramid_anchors(canvas, levels, self.anchors)

  @classmethod
  def from_config(cls, config: Mapping[str, typing.Any]) -> 'MaskRCNN':
    """Model of the config section `model`.

    Args:
      config: the fields that differ from the defaults; sections for options,
        such as `config['sampling']['num_rois']`.

    Raises:
      UserError: a field is unknown, or `num_classes` is None.
    """
    model = cls(**override.changes(cls(), config, 'model'))
    if model.num_classes is None:
      raise UserError(
        'model.num_classes must be set: the largest class id plus one. The '
        'verbs train, eval and train_and_eval take it from the records.',
        argument='model.num_classes',
      )
    return model


def _check_canvas(images):
  if images.ndim != 4 or images.shape[-1] != 3:
    raise ValueError(
      f'images must be [batch, height, width, 3], got {images.shape}.'
    )
  canvas = images.shape[1:3]
  if canvas[0] % 32 or canvas[1] % 32:
    raise invalid('input.canvases', canvas, 'multiples of 32 pixels')
