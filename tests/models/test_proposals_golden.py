"""Proposals of the trusted implementations.

Where NMS leaves fewer boxes than there are outputs, the recordings of NVIDIA's
and Habana's systems go on with boxes of zeros and score 0; here those rows are
not valid.
"""

import functools

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import assert_near, swap_axes

from maskrcnn_jax.models import proposals as proposals_lib
from maskrcnn_jax.models.heads import RPNOutputs
from maskrcnn_jax.models.proposals import ProposalOptions
from maskrcnn_jax.ops import anchors as anchor_ops

run_propose = jax.jit(
  proposals_lib.propose, static_argnames=('options', 'plus_one')
)


def nvidia_cases():
  """Every recording with every setting; the small one covers all of them.

  The larger ones have only that of training outside the long tests.
  """
  cases = []
  for path in golden_files.files('04_proposals*.npz'):
    for setting in golden_files.params(golden_files.load(path))['settings']:
      is_fast = setting == 'train' or path.stem == '04_proposals_b'
      marks = [] if is_fast else [pytest.mark.long]
      name = f'{path.stem}-{setting}'
      cases.append(pytest.param(path, setting, id=name, marks=marks))
  return cases


def options_of(recorded, setting, is_cut, image):
  """Options of a recorded setting; sizes there are in original pixels."""
  params = golden_files.params(recorded)['settings'][setting]
  scale = float(recorded['image_info'][image, 2])
  threshold = params['nms_threshold']
  return ProposalOptions(
    pre_nms_top_k=params['pre_nms_topn'] if is_cut else None,
    post_nms_top_k=params['post_nms_topn'],
    iou_threshold=threshold if threshold > 0 else None,
    min_size=params['min_size'] * scale,
  )


def check_setting(recorded, name, is_cut):
  levels = golden_files.numbers(recorded, r'score_logits_level(\d+)')
  canvas = golden_files.params(recorded)['image_size']
  anchors = anchor_ops.pyramid_anchors(
    canvas, levels, anchor_ops.AnchorOptions()
  )

  def by_level(name, image, *shape):
    return {
      level: recorded[f'{name}_level{level}'][image].reshape(1, -1, *shape)
      for level in levels
    }

  for image, info in enumerate(recorded['image_info']):
    proposals = run_propose(
      RPNOutputs(
        by_level('score_logits', image), by_level('box_deltas', image, 4)
      ),
      anchors,
      info[None, :2],
      options=options_of(recorded, name.split('_')[1], is_cut, image),
    )
    count = recorded[f'{name}_valid'][image]
    expected = recorded[f'{name}_scores'][image]
    np.testing.assert_array_equal(
      proposals.valid[0], np.arange(len(expected)) < count
    )
    assert_near(proposals.scores[0], expected, 1e-5)
    assert_near(proposals.boxes[0], recorded[f'{name}_rois'][image], 1e-5)


@pytest.mark.parametrize('path, setting', nvidia_cases())
def test_proposals_of_habana(path, setting):
  check_setting(golden_files.load(path), f'hb_{setting}', is_cut=True)


@pytest.mark.slow
@pytest.mark.parametrize('path, setting', nvidia_cases())
def test_proposals_of_nvidia(path, setting):
  """NVIDIA's NMS sees all anchors of a level."""
  recorded = golden_files.load(path)
  if f'nv_{setting}_rois' not in recorded:
    pytest.skip('The recording holds only what Habana needs.')
  check_setting(recorded, f'nv_{setting}', is_cut=False)


@golden_files.each('02_boxes*.npz')
def test_small_boxes_of_nvidia(recorded):
  smallest = golden_files.params(recorded)['filter_min_size']
  height, width = recorded['clip_height'], recorded['clip_width']
  sizes = np.concatenate([height, width], axis=-1)[:, 0]
  large = [
    proposals_lib.is_large(
      boxes[None], smallest * float(scale), size[None], plus_one=True
    )[0]
    for boxes, scale, size in zip(
      recorded['clip_out'], recorded['filter_scale'][:, 0, 0], sizes
    )
  ]
  large = np.stack(large)[..., None]
  for name, values in {
    'boxes': recorded['clip_out'],
    'scores': recorded['filter_scores'],
  }.items():
    expected = recorded[f'filter_{name}_out']
    np.testing.assert_array_equal(np.where(large, values, 0.0), expected)
  assert 0 < np.sum(large) < large.size


@pytest.mark.parametrize('mode', ['training', 'testing'])
@golden_files.each('ops_filter_postprocess*.npz', 'torchvision', 'rpn_.*')
def test_proposals_of_torchvision(recorded, mode):
  params = recorded['params']
  pre, post = params[[0, 2]] if mode == 'training' else params[[1, 3]]
  iou_threshold, smallest_score, min_size = params[4:]
  options = ProposalOptions(
    int(pre), int(post), float(iou_threshold), float(min_size)
  )
  ends = np.cumsum(recorded['level_counts'])[:-1]
  split = functools.partial(np.split, indices_or_sections=ends)
  for image, size in enumerate(recorded['image_hw']):
    # Boxes are decoded: they are the anchors, and the deltas are zero.
    anchors = dict(enumerate(split(swap_axes(recorded['boxes'][image]))))
    logits = dict(enumerate(split(recorded['objectness'][image][None], axis=1)))
    deltas = {level: np.zeros((1, *x.shape)) for level, x in anchors.items()}
    proposals = run_propose(
      RPNOutputs(logits, deltas),
      anchors,
      jnp.asarray(size, jnp.float32)[None],
      options=options,
      plus_one=False,
    )
    # A box with a low score suppresses none with a high one, so that it does
    # not matter when low scores go.
    kept = proposals.valid[0] & (proposals.scores[0] >= smallest_score)
    expected = swap_axes(recorded[f'{mode}_boxes_{image}'])
    assert_near(proposals.boxes[0][kept], expected, 1e-5)
    expected = recorded[f'{mode}_scores_{image}']
    assert_near(proposals.scores[0][kept], expected, 1e-5)


@golden_files.each('ops_proposals*.npz', 'detectron2')
def test_proposals_of_detectron2(recorded):
  """Boxes or scores that are not finite are dropped, and so are empty boxes."""
  options = ProposalOptions(
    int(recorded['pre_nms_topk']),
    int(recorded['post_nms_topk']),
    float(recorded['nms_thresh']),
    min_size=1e-9,
  )
  levels = golden_files.numbers(recorded, r'boxes_(\d+)')
  assert any(
    not np.all(np.isfinite(recorded[f'{kind}_{level}']))
    for kind in ('boxes', 'logits')
    for level in levels
  )
  for image in golden_files.numbers(recorded, r'(\d+)/proposals'):
    # Boxes are decoded: they are the anchors, and the deltas are zero.
    anchors = {x: swap_axes(recorded[f'boxes_{x}'][image]) for x in levels}
    logits = {x: recorded[f'logits_{x}'][image][None] for x in levels}
    deltas = {x: np.zeros((1, *boxes.shape)) for x, boxes in anchors.items()}
    proposals = run_propose(
      RPNOutputs(logits, deltas),
      anchors,
      recorded[f'{image}/image_hw'].astype(np.float32)[None],
      options=options,
      plus_one=False,
    )
    kept = proposals.valid[0]
    expected = swap_axes(recorded[f'{image}/proposals'])
    assert_near(proposals.boxes[0][kept], expected, 1e-5)
    expected = jax.nn.sigmoid(recorded[f'{image}/logits'])
    assert_near(proposals.scores[0][kept], expected, 1e-5)
