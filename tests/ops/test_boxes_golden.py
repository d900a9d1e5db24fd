"""Box coding, IoU and clipping of the trusted implementations."""

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.ops import boxes as box_ops

WEIGHTS = {'none': (1, 1, 1, 1), 'ones': (1, 1, 1, 1), 'w': (10, 10, 5, 5)}


def swap_axes(boxes):
  """(x1, y1, x2, y2) to (y1, x1, y2, x2)."""
  return boxes[..., [1, 0, 3, 2]]


@pytest.fixture(
  name='nvidia',
  scope='module',
  params=golden_files.files('02_boxes*.npz'),
  ids=lambda path: path.stem,
)
def fixture_nvidia(request):
  return golden_files.load(request.param)


@pytest.mark.parametrize('kind', sorted(WEIGHTS))
def test_coding_with_plus_one(nvidia, kind):
  boxes, anchors, codes = nvidia['boxes'], nvidia['anchors'], nvidia['codes']
  encoded = box_ops.encode(boxes, anchors, WEIGHTS[kind], plus_one=True)
  expected = nvidia[f'enc_{kind}']
  assert golden_files.relative_error(encoded, expected) <= 1e-5
  decoded = box_ops.decode(codes, anchors, WEIGHTS[kind], plus_one=True)
  expected = nvidia[f'dec_{kind}']
  assert golden_files.relative_error(decoded, expected) <= 1e-5


def test_round_trip_with_plus_one(nvidia):
  anchors = nvidia['anchors']
  decoded = box_ops.decode(
    nvidia['enc_w'], anchors, WEIGHTS['w'], plus_one=True
  )
  assert golden_files.relative_error(decoded, nvidia['roundtrip_w']) <= 1e-5


def test_coding_of_rpn_targets(nvidia):
  boxes, anchors = nvidia['boxes'], nvidia['anchors']
  encoded = np.asarray(box_ops.encode(boxes, anchors))
  expected = nvidia['rpn_enc']
  assert golden_files.relative_error(encoded, expected) <= 1e-5
  # Anchors without height or width have deltas of 1e9, which hide the others.
  usual = np.abs(expected) < 1e3
  error = golden_files.relative_error(encoded[usual], expected[usual])
  assert error <= 1e-5


def test_decoding_without_plus_one(nvidia):
  codes = np.clip(nvidia['codes'], -5.0, 5.0)
  decoded = np.asarray(box_ops.decode(codes, nvidia['anchors']))
  # The reference limits no growth here, and uses the function nowhere.
  grows = codes[:, 2:] > np.log(1000 / 16)
  same = ~np.concatenate([grows, grows], axis=1)
  error = golden_files.relative_error(decoded[same], nvidia['rpn_dec'][same])
  assert error <= 1e-5


def test_clipping_to_the_last_pixel(nvidia):
  height, width = nvidia['clip_height'], nvidia['clip_width']
  sizes = np.concatenate([height, width], axis=-1)[:, 0, :]
  clipped = box_ops.clip(nvidia['clip_in'], sizes, plus_one=True)
  assert golden_files.relative_error(clipped, nvidia['clip_out']) <= 1e-5
  # Normalised coordinates exist nowhere here; they are pixels by another name.
  normalised = np.asarray(clipped) / np.concatenate([sizes] * 2, -1)[:, None]
  assert golden_files.relative_error(normalised, nvidia['norm_out']) <= 1e-5
  assert golden_files.relative_error(clipped, nvidia['abs_out']) <= 1e-5


def test_iou_of_proposals(nvidia):
  iou = np.asarray(box_ops.pairwise_iou(nvidia['iou_boxes'], nvidia['iou_gt']))
  # The reference marks pairs with padding by -1; here padding has a mask.
  unmarked = nvidia['iou'] >= 0.0
  assert np.mean(unmarked) > 0.5
  error = golden_files.relative_error(iou[unmarked], nvidia['iou'][unmarked])
  assert error <= 1e-5


