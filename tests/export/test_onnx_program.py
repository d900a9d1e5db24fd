"""Whole models as ONNX files: the detections of JAX in every runtime."""

import jax
import numpy as np
import onnx_runtimes
import pytest
import tiny_model
from drawn_checkpoint import draw_calm_variables

from maskrcnn_jax import config as config_lib
from maskrcnn_jax import override
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.export import check, program
from maskrcnn_jax.models.mask_rcnn import MaskRCNN

pytest.importorskip('onnx', reason="onnx is missing: pip install '.[test]'")
from maskrcnn_jax.export import onnx_program

# Each compiles a model and starts two runtimes.
pytestmark = pytest.mark.slow

CANVAS = (64, 96)
MAX_DETECTIONS = 15
CONVNEXT = {
  'kind': 'convnext',
  'convnext': {'blocks': (1, 1, 2, 1), 'widths': (8, 8, 16, 16), 'remat': True},
}
# Sections and fields of a config that only detection knows.
SECTIONS = ('anchors', 'test_proposals', 'roi_align', 'detections')
FIELDS = ('plus_one', 'box_weights', 'bgr')


def make_model(variant, norm, padding, pooling, nms='class', **options):
  """A tiny model that detects as a variant of `coco`."""
  if norm == 'convnext':
    options['backbone'] = CONVNEXT
  model = tiny_model.make_model(norm, 0, padding, pooling, **options)
  config = override.as_dict(model)
  published = config_lib.load_config(f'coco:{variant}').model.to_dict()
  config |= {name: published[name] for name in (*SECTIONS, *FIELDS)}
  config['roi_align']['max_level'] = 5
  config['test_proposals'] |= {'pre_nms_top_k': 64, 'post_nms_top_k': 32}
  config['detections'] |= {
    'max_detections': MAX_DETECTIONS,
    'score_threshold': 0.25,
    'nms': nms,
  }
  return MaskRCNN.from_config(config)


def make_batch(count):
  """Noise with discs, faint noise, and a row that is no image."""
  rows = check.draw(CANVAS, (60, 90), 'uint8')
  rows.append((np.zeros_like(rows[0][0]), np.zeros(2, np.float32)))
  images, image_sizes = zip(*rows[:count])
  return np.stack(images), np.stack(image_sizes)


@pytest.mark.parametrize(
  'variant, norm, padding, pooling, options',
  [
    ('habana_1x', 'frozen', 'symmetric', 'same', {'nms': 'all'}),
    pytest.param(
      *('habana_1x', 'group', 'same', 'same', {'head_norm': {'kind': 'group'}}),
      marks=pytest.mark.long,
    ),
    ('torchvision', 'batch', 'symmetric', 'symmetric', {}),
    pytest.param(
      *('torchvision_v2', 'batch', 'same', 'symmetric'),
      {'rpn_convs': 2, 'box_convs': 1, 'head_norm': {'kind': 'batch'}},
      marks=pytest.mark.long,
    ),
    ('detectron2', 'frozen', 'symmetric', 'symmetric', {}),
    ('torchvision', 'convnext', 'symmetric', 'symmetric', {}),
  ],
)
def test_detections_are_those_of_jax(variant, norm, padding, pooling, options):
  model = make_model(variant, norm, padding, pooling, **options)
  variables = draw_calm_variables(model)
  weights = program.flatten_weights(variables)
  detect = jax.jit(program.detect_function(model))
  for batch_size, count in ((1, 1), (None, 3)):
    images, image_sizes = make_batch(count)
    shapes = program.input_shapes(weights, CANVAS, batch_size, 'uint8')
    converted = onnx_program.detection(model, weights, shapes, {'note': 'é'})
    wanted = jax.tree.map(np.asarray, detect(weights, images, image_sizes))
    # Exactly the largest number, and, without an image, none or only points.
    assert wanted['valid'][0].sum() == MAX_DETECTIONS
    for runtime in onnx_runtimes.RUNTIMES:
      found = onnx_runtimes.run(
        converted, {'images': images, 'image_sizes': image_sizes}, runtime
      )
      assert {k: x.dtype for k, x in found.items()} == {
        k: x.dtype for k, x in wanted.items()
      }
      np.testing.assert_array_equal(found['valid'], wanted['valid'])
      np.testing.assert_array_equal(found['classes'], wanted['classes'])
      for name, tolerance in check.TOLERANCES.items():
        np.testing.assert_allclose(
          found[name], wanted[name], atol=tolerance, err_msg=runtime
        )
  assert converted.metadata_props[0].value == 'é'
  # Weights are inside, once.
  size = sum(x.nbytes for x in weights.values())
  assert size < converted.ByteSize() < 1.2 * size + 1e5


def test_without_nms_without_a_limit_and_in_bfloat16():
  model = tiny_model.make_model(
    test_proposals={
      'pre_nms_top_k': None,
      'post_nms_top_k': 16,
      'iou_threshold': None,
    },
    # More than there are candidates.
    detections={'max_detections': 60},
    dtype='bfloat16',
    roi_align={'max_level': 5, 'dtype': 'bfloat16'},
  )
  weights = program.flatten_weights(draw_calm_variables(model))
  shapes = program.input_shapes(weights, CANVAS, 2, 'float32')
  converted = onnx_program.detection(model, weights, shapes, {})
  images, image_sizes = make_batch(2)
  inputs = {'images': images.astype(np.float32), 'image_sizes': image_sizes}
  detect = jax.jit(program.detect_function(program.in_float32(model)))
  wanted = detect(weights, *inputs.values())
  found = onnx_runtimes.run(converted, inputs, 'onnxruntime')
  assert 0 < wanted['valid'].sum() < 2 * 60
  for name, value in wanted.items():
    np.testing.assert_allclose(found[name], value, atol=1e-3, err_msg=name)


def test_the_check_refuses_another_model(tmp_path):
  model = tiny_model.make_model()
  weights = program.flatten_weights(draw_calm_variables(model))
  about = {
    'canvases': [{'canvas': list(CANVAS), 'onnx': 'detect.onnx'}],
    'batch_size': None,
  }
  shapes = program.input_shapes(weights, CANVAS, None, 'uint8')
  converted = onnx_program.detection(model, weights, shapes, {})
  (tmp_path / 'detect.onnx').write_bytes(converted.SerializeToString())
  rows = [check.draw(CANVAS, (60, 90), 'uint8')]

  def run():
    wanted = check.detect(model, weights, rows, None)
    return check.check(tmp_path, 'onnx', about, rows, lambda: wanted)

  (figures,) = run()
  assert figures['images'] == 2 and figures['detections'] > 20
  assert figures['missing'] == figures['added'] == 0
  name = 'params/mask_head/mask_logits/kernel'
  weights[name] = weights[name] * np.float32(1.01)
  with pytest.raises(UserError) as caught:
    run()
  assert caught.value.given['masks'] > check.TOLERANCES['masks']
  assert caught.value.given['missing'] == 0
