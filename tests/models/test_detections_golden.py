"""Detections of the trusted implementations."""

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
from golden_files import assert_near, swap_axes

from maskrcnn_jax.models import detections as detections_lib
from maskrcnn_jax.models.detections import DetectionOptions
from maskrcnn_jax.models.heads import BoxOutputs, ClassMask
from maskrcnn_jax.ops import boxes as box_ops
from maskrcnn_jax.ops import convolution
from maskrcnn_jax.structures import Proposals

run_select = jax.jit(
  detections_lib.select_detections,
  static_argnames=('options', 'weights', 'plus_one'),
)


def proposals_of(boxes):
  return Proposals(
    boxes=boxes,
    scores=jnp.ones(boxes.shape[:-1]),
    valid=jnp.ones(boxes.shape[:-1], bool),
  )


@golden_files.each('09_detections*.npz')
def test_detections_of_nvidia(recorded):
  params = golden_files.params(recorded)
  batch, num_rois, num_classes = recorded['class_outputs'].shape
  deltas = recorded['box_outputs'].reshape(batch, num_rois, num_classes, 4)
  detections = run_select(
    BoxOutputs(recorded['class_outputs'], deltas),
    proposals_of(recorded['rois']),
    recorded['image_info'][:, :2],
    options=DetectionOptions(
      max_detections=params['post_nms_num_detections'],
      score_threshold=params['score_threshold'],
      iou_threshold=params['nms_threshold'],
    ),
    weights=tuple(params['bbox_reg_weights']),
  )
  counts = recorded['num_detections'][:, None]
  found = np.arange(detections.valid.shape[1]) < counts
  np.testing.assert_array_equal(detections.valid, found)
  # Padding has class 1 there, 0 here.
  np.testing.assert_array_equal(
    detections.classes, np.where(found, recorded['detection_classes'], 0)
  )
  assert_near(detections.boxes, recorded['detection_boxes'], 1e-5)
  assert_near(detections.scores, recorded['detection_scores'], 1e-5)
  # The recorded RoI of a detection is the one whose score it has.
  probabilities = np.asarray(jax.nn.softmax(recorded['class_outputs']))
  for image in range(batch):
    rows = recorded['source_roi'][image][found[image]]
    classes = np.asarray(detections.classes[image])[found[image]]
    scores = np.asarray(detections.scores[image])[found[image]]
    np.testing.assert_allclose(
      probabilities[image, rows, classes], scores, rtol=1e-5
    )


@golden_files.each('ops_filter_postprocess*.npz', 'torchvision', 'det_.*')
def test_detections_of_torchvision(recorded):
  score, iou_threshold, most = recorded['params_score_nms_max']
  logits = recorded['class_logits']
  deltas = swap_axes(recorded['box_regression'].reshape(*logits.shape, 4))
  start = 0
  for image, size in enumerate(recorded['image_hw']):
    boxes = swap_axes(recorded[f'proposals_{image}'])
    rows = slice(start, start + len(boxes))
    start = rows.stop
    detections = run_select(
      BoxOutputs(logits[None, rows], deltas[None, rows]),
      proposals_of(boxes[None]),
      jnp.asarray(size, jnp.float32)[None],
      options=DetectionOptions(
        int(most), float(score), float(iou_threshold), min_size=1e-2
      ),
      plus_one=False,
    ).image(0)
    np.testing.assert_array_equal(
      detections.classes, recorded[f'labels_{image}']
    )
    expected = swap_axes(recorded[f'boxes_{image}'])
    assert_near(detections.boxes, expected, 1e-5)
    assert_near(detections.scores, recorded[f'scores_{image}'], 1e-5)
  assert start == len(logits)


@golden_files.each('ops_filter_postprocess*.npz', 'torchvision', 'maskinf_.*')
def test_masks_of_classes_of_torchvision(recorded):
  """The mask of a detection's class alone equals that among all masks."""
  logits = recorded['mask_logits']
  num, num_classes, size, _ = logits.shape
  names = sorted(key for key in recorded if key.startswith('labels_'))
  classes = np.concatenate([recorded[name] for name in names])
  # One feature for each class, which the last layer passes on unchanged.
  blocks = logits.reshape(num, num_classes, size // 2, 2, size // 2, 2)
  blocks = blocks.transpose(0, 2, 4, 3, 5, 1)
  features = blocks.reshape(num, size // 2, size // 2, 4, num_classes)
  params = {
    'kernel': np.eye(num_classes, dtype=np.float32)[None, None],
    'bias': np.zeros(num_classes, np.float32),
  }
  chosen = ClassMask(num_classes).apply({'params': params}, features, classes)
  masks = jax.nn.sigmoid(convolution.interleave(chosen, 2))
  expected = np.concatenate(
    [recorded[name.replace('labels', 'probs')][:, 0] for name in names]
  )
  assert_near(masks, expected, 1e-5)


@golden_files.each('ops_detections*.npz', 'detectron2')
def test_detections_of_detectron2(recorded):
  """A proposal with a box or score that is not finite gives no detection."""
  num = len(recorded['scores'])
  boxes = swap_axes(recorded['boxes'].reshape(num, -1, 4))
  finite = np.isfinite(boxes)
  assert not np.all(finite)
  # Boxes are recorded decoded; here they are coded relative to one anchor.
  anchors = np.tile(np.float32([0, 0, 100, 100]), (num, 1))
  deltas = box_ops.encode(np.where(finite, boxes, 1.0), anchors[:, None])
  deltas = np.where(finite, deltas, boxes)
  with np.errstate(divide='ignore'):
    logits = np.log(np.roll(recorded['scores'], 1, axis=-1))
  detections = run_select(
    BoxOutputs(logits[None], np.pad(deltas, ((0, 0), (1, 0), (0, 0)))[None]),
    proposals_of(anchors[None]),
    recorded['image_hw'].astype(np.float32)[None],
    options=DetectionOptions(
      int(recorded['topk']),
      float(recorded['score_thresh']),
      float(recorded['nms_thresh']),
    ),
    weights=(1.0, 1.0, 1.0, 1.0),
    plus_one=False,
  ).image(0)
  np.testing.assert_array_equal(detections.classes - 1, recorded['out_classes'])
  assert_near(detections.boxes, swap_axes(recorded['out_boxes']), 1e-5)
  assert_near(detections.scores, recorded['out_scores'], 1e-5)