def test_iou_of_anchors(nvidia):
  iou = box_ops.pairwise_iou(nvidia['rpn_iou_a'], nvidia['rpn_iou_b'])
  assert golden_files.relative_error(iou, nvidia['rpn_iou']) <= 1e-5


@pytest.fixture(name='torchvision', scope='module')
def fixture_torchvision():
  (path,) = golden_files.files('ops_boxcoder_matcher.npz', 'torchvision')
  return golden_files.load(path)


@pytest.fixture(name='torchvision_nms', scope='module')
def fixture_torchvision_nms():
  (path,) = golden_files.files('ops_nms.npz', 'torchvision')
  return golden_files.load(path)


@pytest.mark.parametrize('coder', ['rpn', 'roi'])
def test_coding_of_torchvision(torchvision, coder):
  proposals = swap_axes(torchvision[f'{coder}/proposals'])
  weights = swap_axes(torchvision[f'{coder}/weights']).tolist()
  reference = swap_axes(torchvision[f'{coder}/reference'])
  encoded = np.asarray(box_ops.encode(reference, proposals, weights))
  expected = swap_axes(torchvision[f'{coder}/encoded'])
  # Boxes without area or with swapped corners: not finite there, finite here.
  proper = np.all(np.isfinite(expected), axis=-1)
  assert np.all(np.isfinite(encoded))
  assert np.any(~proper)
  error = golden_files.relative_error(encoded[proper], expected[proper])
  assert error <= 1e-5

  deltas = swap_axes(torchvision[f'{coder}/deltas'].reshape(-1, 5, 4))
  decoded = box_ops.decode(deltas, proposals[:, None], weights)
  expected = swap_axes(torchvision[f'{coder}/decoded'])
  assert golden_files.relative_error(decoded, expected) <= 1e-5


@pytest.mark.parametrize('coder', ['rpn', 'roi'])
def test_decoding_gradient_of_torchvision(torchvision, coder):
  proposals = swap_axes(torchvision[f'{coder}/proposals'])
  weights = swap_axes(torchvision[f'{coder}/weights']).tolist()

  def total(deltas):
    decoded = box_ops.decode(deltas, proposals[:, None], weights)
    return 0.01 * jnp.sum(decoded[7:])

  deltas = swap_axes(torchvision[f'{coder}/deltas'].reshape(-1, 5, 4))
  gradient = jax.grad(total)(jnp.array(deltas))
  expected = torchvision[f'{coder}/decode_grad_of_0.01sum_rows7on']
  expected = swap_axes(expected.reshape(-1, 5, 4))
  assert golden_files.relative_error(gradient, expected) <= 1e-5


def test_iou_of_torchvision(torchvision_nms):
  boxes = swap_axes(torchvision_nms['box_iou/a'])
  others = swap_axes(torchvision_nms['box_iou/b'])
  # 0 / 0 there, 0 here.
  expected = np.nan_to_num(torchvision_nms['box_iou/iou'], nan=0.0)
  iou = box_ops.pairwise_iou(boxes, others)
  assert golden_files.relative_error(iou, expected) <= 1e-5


def test_clipping_of_torchvision(torchvision_nms):
  boxes = swap_axes(torchvision_nms['clip/boxes'])
  size = torchvision_nms['clip/size_hw']
  clipped = box_ops.clip(boxes, size)
  expected = swap_axes(torchvision_nms['clip/out'])
  np.testing.assert_array_equal(clipped, expected)
  sides = np.asarray(clipped[:, 2:] - clipped[:, :2])
  for key, smallest in (('1e-2', 1e-2), ('1e-3', 1e-3)):
    kept = np.flatnonzero(np.all(sides >= smallest, axis=1))
    np.testing.assert_array_equal(kept, torchvision_nms[f'clip/keep_min_{key}'])
