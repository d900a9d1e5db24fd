"""Example batches and weights: like real ones, and reproducible."""

import jax
import numpy as np
import pytest
import tiny_model

from maskrcnn_jax import input_pipeline
from maskrcnn_jax.benchmarks import examples
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.training import train_state


def _make(**options):
  arguments = {'canvas': (96, 64), 'batch_size': 2, 'num_batches': 2}
  return examples.synthetic_batches(**arguments | options)


def test_batches_have_the_form_of_the_input_pipeline():
  batch = _make(max_instances=20, mask_size=28)[0]
  spec = input_pipeline.batch_spec(
    (96, 64), 2, max_instances=20, mask_size=28, image_dtype='uint8'
  )
  for key, value in batch.items():
    parts = value.items() if isinstance(value, dict) else [(None, value)]
    for name, array in parts:
      wanted = spec[key][name] if name else spec[key]
      assert array.shape == tuple(wanted.shape)
      assert array.dtype == wanted.dtype.as_numpy_dtype


def test_batches_differ_and_are_reproducible():
  first, second = _make()
  again = _make()[0]
  np.testing.assert_array_equal(first['images'], again['images'])
  assert np.any(first['images'] != second['images'])


def test_objects_lie_in_the_image_and_fill_their_boxes():
  batch = _make(num_objects=9, num_classes=4)[0]
  instances = batch['instances']
  np.testing.assert_array_equal(instances['valid'].sum(axis=1), [9, 9])
  boxes = instances['boxes'][instances['valid']]
  assert np.all(boxes[:, :2] >= 0) and np.all(boxes[:, 2:] <= [96, 64])
  assert np.all(boxes[:, 2:] - boxes[:, :2] >= 2 - 1e-4)
  assert set(np.unique(instances['classes'][instances['valid']])) <= {1, 2, 3}
  masks = instances['masks'][instances['valid']]
  assert set(np.unique(masks)) == {0, 255}
  for axis in (1, 2):  # Every polygon reaches all four sides of its box.
    filled = masks.any(axis=axis)
    assert np.all(filled[:, 0]) and np.all(filled[:, -1])
  padding = ~instances['valid']
  assert not instances['boxes'][padding].any()
  assert not instances['masks'][padding].any()


def test_images_have_as_many_objects_as_in_coco():
  batches = _make(canvas=(32, 32), batch_size=100, num_batches=4, mask_size=4)
  counts = [x['instances']['valid'].sum(axis=1) for x in batches]
  counts = np.concatenate(counts)
  assert counts.min() >= 1
  # 7.3, the standard error of 400 images is 0.4.
  assert 6.0 < counts.mean() < 9.0
  assert np.mean(counts > 17) == pytest.approx(0.1, abs=0.05)


def test_more_objects_than_rows():
  with pytest.raises(UserError) as error:
    _make(max_instances=5, num_objects=6)
  assert error.value.argument == 'num_objects'
  assert error.value.given == 6 and '5' in error.value.wanted


@pytest.fixture(name='variables', scope='module')
def fixture_variables():
  model = tiny_model.make_model(norm='frozen')
  shapes = jax.eval_shape(
    lambda key: train_state.init_variables(model, key), jax.random.key(0)
  )
  return examples.example_variables(shapes, background=5.0)


def test_weights_are_reproducible(variables):
  again = examples.example_variables(variables, background=5.0)
  jax.tree.map(np.testing.assert_array_equal, again, variables)
  jax.tree.map(lambda x: np.testing.assert_equal(x.dtype, np.float32), again)


def test_background_changes_one_number_only(variables):
  other = examples.example_variables(variables, background=7.0)
  bias = variables['params']['box_head']['class_logits']['bias']
  moved = other['params']['box_head']['class_logits']['bias'] - bias
  np.testing.assert_allclose(moved, [2.0, 0, 0, 0], atol=1e-6)
  other['params']['box_head']['class_logits']['bias'] = bias
  jax.tree.map(np.testing.assert_array_equal, other, variables)


def test_outputs_are_centred(variables):
  heads = variables['params']
  for layer in (heads['box_head']['fc6'], heads['rpn_head']['objectness']):
    kernel = layer['kernel']
    sums = kernel.sum(axis=tuple(range(kernel.ndim - 1)))
    np.testing.assert_allclose(sums, 0.0, atol=1e-4)


def test_deviations_follow_the_formula(variables):
  kernel = variables['params']['backbone']['stage5']['block2']['conv2'][
    'kernel'
  ]
  fan_in = np.prod(kernel.shape[:-1])
  # 36,864 values: their deviation is known to half a per cent.
  assert kernel.std() == pytest.approx(np.sqrt(2 / fan_in), rel=0.02)
  deconv = variables['params']['mask_head']['deconv']['kernel']
  assert deconv.std() == pytest.approx(np.sqrt(2 / 16), rel=0.1)
  assert (
    variables['batch_stats']['backbone']['stem']['norm']['variance'].min()
    >= 1.0
  )
