"""Non-maximum suppression of the trusted implementations."""

import functools

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.ops import nms as nms_ops

# Where boxes have negative coordinates, the offset that torchvision adds to
# separate classes lets boxes of different classes suppress each other.
ARTIFACT = 'batched_offset_artifact'
# The order among equal scores is not defined there.
UNORDERED = 'batched_large_quantised_scores'


def torchvision_cases(prefix):
  paths = golden_files.files('ops_nms.npz', 'torchvision')
  return [
    key.split('/')[0]
    for path in paths
    for key in golden_files.load(path)
    if key.startswith(prefix) and key.endswith('/keep')
  ]


@pytest.fixture(name='torchvision', scope='module')
def fixture_torchvision():
  (path,) = golden_files.files('ops_nms.npz', 'torchvision')
  return golden_files.load(path)


run_nms = jax.jit(nms_ops.nms, static_argnums=(3, 4))


def kept_indices(boxes, scores, valid, iou_threshold):
  """Indices of all boxes that are kept, best first."""
  # Two sizes for all recordings, so that little is compiled.
  num = len(boxes)
  padding = (128 if num <= 128 else 1400) - num
  indices, kept = run_nms(
    np.pad(boxes, ((0, padding), (0, 0))),
    np.pad(scores, (0, padding)),
    np.pad(valid, (0, padding)),
    iou_threshold,
    num + padding,
  )
  return np.asarray(indices)[np.asarray(kept)]


@pytest.mark.parametrize('case', torchvision_cases('nms_'))
def test_nms_of_torchvision(torchvision, case):
  boxes = torchvision[f'{case}/boxes'][:, [1, 0, 3, 2]]
  scores = torchvision[f'{case}/scores']
  expected = torchvision[f'{case}/keep']
  # Boxes with swapped corners overlap nothing there; here they are put right.
  proper = np.all(boxes[:, :2] <= boxes[:, 2:], axis=1)
  expected = expected[proper[expected]]
  threshold = float(torchvision[f'{case}/iou_threshold'])
  kept = kept_indices(boxes, scores, proper, threshold)
  np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize('case', torchvision_cases('batched_'))
def test_nms_per_class_of_torchvision(torchvision, case):
  boxes = torchvision[f'{case}/boxes'][:, [1, 0, 3, 2]]
  scores = torchvision[f'{case}/scores']
  classes = torchvision[f'{case}/idxs']
  threshold = float(torchvision[f'{case}/iou_threshold'])
  kept = [
    kept_indices(boxes, scores, classes == index, threshold)
    for index in np.unique(classes)
  ]
  kept = np.sort(np.concatenate([np.zeros(0, np.int32), *kept]))
  kept = kept[np.argsort(-scores[kept], kind='stable')]
  expected = torchvision[f'{case}/keep']
  if case == ARTIFACT:
    expected = [0, 1, 2]
  if case == UNORDERED:
    kept, expected = np.sort(kept), np.sort(expected)
  np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize(
  'path', golden_files.files('09_nms_raw*.npz'), ids=lambda path: path.stem
)
def test_combined_nms_of_tensorflow(path):
  recorded = golden_files.load(path)
  params = golden_files.params(recorded)
  boxes, scores = recorded['boxes'], recorded['scores']
  batch, num, num_classes, _ = boxes.shape
  per_class = min(params['max_output_size_per_class'], num)
  run = functools.partial(
    nms_ops.nms,
    iou_threshold=params['iou_threshold'],
    max_outputs=per_class,
  )
  run = jax.jit(jax.vmap(jax.vmap(run, in_axes=-1, out_axes=-1)))
  indices, kept = run(
    jnp.moveaxis(boxes, 3, 2), scores, scores > params['score_threshold']
  )
  assert indices.shape == (batch, per_class, num_classes)
  for image in range(batch):
    kept_scores = np.where(
      kept[image], np.take_along_axis(scores[image], indices[image], 0), -1.0
    )
    total = recorded['out_boxes'].shape[1]
    best = np.argsort(-kept_scores, axis=None, kind='stable')[:total]
    ranks, classes = np.unravel_index(best, kept_scores.shape)
    num_valid = min(int(np.sum(kept[image])), total)
    assert num_valid == recorded['out_valid'][image]
    rows = np.asarray(indices)[image, ranks, classes]
    for name, actual in {
      'boxes': np.clip(boxes[image, rows, classes], 0.0, 1.0),
      'scores': kept_scores[ranks, classes],
      'classes': classes,
    }.items():
      expected = recorded[f'out_{name}'][image]
      np.testing.assert_array_equal(actual[:num_valid], expected[:num_valid])
