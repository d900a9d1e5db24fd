"""Recorded training steps of torchvision's model: five losses, gradients.

The recorded samples of anchors and RoIs are injected, and so are the targets:
soft masks, cropped from the full-size ground truth by an adaptive RoIAlign.
"""

import functools
import json

import golden_files
import jax
import jax.numpy as jnp
import narrow_models
import numpy as np
import pytest
import recorded_detections
import recorded_torchvision as recorded
from golden_files import assert_near
from golden_files import swap_axes as swap

from maskrcnn_jax.config import load_config
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.structures import Instances, SampledRois
from maskrcnn_jax.weights import load_report, tensor_files, torchvision

CONFIG = 'coco:torchvision'
CASES = golden_files.files('train_pair_*.npz', 'torchvision')
# Shares of the recorded number.
LOSS = 1e-5
GRADIENT = 1e-3
LOSSES = {
  'rpn_objectness': 'loss_objectness',
  'rpn_box': 'loss_rpn_box_reg',
  'class': 'loss_classifier',
  'box': 'loss_box_reg',
  'mask': 'loss_mask',
}
SIZE = 28

pytestmark = pytest.mark.slow


@pytest.fixture(name='case', scope='module', params=CASES, ids=lambda x: x.stem)
def fixture_case(request):
  """The recording and its meta data."""
  path = request.param
  meta = json.loads(path.with_name('train_meta.json').read_text())
  return golden_files.load(path), meta[path.stem.removeprefix('train_')]


def align_masks(masks, boxes):
  """RoIAlign `[n, 28, 28]` of full-size masks, with adaptive sampling.

  Args:
    masks: `[n, height, width]`, one for each box.
    boxes: `[n, 4]`.
  """
  result = np.zeros((len(boxes), SIZE, SIZE))
  for index, (mask, box) in enumerate(zip(masks, boxes.astype(np.float64))):
    rows = _axis_weights(box[0], box[2], mask.shape[0])
    columns = _axis_weights(box[1], box[3], mask.shape[1])
    result[index] = rows @ mask @ columns.T
  return result


