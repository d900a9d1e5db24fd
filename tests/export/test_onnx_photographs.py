"""Models of published size as ONNX files, on photographs, in both runtimes.

The weights are those of the recordings: they follow from formulas.
"""

import functools

import drawn_checkpoint
import golden_files
import jax
import narrow_models
import numpy as np
import onnx_runtimes
import pytest
import recorded_detectron2
import recorded_torchvision
from PIL import Image

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.export import check, program
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.weights import external, load_report, tensor_files

pytest.importorskip('onnx', reason="onnx is missing: pip install '.[test]'")
from maskrcnn_jax.export import onnx_program

# A ResNet-50 each, in three programs.
pytestmark = pytest.mark.long

CANVAS = (256, 384)
PHOTOGRAPHS = (785, 404484)
MAX_DETECTIONS = 10
STATE_DICTS = {
  'torchvision': functools.partial(
    recorded_torchvision.state_dict, 'coco:torchvision'
  ),
  'torchvision_v2': functools.partial(
    recorded_torchvision.state_dict, 'coco:torchvision_v2'
  ),
  'detectron2': functools.partial(recorded_detectron2.state_dict, 'r50'),
  'detectron2_gn': functools.partial(recorded_detectron2.state_dict, 'gn'),
}


def make_model(folder, weights, variant):
  """A model that fills its detections, and its variables.

  Args:
    folder: where a file of weights may be written.
    weights: key of `STATE_DICTS`; None: drawn.
    variant: config with the options; None: those of the weights.
  """
  if weights is None:
    config = config_lib.load_config(variant)
  else:
    file = folder / 'weights.safetensors'
    tensor_files.write(file, STATE_DICTS[weights]())
    inferred = external.infer_model(file)
    config = config_lib.load_config(inferred.config, inferred.overrides)
    source = narrow_models.shapes(MaskRCNN.from_config(config.model))
    config = config_lib.load_config(variant) if variant else config
  config.model.detections.max_detections = MAX_DETECTIONS
  # A drawn model gives each of five classes of no image the same score.
  config.model.detections.score_threshold = 0.02 if weights else 0.25
  model = MaskRCNN.from_config(config.model)
  if weights is None:
    return model, drawn_checkpoint.draw_calm_variables(model)
  loaded = load_report.flatten(external.load(file, source)[0])
  # Group norm has no statistics, and a trainable norm is a parameter.
  return model, jax.tree_util.tree_map_with_path(
    lambda path, _: loaded['/'.join(key.key for key in path[1:])],
    narrow_models.shapes(model),
  )


def make_batch(count):
  """Photographs, and a row that is no image."""
  images = np.zeros((count, *CANVAS, 3), np.uint8)
  image_sizes = np.zeros((count, 2), np.float32)
  for row, number in enumerate(PHOTOGRAPHS[:count]):
    photo = golden_files.photograph(number)
    photo = photo.resize(CANVAS[::-1], Image.Resampling.BILINEAR)
    images[row], image_sizes[row] = photo, CANVAS
  return images, image_sizes


@pytest.mark.parametrize(
  'weights, variant',
  [
    ('torchvision', None),  # Frozen batch norm, symmetric pooling.
    ('torchvision_v2', None),  # Batch norm.
    ('torchvision', 'coco:habana_1x'),  # Frozen, same.
    ('torchvision', 'coco:from_scratch'),  # Group norm, same.
    ('detectron2', None),
    ('detectron2_gn', None),
    (None, 'shapes'),  # The demo's: batch norm, same.
  ],
)
def test_detections_are_those_of_jax(weights, variant, tmp_path):
  model, variables = make_model(tmp_path, weights, variant)
  stored = program.flatten_weights(variables)
  detect = jax.jit(program.detect_function(model))
  shapes = program.input_shapes(stored, CANVAS, None, 'uint8')
  converted = onnx_program.detection(model, stored, shapes, {})
  for count in (1, 3):
    images, image_sizes = make_batch(count)
    wanted = jax.tree.map(np.asarray, detect(stored, images, image_sizes))
    assert (wanted['valid'][:2].sum(axis=1) == MAX_DETECTIONS).all()
    for runtime in onnx_runtimes.RUNTIMES:
      found = onnx_runtimes.run(
        converted, {'images': images, 'image_sizes': image_sizes}, runtime
      )
      gaps = {k: abs(found[k] - wanted[k]).max() for k in check.TOLERANCES}
      print(weights, variant, count, runtime, wanted['valid'].sum(1), gaps)
      np.testing.assert_array_equal(found['valid'], wanted['valid'])
      np.testing.assert_array_equal(found['classes'], wanted['classes'])
      for name, tolerance in check.TOLERANCES.items():
        assert gaps[name] <= tolerance, (runtime, name)
