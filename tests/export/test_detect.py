"""`detect.py` of an export: the detections of `Predictor`."""

import hashlib
import json

import drawn_checkpoint
import numpy as np
import pytest
import tiny_run
from PIL import Image

from maskrcnn_jax.evaluation import mask_pasting
from maskrcnn_jax.export import detect, exporter
from maskrcnn_jax.inference.predictor import Predictor
from maskrcnn_jax.input_pipeline import resizing, single_images

CANVASES = ((64, 96), (96, 64))


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  config = tiny_run.make_config('', '')
  config.input.canvases = CANVASES
  config.input.image_dtype = 'uint8'
  config.model.detections.max_detections = 10
  config.model.detections.mask_pasting = 'continuous'
  return drawn_checkpoint.write(tmp_path_factory.mktemp('run') / 'run', config)


def draw_image(*size):
  return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


def test_images_are_read_as_rgb_and_wide_ones_refused(tmp_path):
  grey = draw_image(4, 5)[..., 0]
  path = tmp_path / 'image.tif'
  Image.fromarray(grey).save(path)
  np.testing.assert_array_equal(detect.read(path), np.stack([grey] * 3, -1))
  for wide in (grey.astype(np.uint16) * 256, grey / np.float32(255)):
    Image.fromarray(wide).save(path)
    with pytest.raises(ValueError, match=r'image\.tif'):
      detect.read(path)


@pytest.mark.parametrize('exact', [False, True])
@pytest.mark.parametrize('image_dtype', ['uint8', 'float32'])
@pytest.mark.parametrize(
  'size', [(50, 70), (130, 61), (64, 96), (1, 1), (2, 700), (95, 64)]
)
def test_resizing_is_that_of_training(tmp_path, size, image_dtype, exact):
  options = resizing.ResizeOptions(fit_size=(60, 90), exact_sizes=exact)
  fits = [resizing.fit_size(canvas, options) for canvas in CANVASES]
  about = {
    'canvases': [
      {'canvas': canvas, 'fit': fit, 'program': f'of {canvas}'}
      for canvas, fit in zip(CANVASES, fits)
    ],
    'resize': {'exact_sizes': exact},
    'inputs': {'images': {'dtype': image_dtype}},
  }
  np.savez(tmp_path / 'weights.npz')
  weights = (tmp_path / 'weights.npz').read_bytes()
  about['sha256'] = {'weights.npz': hashlib.sha256(weights).hexdigest()}
  (tmp_path / 'export.json').write_text(json.dumps(about))
  image = draw_image(*size)
  pixels, image_size, scales, name = detect.Detector(tmp_path).fit(image)
  chosen = single_images.choose_canvas(size, fits)
  assert name == f'of {CANVASES[chosen]}'
  wanted = single_images.fit_image(
    image, CANVASES[chosen], fits[chosen], image_dtype, options
  )
  np.testing.assert_array_equal(image_size, wanted['image_sizes'])
  np.testing.assert_array_equal(scales, wanted['scales'])
  assert pixels.dtype == wanted['images'].dtype
  np.testing.assert_array_equal(pixels, wanted['images'])


@pytest.mark.parametrize(
  'box',
  [
    [10.2, 5.7, 30.9, 50.1],
    [-8, -3, 12, 20],  # Over the edge.
    [35, 50, 70, 90],
    [3, 3, 3, 3],
    [20.4, 20.4, 20.6, 41],
    [60, 10, 80, 20],  # Outside.
  ],
)
def test_pasting_is_that_of_evaluation(box):
  mask = np.random.default_rng(1).random((28, 28), np.float32)
  box = np.float32(box)
  wanted = mask_pasting.paste_masks(mask[None], box[None], (40, 60))[0]
  np.testing.assert_array_equal(detect.paste(mask, box, (40, 60)), wanted)


@pytest.mark.slow
def test_detections_are_those_of_the_predictor(workdir, tmp_path):
  options = exporter.ExportOptions(batch_size=2, platforms=('cpu',))
  exporter.export(workdir, tmp_path / 'exported', options)
  finds = detect.Detector(tmp_path / 'exported')
  predictor = Predictor(workdir, batch_size=2)
  for size in ((50, 70), (130, 61)):
    image = draw_image(*size)
    found, wanted = finds(image), predictor(image)
    assert len(found['scores']) == 10
    np.testing.assert_array_equal(found['classes'], wanted.classes)
    np.testing.assert_allclose(found['scores'], wanted.scores, atol=1e-5)
    np.testing.assert_allclose(found['boxes'], wanted.boxes, atol=1e-3)
    masks = mask_pasting.paste_masks(
      wanted.masks, wanted.boxes, size, 'continuous'
    )
    assert np.mean(found['masks'] != masks) < 1e-3
  # A changed bit is found before JAX parses the program.
  (program, *_) = (tmp_path / 'exported').glob('*.jax_export')
  data = program.read_bytes()
  program.write_bytes(bytes([data[0] ^ 1]) + data[1:])
  with pytest.raises(ValueError, match=program.name):
    detect.Detector(tmp_path / 'exported')._program(program.name)
