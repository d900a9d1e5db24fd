"""ViTDet's Mask R-CNN against recordings of Detectron2, from its weights."""

import dataclasses
import functools
import hashlib
import os
import pathlib

import golden_files
import jax
import numpy as np
import pytest
import recorded_backbones as recorded
from golden_files import assert_near
from golden_files import swap_axes as swap
from PIL import Image

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.weights import coco_classes, state_dicts, vit
from maskrcnn_jax.weights.tensor_files import Tensors

# Relative to the largest magnitude of an array.
FORWARD = 1e-4
# Of boxes: relative to their longer side, but at least `PIXELS`.
BOX, PIXELS = 1e-3, 0.02
SCORE = 1e-4
# Ids of COCO by Detectron2's class; the background is the last one there.
CLASS_IDS = np.array([*sorted(coco_classes.NAMES), 0])
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


def image_of(name, digest):
  """RGB of a recorded image, already at network size; skips without it."""
  path = golden_files.folder() / 'vitdet' / 'images' / name
  kind, number, size = pathlib.Path(name).stem.split('_')
  if path.is_file():
    pixels = np.asarray(Image.open(path).convert('RGB'))
  else:
    photos = pathlib.Path(os.environ.get('MASKRCNN_TEST_DATA', 'missing'))
    found = []
    if kind == 'coco':
      found = sorted(photos.glob(f'coco-mini/*2017/{int(number):012d}.jpg'))
    if not found:
      pytest.skip(f'There is no {name}.')
    photo = Image.open(found[0]).convert('RGB')
    height, width = map(int, size.split('x'))
    resized = photo.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized)
  if hashlib.sha256(pixels.tobytes()).hexdigest() != digest:
    pytest.skip(f'{name} is resized differently by this Pillow.')
  return pixels


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
  pixels = image_of(
    str(golden['image_file']), str(golden['network_rgb_sha256'])
  )
  # Padded to a square, whose cells take part in the attention.
  image = np.zeros((*golden['padded_hw'], 3), np.float32)
  height, width = pixels.shape[:2]
  image[:height, :width] = pixels
  size = np.float32([[height, width]])
  model, variables = loaded()
  rois = swap(golden['proposals'])[None]
  found = compiled(sampling)(variables, image[None], size, rois)
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
  """Every recorded detection is found, and no other.

  They are matched by class and box, since the order of nearly equal scores
  depends on the last bits.
  """
  boxes = swap(golden[f'{sampling}/det_boxes'])
  classes = CLASS_IDS[golden[f'{sampling}/det_classes']]
  assert len(ours.scores) == len(classes)
  distances = np.abs(boxes[:, None] - ours.boxes).max(axis=-1)
  distances[classes[:, None] != ours.classes] = np.inf
  rows = np.argmin(distances, axis=1)
  assert len({*rows}) == len(rows)
  sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True)
  errors = np.abs(ours.boxes[rows] - boxes)
  assert np.all(errors <= np.maximum(BOX * sides, PIXELS)), errors.max()
  scores = golden[f'{sampling}/det_scores']
  np.testing.assert_allclose(ours.scores[rows], scores, atol=SCORE)
  masks = golden[f'{sampling}/mask_prob_28']
  assert_near(ours.masks[rows[: len(masks)]], masks, 5 * FORWARD)
