"""Recorded runs of Detectron2's models from weights under its names.

The weights of a recording are written as a `.pkl` like those of the model zoo
and imported by the command; detections of the checkpoint are compared.
"""

import functools
import pickle
import tempfile

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recorded_detectron2 as recorded
from golden_files import assert_near
from golden_files import swap_axes as swap
from pycocotools import mask as coco_mask
from recorded_detections import SCORE, box_tolerance, in_order

from maskrcnn_jax.checkpoints import store as checkpoint
from maskrcnn_jax.cli import main as command
from maskrcnn_jax.evaluation import coco_results, mask_pasting
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.ops import boxes as box_ops
from maskrcnn_jax.ops import images as image_ops

# Tolerances, relative to the largest magnitude of an array.
FORWARD = 1e-4
# Pixels of a pasted mask that may differ: share of its area, at least PIXELS.
AREA, AREA_PIXELS = 0.01, 3
CASES = [
  pytest.param(path, id=path.stem, marks=[pytest.mark.long] * (number > 0))
  for number, path in enumerate(golden_files.files('e2e_*_*.npz', 'detectron2'))
]
# Recorded with Detectron2's adaptive sampling and with 2 x 2 samples per bin.
SAMPLINGS = ('s0', 's2')

pytestmark = pytest.mark.slow


@functools.cache
def imported(tag):
  """Model and variables of a checkpoint that the command made from a .pkl."""
  with tempfile.TemporaryDirectory() as folder:
    source, output = f'{folder}/model_final.pkl', f'{folder}/run'
    content = {'model': recorded.state_dict(tag), '__author__': 'a test'}
    with open(source, 'wb') as file:
      pickle.dump(content, file)
    argv = ['import_weights', f'--source={source}', f'--output={output}']
    assert command.main(argv) == 0
    variables, config = checkpoint.restore(output)
  return MaskRCNN.from_config(config.model), variables


def inspect(model, images, image_sizes, rois):
  """All stages of the model, RoI heads on given RoIs; a method of it."""
  pyramid = model.pyramid(images, image_sizes)
  rpn = model.rpn_head(pyramid)
  normal = image_ops.normalize(
    images, image_sizes, model.pixel_mean, model.pixel_std, model.bgr
  )
  pool = model.align(pyramid, rois, model.box_size)
  return {
    'input': normal,
    'backbone': model.body(normal),
    'pyramid': pyramid,
    'rpn': rpn,
    'proposals': model._propose(
      rpn, images.shape[1:3], image_sizes, model.test_proposals
    ),
    'pool': pool,
    'box': model.box_head(pool),
    'detections': model.detect(images, image_sizes),
  }


@functools.cache
def compiled(tag):
  model, _ = imported(tag)
  models = {x: recorded.with_sampling(model, x) for x in SAMPLINGS}

  @jax.jit
  def run(variables, *arguments):
    # What the samplings share is computed once.
    return {
      name: each.apply(variables, *arguments, method=inspect)
      for name, each in models.items()
    }

  return run


@pytest.fixture(name='case', scope='module', params=CASES)
def fixture_case(request):
  """The recording, our model, and its outputs by sampling."""
  path = request.param
  tag = path.stem.split('_')[1]
  golden = golden_files.load(path)
  pixels = recorded.image(
    str(golden['image_file']), str(golden['network_rgb_sha256'])
  )
  image, size = recorded.on_canvas(pixels)
  assert image.shape[:2] == tuple(golden['padded_hw'])
  np.testing.assert_array_equal(size, golden['network_hw'])
  model, variables = imported(tag)
  rois = swap(golden['proposals'])[None]
  found = compiled(tag)(variables, image[None], size[None], rois)
  return golden, model, jax.tree.map(np.asarray, found)


