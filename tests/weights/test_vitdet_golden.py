"""ViTDet's Mask R-CNN against recordings of Detectron2, from its weights."""

import dataclasses
import functools

import golden_files
import jax
import numpy as np
import pytest
import recorded_backbones as recorded
import recorded_detectron2
from golden_files import assert_near
from golden_files import swap_axes as swap
from recorded_detections import SCORE, box_tolerance, in_order
from recorded_detectron2 import CLASS_IDS

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.weights import state_dicts, vit
from maskrcnn_jax.weights.tensor_files import Tensors

# Relative to the largest magnitude of an array.
FORWARD = 1e-4
# Recorded with 2x2 samples per bin, and with adaptive ones.
CASES = golden_files.files('e2e_vitdet_*.npz', 'vitdet')

pytestmark = pytest.mark.slow


@functools.cache
def loaded():
  spec = recorded.description('weights_spec_vitdet', 'vitdet')
  arrays = recorded.vit_formula(spec)
  recorded.check_weights(arrays, spec['tensors'])
  form = vit.find_format(arrays)
  inferred = state_dicts.infer_model(Tensors('recorded', arrays), form)
  config = config_lib.load_config(inferred.config, inferred.overrides)
  model = MaskRCNN.from_config(config.model)
  _, variables = recorded.make_model(config.model, method='detect')
  variables, report = recorded.load(arrays, form, variables)
  assert not (report.missing or report.unexpected)
  return model, variables


def inspect(model, images, image_sizes, rois):
  """All stages of the model, RoI heads on given RoIs; a method of it."""
  pyramid = model.pyramid(images, image_sizes)
  return {
    'pyramid': pyramid,
    'rpn': model.rpn_head(pyramid),
    'box': model.box_head(model.align(pyramid, rois, model.box_size)),
    'detections': model.detect(images, image_sizes),
  }


@functools.cache
def compiled(sampling):
  model, _ = loaded()
  if sampling == 's2':
    options = dataclasses.replace(model.roi_align, adaptive_side=None)
    model = model.clone(roi_align=options)
  return jax.jit(functools.partial(model.apply, method=inspect))


@pytest.mark.parametrize(
  'sampling', [pytest.param('s2', marks=pytest.mark.long), 's0']
)
@pytest.mark.parametrize('path', CASES, ids=lambda path: path.stem)
def test_a_recorded_image(path, sampling):
  golden = golden_files.load(path)
  name, digest = (str(golden[x]) for x in ('image_file', 'network_rgb_sha256'))
  pixels = recorded_detectron2.image(name, digest, 'vitdet')
  # Padded to a square, whose cells take part in the attention.
  image, size = recorded_detectron2.on_canvas(pixels, golden['padded_hw'])
  model, variables = loaded()
  rois = swap(golden['proposals'])[None]
  found = compiled(sampling)(variables, image[None], size[None], rois)
  found = jax.tree.map(np.asarray, found)
  for level, features in found['pyramid'].items():
    recorded.check_map(golden, f'p{level}', features[0], FORWARD)
  check_proposal_head(golden, model, found['rpn'])
  logits = golden[f'{sampling}/class_logits']
  actual = found['box'].class_logits[0, : len(logits)]
  assert_near(actual[:, CLASS_IDS], logits, FORWARD)
  deltas = golden[f'{sampling}/box_deltas']
  actual = swap(found['box'].box_deltas[0, : len(deltas)])[:, CLASS_IDS[:-1]]
  assert_near(actual.reshape(deltas.shape), deltas, FORWARD)
  check_detections(golden, sampling, found['detections'].image(0))


def check_proposal_head(golden, model, rpn):
  anchors = model.anchor_boxes(tuple(golden['padded_hw'].tolist()))
  rows = golden['flat_index']
  flat = np.concatenate([*anchors.values()])
  assert_near(flat[rows], swap(golden['anchors_at']), 1e-6)
  logits = np.concatenate([*rpn.objectness_logits.values()], axis=1)[0]
  assert_near(logits[rows], golden['objectness_at'], FORWARD)
  deltas = np.concatenate([*rpn.box_deltas.values()], axis=1)[0]
  assert_near(swap(deltas[rows]), golden['deltas_at'], FORWARD)


def check_detections(golden, sampling, ours):
  """Every recorded detection is found, and no other."""
  boxes = swap(golden[f'{sampling}/det_boxes'])
  classes = CLASS_IDS[golden[f'{sampling}/det_classes']]
  ours = in_order(ours, boxes, classes)
  assert np.all(np.abs(ours.boxes - boxes) <= box_tolerance(boxes))
  scores = golden[f'{sampling}/det_scores']
  np.testing.assert_allclose(ours.scores, scores, atol=SCORE)
  masks = golden[f'{sampling}/mask_prob_28']
  assert_near(ours.masks[: len(masks)], masks, 5 * FORWARD)