def _axis_weights(start, end, length):
  """`[28, length]` weights of the pixels of an axis in each bin."""
  side = max(end - start, 1.0)
  samples = int(np.ceil(side / SIZE))
  weights = np.zeros((SIZE, length))
  steps = (np.arange(SIZE * samples) + 0.5) / samples
  for sample, position in enumerate(start + steps * side / SIZE):
    if not -1.0 <= position <= length:
      continue
    position = max(position, 0.0)
    lower = min(int(position), length - 1)
    upper = min(lower + 1, length - 1)
    share = position - lower if upper > lower else 0.0
    weights[sample // samples, lower] += (1.0 - share) / samples
    weights[sample // samples, upper] += share / samples
  return weights


def resized_masks(golden, image, size):
  """Ground truth of an image, resized by nearest neighbours."""
  count, height, width = golden[f'{image}/gt_masks_shape']
  bits = np.unpackbits(golden[f'{image}/gt_masks_bits'], axis=1)
  masks = bits[:, : height * width].reshape(count, height, width)
  rows = np.arange(size[0]) * height // size[0]
  columns = np.arange(size[1]) * width // size[1]
  return masks[:, rows][:, :, columns]


def make_targets(golden, sizes, num_foreground):
  """RoIs with foreground first, their deltas and masks; of both images."""
  rois, deltas, masks = [], [], []
  for image, size in enumerate(sizes):
    labels = golden[f'{image}/roi_labels']
    order = np.argsort(labels <= 0, kind='stable')
    boxes = swap(golden[f'{image}/roi_boxes'])[order]
    instances = golden[f'{image}/roi_matched_gt'][order]
    count = np.sum(labels > 0)
    full = resized_masks(golden, image, size)
    np.testing.assert_array_equal(
      full.sum(axis=(1, 2)), golden[f'{image}/gt_mask_area_resized']
    )
    own = np.zeros((num_foreground, SIZE, SIZE), np.float32)
    own[:count] = align_masks(full[instances[:count]], boxes[:count])
    masks.append(own)
    deltas.append(swap(golden[f'{image}/roi_regression_targets'])[order])
    rois.append(
      SampledRois(
        boxes=boxes,
        classes=labels[order].astype(np.int32),
        instance_indices=instances.astype(np.int32),
        valid=np.ones(len(boxes), bool),
      )
    )
  rois = jax.tree.map(lambda *x: np.stack(x), *rois)
  return rois, np.stack(deltas), np.stack(masks)


def make_instances(golden):
  """Ground truth boxes; nothing else of it is used."""
  count = max(len(golden[f'{image}/gt_labels']) for image in range(2))
  instances = Instances(
    boxes=np.zeros((2, count, 4), np.float32),
    classes=np.zeros((2, count), np.int32),
    masks=np.zeros((2, count, SIZE, SIZE), np.uint8),
    valid=np.zeros((2, count), bool),
  )
  for image in range(2):
    labels = golden[f'{image}/gt_labels']
    instances.classes[image, : len(labels)] = labels
    boxes = swap(golden[f'{image}/gt_boxes_resized'])
    instances.boxes[image, : len(labels)] = boxes
    instances.valid[image, : len(labels)] = True
  return instances


def load_variables(model):
  """The recorded weights, through the reader."""
  tensors = tensor_files.Tensors('weights', recorded.state_dict(CONFIG))
  form = torchvision.find_format(tensors.arrays)
  return form, *load_report.load(tensors, form, narrow_models.shapes(model))


@pytest.fixture(name='trained', scope='module')
def fixture_trained(case):
  """Losses by name and norms of gradients by torchvision's names."""
  golden, meta = case
  model = MaskRCNN.from_config(load_config(CONFIG).model)
  form, variables, _ = load_variables(model)
  canvas = tuple(golden['batch_shape'][2:].tolist())
  stems = [f'coco_{image["id"]}' for image in meta['images']]
  inputs = [
    recorded.make_input(recorded.image(stem), recorded.SIDES[CONFIG], canvas)
    for stem in stems
  ]
  images, sizes, _ = (np.stack(x) for x in zip(*inputs))
  np.testing.assert_array_equal(sizes, golden['image_sizes'])
  rois, deltas, masks = make_targets(
    golden, sizes.astype(int), model.sampling.num_foreground
  )
  rpn_targets = recorded_detections.rpn_targets(
    golden,
    model.anchor_boxes(canvas),
    'rpn_regression_targets_of_sampled_pos',
  )

  @functools.partial(jax.grad, has_aux=True)
  def gradients_of(params, batch_stats, inputs):
    images, sizes, instances, rois, *targets = inputs
    outputs = model.apply(
      {'params': params, 'batch_stats': batch_stats},
      images,
      sizes,
      instances,
      rois=rois,
    )
    losses = recorded_detections.losses_of_samples(
      model, outputs, rois, *targets
    )
    return sum(losses.values()), losses

  inputs = images, sizes, make_instances(golden), rois, rpn_targets, deltas
  gradients, losses = jax.jit(gradients_of)(
    variables['params'], variables['batch_stats'], (*inputs, masks)
  )
  norms = {
    form.name(path): float(jnp.linalg.norm(x.ravel()))
    for path, x in load_report.flatten({'params': gradients}).items()
  }
  return jax.tree.map(float, losses), norms, masks


def test_mask_targets_are_the_recorded_ones(case, trained):
  golden, _ = case
  *_, masks = trained
  for image in range(2):
    first = golden[f'{image}/mask_targets_first8']
    assert_near(masks[image, : len(first)], first, 1e-4)
    means = golden[f'{image}/mask_targets_mean']
    assert_near(masks[image, : len(means)].mean(axis=(1, 2)), means, 1e-4)


def test_losses(case, trained):
  golden, _ = case
  losses, *_ = trained
  for name, theirs in LOSSES.items():
    assert_near(losses[name], golden[theirs], LOSS, name)
  assert_near(sum(losses.values()), golden['loss_total'], LOSS)


def test_gradient_norms(case, trained):
  """Of every parameter, of the parts, of all; none where it is frozen."""
  golden, meta = case
  _, norms, _ = trained
  names = meta['trainable_parameter_names']
  assert all(norms[name] == 0.0 for name in norms.keys() - {*names})
  actual = np.array([norms[name] for name in names])
  np.testing.assert_allclose(actual, golden['param_gradnorms'], rtol=GRADIENT)
  for key in golden:
    if key.startswith('gradnorm/'):
      part = key.removeprefix('gradnorm/')
      inside = [part == 'all' or x.startswith(f'{part}.') for x in names]
      assert_near(np.linalg.norm(actual[inside]), golden[key], GRADIENT, part)