def window(array):
  """The recorded center of a map `[height, width, channels]`."""
  starts = [max(0, side // 2 - 2) for side in array.shape[:2]]
  cut = array[starts[0] :, starts[1] :][:4, :4]
  return cut.transpose(2, 0, 1)


def stats(array):
  """Mean, deviation, minimum, maximum and mean magnitude, as recorded."""
  array = array.astype(np.float64)
  least, largest = array.min(), array.max()
  return array.mean(), array.std(), least, largest, np.abs(array).mean()


def check_map(golden, name, array):
  assert_near(stats(array), golden[f'{name}_stats'], FORWARD, name)
  expected = golden[f'{name}_center']
  assert_near(window(array)[: len(expected)], expected, FORWARD, name)


def test_weights_are_the_recorded_ones(case):
  del case  # Only to run once per file that is there.
  for path in golden_files.files('weights_spec_*.json', 'detectron2'):
    tag = path.stem.rpartition('_')[2]
    tensors = recorded.state_dict(tag)
    for entry in recorded.spec(tag)['tensors']:
      name, total = entry['name'], tensors[entry['name']].sum(dtype=np.float64)
      np.testing.assert_allclose(
        total, entry['sum'], rtol=1e-6, atol=1e-5, err_msg=name
      )


def test_input_backbone_and_pyramid(case):
  golden, _, found = case
  found = found['s2']
  height, width = golden['network_hw']
  image = found['input'][0]
  for channel, expected in enumerate(golden['input_stats']):
    actual = stats(image[:height, :width, channel])
    assert_near(actual, expected, FORWARD)
  edge = image[height - 4 :, width - 4 :][:8, :8].transpose(2, 0, 1)
  assert_near(edge, golden['input_edge'], FORWARD)
  for level, features in found['backbone'].items():
    check_map(golden, f'res{level}', features[0])
  for level, features in found['pyramid'].items():
    check_map(golden, f'p{level}', features[0])


def test_region_proposal_head(case):
  golden, model, found = case
  rpn = found['s2']['rpn']
  anchors = model.anchor_boxes(golden['padded_hw'].tolist())
  counts = np.cumsum([0, *map(len, anchors.values())])
  np.testing.assert_array_equal(counts, golden['anchor_level_offsets'])
  for level, logits in rpn.objectness_logits.items():
    name = f'rpn_p{level}_obj_stats'
    assert_near(stats(logits), golden[name], FORWARD, name)
    name = f'rpn_p{level}_box_stats'
    assert_near(stats(rpn.box_deltas[level]), golden[name], FORWARD, name)
  rows = golden['flat_index']
  logits, deltas, anchors = (
    np.concatenate([*levels.values()], axis=-1 - is_boxes)
    for levels, is_boxes in (
      (rpn.objectness_logits, False),
      (rpn.box_deltas, True),
      (anchors, True),
    )
  )
  assert_near(anchors[rows], swap(golden['anchors_at']), 1e-6)
  assert_near(logits[0, rows], golden['objectness_at'], FORWARD)
  assert_near(swap(deltas[0, rows]), golden['deltas_at'], FORWARD)
  decoded = box_ops.decode(jnp.asarray(deltas[0, rows]), anchors[rows])
  assert_near(decoded, swap(golden['decoded_at']), FORWARD)


def test_proposals(case):
  """As a set: those with nearly equal scores change places, or drop out."""
  golden, _, found = case
  proposals = found['s2']['proposals']
  assert np.all(proposals.valid)
  expected = swap(golden['proposals'])
  scores = np.asarray(jax.nn.sigmoid(golden['proposal_logits']))
  distances = np.abs(expected[:, None] - proposals.boxes).max(axis=-1)
  # Several may be nearly the same box, of different anchors and scores.
  apart = np.abs(scores[:, None] - proposals.scores[0])
  rows = np.argmin(distances + apart, axis=1)
  near = np.take_along_axis(distances, rows[:, None], axis=1)[:, 0]
  same = near <= box_tolerance(expected)[:, 0]
  assert np.mean(same) >= 0.99
  assert len({*rows[same]}) >= 0.99 * len(rows)
  found_scores = proposals.scores[0][rows[same]]
  np.testing.assert_allclose(found_scores, scores[same], atol=SCORE)


@pytest.mark.parametrize('sampling', SAMPLINGS)
def test_box_head_on_recorded_proposals(case, sampling):
  golden, _, found = case
  found = found[sampling]
  expected = golden[f'{sampling}/box_pool_slice']
  pool = found['pool'][0].transpose(0, 3, 1, 2)
  actual = pool[: len(expected), : expected.shape[1]]
  assert_near(actual, expected, FORWARD)
  means = golden[f'{sampling}/box_pool_roi_mean']
  assert_near(pool.mean(axis=(1, 2, 3)), means, FORWARD)
  logits = golden[f'{sampling}/class_logits']
  actual = found['box'].class_logits[0, : len(logits)]
  assert_near(actual[:, recorded.CLASS_IDS], logits, FORWARD)
  deltas = golden[f'{sampling}/box_deltas']
  actual = swap(found['box'].box_deltas[0, : len(deltas)])
  actual = actual[:, recorded.CLASS_IDS[:-1]]
  assert_near(actual.reshape(deltas.shape), deltas, FORWARD)


def find_partners(golden, sampling, found):
  """Our detections in the order of the recorded ones."""
  return in_order(
    found[sampling]['detections'].image(0),
    swap(golden[f'{sampling}/det_boxes']),
    recorded.CLASS_IDS[golden[f'{sampling}/det_classes']],
  )


@pytest.mark.parametrize('sampling', SAMPLINGS)
def test_detections(case, sampling):
  """Every recorded detection is found, and no other."""
  golden, _, found = case
  partners = find_partners(golden, sampling, found)
  expected = swap(golden[f'{sampling}/det_boxes'])
  assert np.all(np.abs(partners.boxes - expected) <= box_tolerance(expected))
  scores = golden[f'{sampling}/det_scores']
  np.testing.assert_allclose(partners.scores, scores, atol=SCORE)
  expected = golden[f'{sampling}/mask_prob_28']
  assert_near(partners.masks[: len(expected)], expected, 5 * FORWARD)


def recorded_masks(golden, sampling):
  """Masks `[n, height, width]` bool in the original image."""
  size = golden['original_hw'].tolist()
  counts = golden[f'{sampling}/out_mask_rle']
  masks = [coco_mask.decode({'size': size, 'counts': str(x)}) for x in counts]
  return np.array(masks, bool).reshape(-1, *size)


@pytest.mark.parametrize('sampling', SAMPLINGS)
def test_pasted_masks(case, sampling):
  """In the original image, by the rule that the detections carry."""
  golden, _, found = case
  partners = find_partners(golden, sampling, found)
  assert partners.mask_pasting == 'continuous'
  size = tuple(golden['original_hw'].tolist())
  scales = golden['network_hw'] / golden['original_hw']
  boxes = coco_results.original_boxes(partners.boxes, scales)
  boxes = np.clip(boxes, 0, np.float32(size * 2))
  # Detectron2 drops boxes without area.
  kept = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
  expected = swap(golden[f'{sampling}/out_boxes'])
  assert np.all(np.abs(boxes[kept] - expected) <= box_tolerance(expected))
  pasted = mask_pasting.paste_masks(
    partners.masks[kept], boxes[kept], size, partners.mask_pasting
  )
  expected = recorded_masks(golden, sampling)
  differ = np.sum(pasted != expected, axis=(1, 2))
  bound = np.maximum(AREA * expected.sum(axis=(1, 2)), AREA_PIXELS)
  assert np.all(differ <= bound)
  areas = golden[f'{sampling}/out_mask_area']
  np.testing.assert_array_equal(expected.sum(axis=(1, 2)), areas)
