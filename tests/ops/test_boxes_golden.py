"""Box coding, IoU and clipping of the trusted implementations."""

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import assert_near, swap_axes

from maskrcnn_jax.ops import boxes as box_ops

WEIGHTS = {'none': (1, 1, 1, 1), 'ones': (1, 1, 1, 1), 'w': (10, 10, 5, 5)}
nvidia = golden_files.each('02_boxes*.npz')
torchvision = golden_files.each(
  'ops_boxcoder_matcher*.npz', 'torchvision', 'rpn|roi'
)


@nvidia
@pytest.mark.parametrize('kind', sorted(WEIGHTS))
def test_coding_with_plus_one(recorded, kind):
  anchors, weights = recorded['anchors'], WEIGHTS[kind]
  encoded = box_ops.encode(recorded['boxes'], anchors, weights, plus_one=True)
  assert_near(encoded, recorded[f'enc_{kind}'], 1e-5)
  decoded = box_ops.decode(recorded['codes'], anchors, weights, plus_one=True)
  assert_near(decoded, recorded[f'dec_{kind}'], 1e-5)


@nvidia
def test_round_trip_with_plus_one(recorded):
  decoded = box_ops.decode(
    recorded['enc_w'], recorded['anchors'], WEIGHTS['w'], plus_one=True
  )
  assert_near(decoded, recorded['roundtrip_w'], 1e-5)


@nvidia
def test_coding_of_rpn_targets(recorded):
  encoded = np.asarray(box_ops.encode(recorded['boxes'], recorded['anchors']))
  expected = recorded['rpn_enc']
  assert_near(encoded, expected, 1e-5)
  # Anchors without height or width have deltas of 1e9, which hide the others.
  usual = np.abs(expected) < 1e3
  assert_near(encoded[usual], expected[usual], 1e-5)


@nvidia
def test_decoding_without_plus_one(recorded):
  codes = np.clip(recorded['codes'], -5.0, 5.0)
  decoded = np.asarray(box_ops.decode(codes, recorded['anchors']))
  # The reference limits no growth here, and uses the function nowhere.
  grows = codes[:, 2:] > np.log(1000 / 16)
  same = ~np.concatenate([grows, grows], axis=1)
  assert_near(decoded[same], recorded['rpn_dec'][same], 1e-5)


@nvidia
def test_clipping_to_the_last_pixel(recorded):
  height, width = recorded['clip_height'], recorded['clip_width']
  sizes = np.concatenate([height, width], axis=-1)[:, 0, :]
  clipped = box_ops.clip(recorded['clip_in'], sizes, plus_one=True)
  assert_near(clipped, recorded['clip_out'], 1e-5)
  # Normalised coordinates exist nowhere here; they are pixels by another name.
  normalised = np.asarray(clipped) / np.concatenate([sizes] * 2, -1)[:, None]
  assert_near(normalised, recorded['norm_out'], 1e-5)
  assert_near(clipped, recorded['abs_out'], 1e-5)


@nvidia
def test_iou_of_nvidia(recorded):
  iou = box_ops.pairwise_iou(recorded['iou_boxes'], recorded['iou_gt'])
  # The reference marks pairs with padding by -1; here padding has a mask.
  unmarked = recorded['iou'] >= 0.0
  assert np.mean(unmarked) > 0.5
  assert_near(np.asarray(iou)[unmarked], recorded['iou'][unmarked], 1e-5)
  iou = box_ops.pairwise_iou(recorded['rpn_iou_a'], recorded['rpn_iou_b'])
  assert_near(iou, recorded['rpn_iou'], 1e-5)


@torchvision
def test_coding_of_torchvision(recorded):
  proposals = swap_axes(recorded['proposals'])
  weights = swap_axes(recorded['weights']).tolist()
  reference = swap_axes(recorded['reference'])
  encoded = np.asarray(box_ops.encode(reference, proposals, weights))
  expected = swap_axes(recorded['encoded'])
  # Boxes without area or with swapped corners: not finite there, finite here.
  proper = np.all(np.isfinite(expected), axis=-1)
  assert np.all(np.isfinite(encoded))
  assert np.any(~proper)
  assert_near(encoded[proper], expected[proper], 1e-5)

  def total(deltas):
    decoded = box_ops.decode(deltas, proposals[:, None], weights)
    return 0.01 * jnp.sum(decoded[7:]), decoded

  deltas = jnp.array(swap_axes(recorded['deltas'].reshape(-1, 5, 4)))
  gradient, decoded = jax.grad(total, has_aux=True)(deltas)
  assert_near(decoded, swap_axes(recorded['decoded']), 1e-5)
  expected = recorded['decode_grad_of_0.01sum_rows7on'].reshape(-1, 5, 4)
  assert_near(gradient, swap_axes(expected), 1e-5)


@golden_files.each('ops_nms*.npz', 'torchvision', 'box_iou')
def test_iou_of_torchvision(recorded):
  iou = box_ops.pairwise_iou(swap_axes(recorded['a']), swap_axes(recorded['b']))
  # 0 / 0 there, 0 here.
  assert_near(iou, np.nan_to_num(recorded['iou'], nan=0.0), 1e-5)


@golden_files.each('ops_nms*.npz', 'torchvision', 'clip')
def test_clipping_of_torchvision(recorded):
  boxes = swap_axes(recorded['boxes'])
  clipped = box_ops.clip(boxes, recorded['size_hw'])
  np.testing.assert_array_equal(clipped, swap_axes(recorded['out']))
  sides = np.asarray(clipped[:, 2:] - clipped[:, :2])
  for key, smallest in (('1e-2', 1e-2), ('1e-3', 1e-3)):
    kept = np.flatnonzero(np.all(sides >= smallest, axis=1))
    np.testing.assert_array_equal(kept, recorded[f'keep_min_{key}'])


@golden_files.each('ops_box_transform*.npz', 'detectron2')
def test_coding_of_detectron2(recorded):
  source = swap_axes(recorded['source'])
  weights = swap_axes(recorded['weights']).tolist()
  encoded = box_ops.encode(swap_axes(recorded['target']), source, weights)
  assert_near(encoded, swap_axes(recorded['deltas_of_target']), 1e-5)

  def by_row(name):
    return swap_axes(recorded[name].reshape(len(source), -1, 4))

  decoded, pull_back = jax.vjp(
    lambda deltas: box_ops.decode(deltas, source[:, None], weights),
    jnp.array(by_row('deltas')),
  )
  assert_near(decoded, by_row('decoded'), 1e-5)
  (gradient,) = pull_back(jnp.array(by_row('cotangent')))
  # Where growth is just at its limit, rounding decides if there is a gradient.
  beyond = by_row('deltas') / np.array(weights) - recorded['scale_clamp']
  decided = np.abs(beyond) > 1e-6
  assert np.mean(decided) > 0.9
  gradient = np.where(decided, gradient, 0.0)
  expected = np.where(decided, by_row('grad_deltas'), 0.0)
  assert_near(gradient, expected, 1e-5)
