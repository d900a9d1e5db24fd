"""Exported models without this package, run by the code of docs/export.md."""

import json
import pathlib
import re

import drawn_checkpoint
import export_process
import jax
import numpy as np
import pytest
from PIL import Image

from maskrcnn_jax import config as config_lib
from maskrcnn_jax.export import exporter
from maskrcnn_jax.inference import detection
from maskrcnn_jax.models.mask_rcnn import MaskRCNN

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
CANVAS = (64, 96)
# Images of the call; the last one is padding, which has no detections.
BATCH = 3
OURS = ('maskrcnn_jax', 'flax', 'optax', 'orbax', 'ml_collections')
JAX_ALONE = (*OURS, 'tensorflow', 'PIL', 'pycocotools')
TENSORFLOW_ALONE = (*OURS, 'jax', 'jaxlib', 'PIL', 'pycocotools')
# Runs the code of the page and saves its detections.
_RUN = """
import numpy as np
with np.load('input.npz') as inputs:
  names = dict(inputs)
exec(open('page.py').read(), names)
found = {k: np.asarray(v) for k, v in names['found'].items()}
np.savez('found.npz', **found)
"""


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  """A folder with an export and inputs, and the detections of `detect`."""
  folder = tmp_path_factory.mktemp('fresh')
  config = config_lib.load_config('shapes')
  config.input.canvases = (CANVAS,)
  # A random model gives every class of an empty image the same score.
  config.model.detections.score_threshold = 0.25
  model = MaskRCNN.from_config(config.model)
  variables = drawn_checkpoint.draw_variables(model)
  # Random logits of 50, and boxes enlarged sixtyfold, would amplify the last
  # bits, in which compilers differ.
  for head, name, factor in (
    ('rpn_head', 'box_deltas', 0.1),
    ('box_head', 'class_logits', 0.03),
    ('box_head', 'box_deltas', 0.1),
    ('mask_head', 'mask_logits', 0.02),
  ):
    variables['params'][head][name]['kernel'] *= factor
  drawn_checkpoint.write(
    folder / 'run', config, classes={1: 'disc'}, variables=variables
  )
  options = exporter.ExportOptions(formats=('stablehlo', 'saved_model'))
  exporter.export(folder / 'run', folder / 'exported', options)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (BATCH, *CANVAS, 3), np.uint8)
  image_sizes = np.float32([CANVAS] * BATCH) - 3
  images[-1], image_sizes[-1] = 0, 0
  np.savez(folder / 'input.npz', images=images, image_sizes=image_sizes)
  wanted = detection.detect(model, variables, images, image_sizes)
  return folder, jax.tree.map(np.asarray, wanted)


def example(word):
  """The Python example of the page that contains a word."""
  text = (ROOT / 'docs' / 'export.md').read_text(encoding='utf-8')
  codes = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  (code,) = [code for code in codes if word in code]
  assert '832x1344' in code
  return code.replace('832x1344', f'{CANVAS[0]}x{CANVAS[1]}')


def assert_detections(folder, expected):
  with np.load(folder / 'found.npz') as found:
    found = dict(found)
  assert expected.valid[:-1].any(axis=1).all()
  assert not expected.valid[-1].any()
  np.testing.assert_array_equal(found['valid'], expected.valid)
  np.testing.assert_array_equal(found['classes'], expected.classes)
  np.testing.assert_allclose(found['scores'], expected.scores, atol=1e-5)
  np.testing.assert_allclose(found['masks'], expected.masks, atol=1e-5)
  # Of the side of the canvas.
  boxes, wanted_boxes = found['boxes'] / 96, expected.boxes / 96
  np.testing.assert_allclose(boxes, wanted_boxes, atol=1e-5)
  assert found['boxes'].shape == (BATCH, 20, 4)
  for name in ('boxes', 'scores', 'classes'):
    assert not found[name][-1].any()


def test_jax_alone_gives_the_detections_of_detect(exported):
  folder, wanted = exported
  (folder / 'page.py').write_text(example('export.deserialize'))
  export_process.run(_RUN, JAX_ALONE, folder)
  assert_detections(folder, wanted)


def test_tensorflow_alone_gives_the_detections_of_detect(exported):
  folder, wanted = exported
  (folder / 'page.py').write_text(example('tf.saved_model'))
  export_process.run(_RUN, TENSORFLOW_ALONE, folder)
  assert_detections(folder, wanted)


def test_the_example_reads_image_files(exported):
  folder, _ = exported
  rng = np.random.default_rng(9)
  Image.fromarray(rng.integers(0, 256, (80, 120, 3), np.uint8)).save(
    folder / 'noise.png'
  )
  shown = export_process.run(
    "import detect; detect.main(['../noise.png', '--min_score=0.25'])",
    tuple(name for name in JAX_ALONE if name != 'PIL'),
    folder / 'exported',
  )
  (line,) = map(json.loads, shown.splitlines())
  assert line['file'] == '../noise.png'
  assert line['objects']
  for found in line['objects']:
    assert found['class'] in ('', 'disc') and found['score'] >= 0.25
    x1, y1, width, height = found['bbox']
    y2, x2 = y1 + height, x1 + width
    assert min(y1, y2) >= 0 and max(y1, y2) <= 80
    assert min(x1, x2) >= 0 and max(x1, x2) <= 120
