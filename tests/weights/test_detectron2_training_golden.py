"""Recorded training steps of Detectron2's models: losses, gradients, norms.

The recorded samples of anchors and RoIs are injected, and so are the mask
targets, which Detectron2 rasterises from polygons.
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
import recorded_detectron2 as recorded
from golden_files import assert_near
from golden_files import swap_axes as swap

from maskrcnn_jax.config import load_config
from maskrcnn_jax.models import losses as losses_lib
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.structures import Instances, SampledRois
from maskrcnn_jax.weights import (
  detectron2,
  load_report,
  state_dicts,
  tensor_files,
)

# With every recorded sampling of RoIAlign.
CASES = [
  pytest.param(
    (path, sampling),
    id=f'{path.stem}-{sampling}',
    marks=[pytest.mark.long] * (number > 0 or sampling == 's0'),
  )
  for number, path in enumerate(
    golden_files.files('train_*_*.npz', 'detectron2')
  )
  for sampling in ('s0', 's2')
  if f'{sampling}/loss_total' in golden_files.load(path)
]
# Shares of the recorded number: losses, groups of gradients, single gradients.
# The statistics of a batch amplify rounding: the recordings report 1.4e-5, 6e-4
# and 7e-3 between float32 and float64.
TOLERANCES = {'r50': (1e-5, 1e-3, 1e-3), 'lsj': (5e-5, 2e-3, 2e-2)}
LOSSES = {
  'rpn_objectness': 'loss_rpn_cls',
  'rpn_box': 'loss_rpn_loc',
  'class': 'loss_cls',
  'box': 'loss_box_reg',
  'mask': 'loss_mask',
}
SIZE = 28

pytestmark = pytest.mark.slow


def make_rois(golden, num_foreground):
  """The recorded RoIs, box targets `[2, n, 4]`, masks `[2, m, 28, 28]`."""
  boxes = np.stack([swap(golden[f'{i}/roi_boxes']) for i in range(2)])
  classes = np.stack([golden[f'{i}/roi_classes'] for i in range(2)])
  matched = np.stack([golden[f'{i}/roi_matched_gt'] for i in range(2)])
  deltas = np.zeros(boxes.shape, np.float32)
  masks = np.zeros((2, num_foreground, SIZE, SIZE), np.float32)
  for image in range(2):
    bits = np.unpackbits(golden[f'{image}/mask_targets_bits'], axis=1)
    num = len(bits)
    deltas[image, :num] = swap(golden[f'{image}/roi_deltas_of_positives'])
    masks[image, :num] = bits[:, : SIZE**2].reshape(-1, SIZE, SIZE)
  rois = SampledRois(
    boxes=boxes,
    classes=recorded.CLASS_IDS[classes].astype(np.int32),
    instance_indices=np.maximum(matched, 0).astype(np.int32),
    valid=np.ones(classes.shape, bool),
  )
  return rois, deltas, masks


def make_rpn_targets(golden, anchors):
  """The recorded samples, by level."""
  samples = [
    (
      golden[f'{image}/rpn_sampled_neg'],
      golden[f'{image}/rpn_sampled_pos'],
      swap(golden[f'{image}/rpn_deltas_of_sampled_pos']),
    )
    for image in range(2)
  ]
  return recorded_detections.rpn_targets(anchors, samples)


# No RoI is sampled, so that nothing of the instances is used.
NO_INSTANCES = Instances(
  boxes=np.zeros((2, 1, 4), np.float32),
  classes=np.zeros((2, 1), np.int32),
  masks=np.zeros((2, 1, SIZE, SIZE), np.uint8),
  valid=np.zeros((2, 1), bool),
)


def load_model(tag, sampling):
  """The inferred model with the recorded weights, and the format of these."""
  tensors = tensor_files.Tensors('weights', recorded.state_dict(tag))
  form = detectron2.find_format(tensors.arrays)
  inferred = state_dicts.infer_model(tensors, form)
  config = load_config(inferred.config, inferred.overrides)
  model = MaskRCNN.from_config(config.model)
  model = recorded.with_sampling(model, sampling)
  variables, _ = load_report.load(tensors, form, narrow_models.shapes(model))
  return model, form, variables


@pytest.fixture(name='case', scope='module', params=CASES)
def fixture_case(request):
  """Recording with the results of a sampling, description, model, sampling."""
  path, sampling = request.param
  meta = json.loads(path.with_suffix('.json').read_text())
  golden = golden_files.load(path) | golden_files.load(path, sampling)
  return golden, meta, path.stem.split('_')[1], sampling


@pytest.fixture(name='trained', scope='module')
def fixture_trained(case):
  """Losses, norms of gradients by Detectron2's names, batch statistics."""
  golden, meta, tag, sampling = case
  model, form, variables = load_model(tag, sampling)
  pixels = [
    recorded.image(image['image'], str(golden[f'{i}/network_rgb_sha256']))
    for i, image in enumerate(meta['images'])
  ]
  canvas = -(-np.max([x.shape[:2] for x in pixels], axis=0) // 32) * 32
  images, sizes = zip(*(recorded.on_canvas(x, canvas) for x in pixels))
  rois, deltas, masks = make_rois(golden, model.sampling.num_foreground)
  anchors = model.anchor_boxes(canvas.tolist())
  inputs = (
    *(np.stack(images), np.stack(sizes)),
    *(rois, make_rpn_targets(golden, anchors), deltas, masks),
  )

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def gradients_of(params, batch_stats, inputs):
    images, sizes, rois, rpn_targets, deltas, masks = inputs
    outputs, updated = model.apply(
      {'params': params, 'batch_stats': batch_stats},
      *(images, sizes, NO_INSTANCES),
      rois=rois,
      mutable=['batch_stats'],
    )
    foreground = rois.classes[:, : masks.shape[1]] > 0
    losses = {
      **losses_lib.rpn_losses(
        outputs.rpn, rpn_targets, np.ones(2, bool), model.losses
      ),
      **losses_lib.box_losses(
        outputs.box, rois.classes, deltas, rois.valid, model.losses
      ),
      'mask': losses_lib.mask_loss(outputs.mask_logits, masks, foreground),
    }
    return sum(losses.values()), (losses, updated)

  gradients, (losses, updated) = gradients_of(
    variables['params'], variables['batch_stats'], inputs
  )
  norms = {
    form.name(path): float(jnp.linalg.norm(x.ravel()))
    for path, x in load_report.flatten({'params': gradients}).items()
  }
  statistics = {
    form.name(path): np.asarray(x)
    for path, x in load_report.flatten(updated).items()
  }
  return jax.tree.map(float, losses), norms, statistics


def test_losses(case, trained):
  golden, _, tag, _ = case
  losses, *_ = trained
  for name, theirs in LOSSES.items():
    assert_near(losses[name], golden[theirs], TOLERANCES[tag][0], name)
  total = golden['loss_total']
  assert_near(sum(losses.values()), total, TOLERANCES[tag][0])


def test_gradient_norms(case, trained):
  """Of every parameter, of the parts, of all; none where it is frozen."""
  golden, meta, tag, _ = case
  _, norms, _ = trained
  names = meta['trainable_parameter_names']
  assert all(norms[name] == 0.0 for name in norms.keys() - {*names})
  actual = np.array([norms[name] for name in names])
  _, of_groups, single = TOLERANCES[tag]
  expected = golden['param_gradnorms']
  np.testing.assert_allclose(actual, expected, rtol=single, atol=1e-6)
  for key in golden:
    if key.startswith('gradnorm/'):
      part = key.removeprefix('gradnorm/')
      inside = [part == 'all' or x.startswith(part) for x in names]
      assert_near(np.linalg.norm(actual[inside]), golden[key], of_groups, part)


def test_running_statistics(case, trained):
  """PyTorch stores the variance over n - 1 values, here it is over n."""
  golden, meta, *_ = case
  *_, statistics = trained
  means = golden.get('bn_running_mean_after', ())
  assert len(means) == len(meta.get('batch_norms', ()))
  for index, mean in enumerate(means):
    name = meta['batch_norms'][index]
    found = statistics[f'{name}.running_mean'][: len(mean)]
    np.testing.assert_allclose(found, mean, rtol=1e-3, atol=1e-4, err_msg=name)
    variance = golden['bn_running_var_after'][index]
    found = statistics[f'{name}.running_var'][: len(variance)]
    np.testing.assert_allclose(found, variance, rtol=2e-3, err_msg=name)
