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

from maskrcnn_jax.models import proposals as proposals_lib
from maskrcnn_jax.models.heads import RPNOutputs
from maskrcnn_jax.models.proposals import ProposalOptions
from maskrcnn_jax.ops import anchors as anchor_ops

run_propose = jax.jit(
  proposals_lib.propose, static_argnames=('options', 'plus_one')
)


def nvidia_cases():
  """Every recording with every setting; the small one covers all of them."""
  cases = []
  for path in golden_files.files('04_proposals*.npz'):
    for setting in golden_files.params(golden_files.load(path))['settings']:
      is_fast = setting == 'train' or path.stem == '04_proposals_b'
      marks = [] if is_fast else [pytest.mark.slow]
      name = f'{path.stem}-{setting}'
      cases.append(pytest.param(path, setting, id=name, marks=marks))
  return cases


def rpn_outputs(recorded, image):
  """Outputs for a batch of one image."""
  logits, deltas = {}, {}
  for level in golden_files.numbers(recorded, r'score_logits_level(\d+)'):
    logits[level] = recorded[f'score_logits_level{level}'][image].reshape(1, -1)
    deltas[level] = recorded[f'box_deltas_level{level}'][image].reshape(
      1, -1, 4
    )
  return RPNOutputs(logits, deltas)


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
  anchors = anchor_ops.pyramid_anchors(
    golden_files.params(recorded)['image_size'],
    golden_files.numbers(recorded, r'score_logits_level(\d+)'),
    anchor_ops.AnchorOptions(),
  )
  for image, info in enumerate(recorded['image_info']):
    proposals = run_propose(
      rpn_outputs(recorded, image),
      anchors,
      info[None, :2],
      options=options_of(recorded, name.split('_')[1], is_cut, image),
    )
    count = recorded[f'{name}_valid'][image]
    expected = recorded[f'{name}_scores'][image]
    np.testing.assert_array_equal(
      proposals.valid[0], np.arange(len(expected)) < count
    )
    assert golden_files.relative_error(proposals.scores[0], expected) <= 1e-5
    expected = recorded[f'{name}_rois'][image]
    assert golden_files.relative_error(proposals.boxes[0], expected) <= 1e-5


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


@pytest.mark.parametrize(
  'path', golden_files.files('02_boxes*.npz'), ids=lambda path: path.stem
)
def test_small_boxes_of_nvidia(path):
  recorded = golden_files.load(path)
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


def torchvision_cases():
  return [
    pytest.param(path, case, id=case)
    for path in golden_files.files('ops_filter_postprocess*.npz', 'torchvision')
    for case in sorted({key.split('/')[0] for key in golden_files.load(path)})
    if case.startswith('rpn_')
  ]


@pytest.mark.parametrize('mode', ['training', 'testing'])
@pytest.mark.parametrize('path, case', torchvision_cases())
def test_proposals_of_torchvision(path, case, mode):
  recorded = golden_files.load(path)
  params = recorded[f'{case}/params']
  pre, post = params[[0, 2]] if mode == 'training' else params[[1, 3]]
  iou_threshold, smallest_score, min_size = params[4:]
  options = ProposalOptions(
    int(pre), int(post), float(iou_threshold), float(min_size)
  )
  ends = np.cumsum(recorded[f'{case}/level_counts'])[:-1]
  split = functools.partial(np.split, indices_or_sections=ends)
  for image, size in enumerate(recorded[f'{case}/image_hw']):
    # Boxes come decoded: they are the anchors, and nothing is added.
    boxes = recorded[f'{case}/boxes'][image][:, [1, 0, 3, 2]]
    logits = dict(enumerate(split(recorded[f'{case}/objectness'][image])))
    outputs = RPNOutputs(
      {level: x[None] for level, x in logits.items()},
      {level: np.zeros((1, len(x), 4)) for level, x in logits.items()},
    )
    proposals = run_propose(
      outputs,
      dict(enumerate(split(boxes))),
      jnp.asarray(size, jnp.float32)[None],
      options=options,
      plus_one=False,
    )
    # A box with a low score suppresses none with a high one, so that it does
    # not matter when low scores go.
    kept = proposals.valid[0] & (proposals.scores[0] >= smallest_score)
    expected = recorded[f'{case}/{mode}_boxes_{image}'][:, [1, 0, 3, 2]]
    assert np.sum(kept) == len(expected)
    actual = proposals.boxes[0][kept]
    assert golden_files.relative_error(actual, expected) <= 1e-5
    actual = proposals.scores[0][kept]
    expected = recorded[f'{case}/{mode}_scores_{image}']
    assert golden_files.relative_error(actual, expected) <= 1e-5
