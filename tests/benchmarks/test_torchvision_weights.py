"""Our variables as torchvision's: names, shapes and layouts."""

import jax
import numpy as np
import pytest

from maskrcnn_jax.benchmarks import torchvision_weights
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.training import train_step

# Of torchvision 0.27's maskrcnn_resnet50_fpn with 91 classes, which has 307
# tensors of 44,507,633 values.
SHAPES = {
  'backbone.body.conv1.weight': (64, 3, 7, 7),
  'backbone.body.bn1.running_var': (64,),
  'backbone.body.layer4.0.conv1.weight': (512, 1024, 1, 1),
  'backbone.body.layer4.0.downsample.0.weight': (2048, 1024, 1, 1),
  'backbone.body.layer4.0.downsample.1.running_mean': (2048,),
  'backbone.fpn.inner_blocks.3.0.weight': (256, 2048, 1, 1),
  'backbone.fpn.layer_blocks.0.0.bias': (256,),
  'rpn.head.conv.0.0.weight': (256, 256, 3, 3),
  'rpn.head.cls_logits.weight': (3, 256, 1, 1),
  'rpn.head.bbox_pred.weight': (12, 256, 1, 1),
  'roi_heads.box_head.fc6.weight': (1024, 12544),
  'roi_heads.box_predictor.cls_score.weight': (91, 1024),
  'roi_heads.box_predictor.bbox_pred.weight': (364, 1024),
  'roi_heads.mask_head.3.0.weight': (256, 256, 3, 3),
  'roi_heads.mask_predictor.conv5_mask.weight': (256, 256, 2, 2),
  'roi_heads.mask_predictor.mask_fcn_logits.bias': (91,),
}


def test_every_tensor_has_its_name_and_shape():
  model = MaskRCNN()
  shapes = jax.eval_shape(
    lambda key: train_step.init_variables(model, key), jax.random.key(0)
  )
  # No memory: one value, seen from everywhere.
  variables = jax.tree.map(
    lambda x: np.broadcast_to(np.float32(0), x.shape), shapes
  )
  state = torchvision_weights.torchvision_state(variables, model.box_size)
  assert len(state) == 307
  assert sum(array.size for array in state.values()) == 44_507_633
  for name, shape in SHAPES.items():
    assert state[name].shape == shape


def _one(layer, leaf, array):
  """Their array of a variable."""
  for part in (leaf, *reversed(layer.split('/'))):
    array = {part: array}
  state = torchvision_weights.torchvision_state({'params': array}, 2)
  (found,) = state.values()
  return found


def test_kernels_have_output_channels_first():
  kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5))
  found = _one('fpn/output2', 'kernel', kernel)
  assert found[4, 3, 2, 1] == kernel[2, 1, 3, 4]


def test_dense_features_run_channels_rows_columns():
  kernel = np.random.default_rng(0).normal(size=(2 * 2 * 3, 7))
  found = _one('box_head/fc6', 'kernel', kernel)
  assert found.shape == (7, 12)
  for channel in range(3):
    for row in range(2):
      for column in range(2):
        theirs, ours = channel * 4 + row * 2 + column, row * 6 + column * 3
        np.testing.assert_array_equal(found[:, theirs], kernel[ours + channel])


@pytest.mark.parametrize(
  'layer', ['box_head/box_deltas', 'rpn_head/box_deltas']
)
def test_deltas_are_x_before_y(layer):
  bias = np.arange(8.0)
  np.testing.assert_array_equal(
    _one(layer, 'bias', bias), [1, 0, 3, 2, 5, 4, 7, 6]
  )
  kernel = np.arange(16.0).reshape(2, 8)
  if layer.startswith('rpn'):
    kernel = kernel[None, None]
  found = _one(layer, 'kernel', kernel).reshape(8, 2)
  np.testing.assert_array_equal(found[:, 0], [1, 0, 3, 2, 5, 4, 7, 6])


def test_a_transposed_convolution_keeps_its_window():
  kernel = np.random.default_rng(0).normal(size=(2, 2, 3, 4))
  found = _one('mask_head/deconv', 'kernel', kernel)
  assert found[2, 3, 1, 0] == kernel[1, 0, 2, 3]


def test_a_layer_that_torchvision_lacks():
  with pytest.raises(ValueError, match='no layer like mask_head/norm1'):
    _one('mask_head/norm1', 'scale', np.ones(3))
