"""Recorded runs of torchvision's models from weights in its format.

The weights of a recording are written as a `.pth` and imported by the command;
detections of the checkpoint are compared.
"""

import functools
import tempfile

import golden_files
import jax
import numpy as np
import pytest
import recorded_torchvision as recorded
from golden_files import assert_near
from golden_files import swap_axes as swap
from recorded_detections import SCORE, box_tolerance, in_order

from maskrcnn_jax.checkpoints import store as checkpoint
from maskrcnn_jax.cli import main as command
from maskrcnn_jax.evaluation import coco_results, mask_pasting
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.weights import tensor_files

# Tolerances, relative to the largest magnitude of an array.
FORWARD = 1e-4
# A corner near a pixel's edge may be rounded to the next pixel, and change some
# pixels of its mask.
AREA, AREA_PIXELS = 0.02, 3
CONFIGS = {'e2e': 'coco:torchvision', 'v2': 'coco:torchvision_v2'}
CASES = [
  path
  for kind in CONFIGS
  for path in golden_files.files(f'{kind}_*_*.npz', 'torchvision')
]

pytestmark = pytest.mark.slow


def stem(path):
  return path.stem.partition('_')[2]


@functools.cache
def imported(config_name):
  """Model and variables of a checkpoint that the command made from a .pth."""
  with tempfile.TemporaryDirectory() as folder:
    source, output = f'{folder}/weights.pth', f'{folder}/run'
    tensor_files.write(source, recorded.state_dict(config_name))
    argv = ['import_weights', f'--source={source}', f'--output={output}']
    assert command.main(argv) == 0
    variables, config = checkpoint.restore(output)
  return MaskRCNN.from_config(config.model), variables


def inspect(model, images, image_sizes, rois):
  """Pyramid, RPN, box head on given RoIs, detections; a method of the model."""
  pyramid = model.pyramid(images, image_sizes)
  features = model.align(pyramid, rois, model.box_size)
  return {
    'pyramid': pyramid,
    'rpn': model.rpn_head(pyramid),
    'box': model.box_head(features),
    'detections': model.detect(images, image_sizes),
  }


@functools.cache
def compiled(config_name):
  model, _ = imported(config_name)
  return jax.jit(functools.partial(model.apply, method=inspect))


@pytest.fixture(name='case', scope='module', params=CASES, ids=stem)
def fixture_case(request):
  """The recording, our outputs, scales and size of the image."""
  path = request.param
  name = CONFIGS[path.stem.partition('_')[0]]
  pixels = recorded.image(stem(path))
  golden = golden_files.load(path)
  image, size, scales = recorded.make_input(pixels, recorded.SIDES[name])
  _, variables = imported(name)
  rois = swap(golden['proposals'])[None, :300]
  found = compiled(name)(variables, image[None], size[None], rois)
  return golden, jax.tree.map(np.asarray, found), scales, pixels.shape[:2]


def window(array):
  """The recorded center of a map `[height, width, channels]`."""
  starts = [max(0, side // 2 - 2) for side in array.shape[:2]]
  cut = array[starts[0] :, starts[1] :][:4, :4, :8]
  return cut.transpose(2, 0, 1)


def stats(array):
  """Mean, deviation, minimum, maximum and mean magnitude, as recorded."""
  array = array.astype(np.float64)
  least, largest = array.min(), array.max()
  return array.mean(), array.std(), least, largest, np.abs(array).mean()


def test_pyramid(case):
  golden, found, *_ = case
  for level, features in found['pyramid'].items():
    name = f'fpn_{level - 2 if level < 6 else "pool"}'
    assert_near(window(features[0]), golden[f'{name}_center'], FORWARD, name)
    assert_near(stats(features), golden[f'{name}_stats'], FORWARD, name)


def test_region_proposal_head(case):
  golden, found, *_ = case
  for kind, values in (
    ('obj', found['rpn'].objectness_logits),
    ('box', found['rpn'].box_deltas),
  ):
    for level, array in values.items():
      name = f'rpn_{level - 2 if level < 6 else "pool"}_{kind}_stats'
      assert_near(stats(array), golden[name], FORWARD, name)


def test_box_head_on_recorded_proposals(case):
  golden, found, *_ = case
  logits = golden['class_logits']
  actual = found['box'].class_logits[0, : len(logits)]
  assert_near(actual, logits, FORWARD)
  if 'box_regression' in golden:
    deltas = golden['box_regression']
    actual = swap(found['box'].box_deltas[0, : len(deltas)])
    assert_near(actual.reshape(deltas.shape), deltas, FORWARD)


@pytest.fixture(name='partners')
def fixture_partners(case):
  """Our detections in the order of the recorded ones."""
  golden, found, *_ = case
  boxes, labels = swap(golden['det_boxes_resized']), golden['det_labels']
  return in_order(found['detections'].image(0), boxes, labels)


def test_boxes_and_scores(case, partners):
  """On the canvas, and in pixels of the original image."""
  golden, _, scales, _ = case
  expected = swap(golden['det_boxes_resized'])
  assert np.all(np.abs(partners.boxes - expected) <= box_tolerance(expected))
  actual = coco_results.original_boxes(partners.boxes, scales)
  expected = swap(golden['det_boxes'])
  assert np.all(np.abs(actual - expected) <= box_tolerance(expected))
  np.testing.assert_allclose(partners.scores, golden['det_scores'], atol=SCORE)


def test_masks(case, partners):
  """Probabilities of the head, and masks pasted into the original image."""
  golden, _, scales, size = case
  expected = golden['mask_prob_28']
  assert_near(partners.masks[: len(expected)], expected, 5 * FORWARD)
  boxes = coco_results.original_boxes(partners.boxes, scales)
  pasted = mask_pasting.paste_masks(partners.masks, boxes, size)
  areas = np.array([mask.sum() for mask in pasted])
  expected = golden['mask_area']
  bound = np.maximum(AREA * expected, AREA_PIXELS)
  assert np.all(np.abs(areas - expected) <= bound)
