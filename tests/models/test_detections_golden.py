"""Detections of the trusted implementations."""

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.models import detections as detections_lib
from maskrcnn_jax.models.detections import DetectionOptions
from maskrcnn_jax.models.heads import BoxOutputs, ClassMask
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


@pytest.mark.parametrize(
  'path', golden_files.files('09_detections*.npz'), ids=lambda path: path.stem
)
def test_detections_of_nvidia(path):
  recorded = golden_files.load(path)
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
  for name in ('boxes', 'scores'):
    expected = recorded[f'detection_{name}']
    actual = getattr(detections, name)
    assert golden_files.relative_error(actual, expected) <= 1e-5
  # The recorded RoI of a detection is the one whose score it has.
  probabilities = np.asarray(jax.nn.softmax(recorded['class_outputs']))
  for image in range(batch):
    rows = recorded['source_roi'][image][found[image]]
    classes = np.asarray(detections.classes[image])[found[image]]
    scores = np.asarray(detections.scores[image])[found[image]]
    np.testing.assert_allclose(
      probabilities[image, rows, classes], scores, rtol=1e-5
    )


def torchvision_cases(prefix):
  return [
    pytest.param(path, case, id=case)
    for path in golden_files.files('ops_filter_postprocess*.npz', 'torchvision')
    for case in sorted({key.split('/')[0] for key in golden_files.load(path)})
    if case.startswith(prefix)
  ]


@pytest.mark.parametrize('path, case', torchvision_cases('det_'))
def test_detections_of_torchvision(path, case):
  recorded = golden_files.load(path)
  score, iou_threshold, most = recorded[f'{case}/params_score_nms_max']
  logits = recorded[f'{case}/class_logits']
  deltas = recorded[f'{case}/box_regression'].reshape(*logits.shape, 4)
  deltas = deltas[..., [1, 0, 3, 2]]
  start = 0
  for image, size in enumerate(recorded[f'{case}/image_hw']):
    boxes = recorded[f'{case}/proposals_{image}'][:, [1, 0, 3, 2]]
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
      detections.classes, recorded[f'{case}/labels_{image}']
    )
    expected = recorded[f'{case}/boxes_{image}'][:, [1, 0, 3, 2]]
    assert golden_files.relative_error(detections.boxes, expected) <= 1e-5
    expected = recorded[f'{case}/scores_{image}']
    assert golden_files.relative_error(detections.scores, expected) <= 1e-5
  assert start == len(logits)


@pytest.mark.parametrize('path, case', torchvision_cases('maskinf_'))
def test_masks_of_classes_of_torchvision(path, case):
  """The mask of a detection's class alone is what it is among all masks."""
  recorded = golden_files.load(path)
  logits = recorded[f'{case}/mask_logits']
  num, num_classes, size, _ = logits.shape
  names = sorted(key for key in recorded if key.startswith(f'{case}/labels_'))
  classes = np.concatenate([recorded[name] for name in names])
  # One feature for each class, which the last layer hands on unchanged.
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
  assert golden_files.relative_error(masks, expected) <= 1e-5
