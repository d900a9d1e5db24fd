"""Predictor: the detections of an evaluation, for images of any size."""

import json
import re
import shutil

import drawn_checkpoint
import example_records
import numpy as np
import pytest
import tiny_run
from eight_devices import NUM_DEVICES, run_on_eight
from PIL import Image
from tiny_checkpoint import assert_same

import maskrcnn_jax
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import coco_results
from maskrcnn_jax.inference import views
from maskrcnn_jax.inference.predictor import Predictor
from maskrcnn_jax.training import loop

CANVASES = ((64, 96), (96, 64))


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  """Record pattern and COCO json of five images of three sizes."""
  folder = tmp_path_factory.mktemp('dataset')
  return tiny_run.write_dataset(folder, num_images=5)


CLASSES = {1: 'disc', 2: 'star'}  # Those of `tiny_run`.


@pytest.fixture(scope='module')
def config(dataset):
  config = tiny_run.make_config(*dataset)
  config.input.canvases = CANVASES
  config.input.image_dtype = 'uint8'
  config.model.detections.max_detections = 10
  config.evaluation.batch_size = 2
  return config


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, config):
  workdir = tmp_path_factory.mktemp('run') / 'run'
  return drawn_checkpoint.write(workdir, config, classes=CLASSES)


@pytest.fixture(scope='module')
def pairs(workdir):
  """A predictor of batches of two."""
  return Predictor(workdir, batch_size=2)


def draw_images(*sizes):
  """Images of noise."""
  rng = np.random.default_rng(0)
  return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def assert_close(one, other):
  """All but the last digits."""
  np.testing.assert_array_equal(one.classes, other.classes)
  np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-4)
  np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
  np.testing.assert_allclose(one.masks, other.masks, atol=1e-5)


@pytest.mark.slow
def test_detections_are_those_of_an_evaluation_bit_for_bit(
  config, workdir, pairs
):
  loop.evaluate(config, workdir)
  expected = json.loads((workdir / 'eval' / 'detections-4.json').read_text())
  # The images that `tiny_run.write_dataset` put into the records.
  images = [
    example_records.rectangles(
      *tiny_run.SIZES[index % 3], (index + 1) % 3, index
    )[0]
    for index in range(5)
  ]
  results = []
  for index, found in pairs.stream(images):
    results += coco_results.image_results(
      found, 7 + index, images[index].shape[:2]
    )
  assert len(results) >= 25
  for each in (results, expected):
    each.sort(key=lambda x: (x['image_id'], -x['score']))
  assert results == expected


@pytest.mark.slow
def test_images_of_any_size_compile_once_per_canvas(workdir):
  predictor = Predictor(workdir, batch_size=2)
  sizes = ((50, 70), (100, 60), (1, 1), (300, 20), (40, 90), (64, 96), (7, 999))
  found = predictor(draw_images(*sizes))
  assert len(found) == len(sizes)
  assert predictor._detect._cache_size() == len(CANVASES)
  for (height, width), one in zip(sizes, found):
    assert one.boxes.shape == (len(one.scores), 4)
    assert one.masks.shape == (len(one.scores), 28, 28)
    assert one.valid.all() and (np.diff(one.scores) <= 0).all()
    assert (one.boxes >= 0).all()
    assert (one.boxes <= np.tile([height, width], 2) * 1.0001).all()
  assert sum(len(one.boxes) for one in found) > 20


def test_an_image_does_not_depend_on_those_beside_it(pairs):
  images = draw_images((50, 70), (100, 60), (40, 90), (64, 96), (96, 64))
  together = pairs(images)
  for image, expected in zip(images, together):
    assert_same(pairs(image), expected)
  for one, expected in zip(pairs(images[::-1]), together[::-1]):
    assert_same(one, expected)


def test_a_stream_reads_little_ahead_and_yields_at_once(pairs):
  taken = []

  def images():
    for index, image in enumerate(draw_images(*[(50, 70)] * 9)):
      taken.append(index)
      yield image

  known = []
  for index, _ in pairs.stream(images()):
    known.append(index)
    # A batch that is yielded, one on the device, one being filled.
    assert len(taken) <= max(known) + 6
  assert known == list(range(9))


def test_one_image_several_and_none(pairs):
  (image,) = draw_images((50, 70))
  one = pairs(image)
  assert isinstance(one, maskrcnn_jax.Detections) and one.boxes.ndim == 2
  assert_same(pairs([image])[0], one)
  assert_same(pairs(np.stack([image, image]))[1], one)
  assert pairs([]) == []


def test_grey_and_alpha(pairs):
  (image,) = draw_images((50, 70))
  grey = image[..., 0]
  assert_same(pairs(grey), pairs(np.stack([grey] * 3, axis=-1)))
  alpha = np.concatenate([image, image[..., :1]], axis=-1)
  assert_same(pairs(alpha), pairs(image))


@pytest.mark.parametrize('mode', ['P', 'CMYK', 'L', 'LA', 'RGBA', '1', 'I;16'])
def test_pil_images_are_converted_by_their_mode(pairs, mode):
  (image,) = draw_images((50, 70))
  pil = Image.fromarray(image)
  if mode == 'P':
    pil = pil.convert('P', palette=Image.Palette.ADAPTIVE, colors=64)
    expected = pil.convert('RGB')
  elif mode == 'I;16':
    expected = pil.convert('L')
    pil = Image.fromarray(np.asarray(expected).astype(np.uint16) * 257)
  else:
    pil = pil.convert(mode)
    expected = pil.convert('RGB')
  expected = pairs(np.asarray(expected))
  assert_same(pairs(pil), expected)
  assert_same(pairs([pil, pil])[1], expected)


@pytest.mark.parametrize(
  'shape, dtype',
  [
    ((4, 5, 3), np.float32),
    ((4, 5, 2), np.uint8),
    ((4,), np.uint8),
    ((0, 5, 3), np.uint8),
  ],
)
def test_arrays_that_are_no_images(pairs, shape, dtype):
  with pytest.raises(ValueError, match=re.escape(str(shape))):
    pairs(np.zeros(shape, dtype))


@pytest.mark.parametrize(
  'argument, value',
  [
    ('batch_size', 0),
    ('num_devices', 10**6),
    ('scales', ()),
    ('scales', (1.0, -1.0)),
  ],
)
def test_wrong_options(workdir, argument, value):
  with pytest.raises(UserError) as error:
    Predictor(workdir, **{argument: value})
  assert (error.value.argument, error.value.given) == (argument, value)


def test_a_folder_without_checkpoint(tmp_path):
  with pytest.raises(FileNotFoundError, match=str(tmp_path)):
    Predictor(tmp_path)


def test_a_single_checkpoint_is_enough(workdir, tmp_path, pairs):
  shutil.copytree(workdir / 'checkpoints' / '4', tmp_path / 'alone')
  alone = Predictor(tmp_path / 'alone', batch_size=2)
  assert alone.class_names == pairs.class_names == CLASSES
  assert alone.config.input.canvases == CANVASES
  (image,) = draw_images((50, 70))
  assert_same(alone(image), pairs(image))


def test_the_newest_checkpoint_of_a_workdir(config, tmp_path):
  drawn_checkpoint.write(tmp_path / 'run', config, step=4)
  drawn_checkpoint.write(tmp_path / 'run', config, step=12, classes={1: 'new'})
  assert Predictor(tmp_path / 'run').class_names == {1: 'new'}


def test_the_name_in_the_package(pairs):
  assert maskrcnn_jax.Predictor is Predictor
  (image,) = draw_images((50, 70))
  picture = maskrcnn_jax.draw(image, pairs(image), pairs.class_names, 0.2)
  assert picture.shape == image.shape and (picture != image).any()


def mirror(found, width):
  """Detections of the mirrored image."""
  y1, x1, y2, x2 = found.boxes.T
  return found.replace(
    boxes=np.stack([y1, width - x2, y2, width - x1], axis=-1),
    masks=found.masks[..., ::-1],
  )


def test_mirroring_an_image_mirrors_its_detections(workdir):
  both = Predictor(workdir, batch_size=2, mirror=True)
  for image in draw_images((50, 70), (100, 60)):
    found = both(image)
    assert len(found.scores) >= 5
    assert_close(found, mirror(both(image[:, ::-1]), image.shape[1]))


@pytest.mark.slow
def test_scales_are_merged_and_the_plain_view_is_one_of_them(workdir, pairs):
  (image,) = draw_images((50, 70))
  plain = pairs(image)
  scaled = Predictor(workdir, batch_size=2, scales=(1.0, 0.5, 1.3))
  found = scaled(image)
  # The larger one needs a larger canvas, the smaller one does not.
  assert scaled._detect._cache_size() == 2
  # The best of all comes from some view; none is better in the plain one.
  assert found.scores[0] >= plain.scores[0]
  assert len(found.scores) <= 10
  # At the plain scale alone nothing is merged.
  assert_same(Predictor(workdir, batch_size=2, scales=(1.0,))(image), plain)


def test_the_canvas_of_a_scale(workdir):
  predictor = Predictor(workdir, scales=(0.5, 1.0, 1.3), mirror=True)
  (image,) = draw_images((50, 70))
  rows = list(predictor._rows([image]))
  # 50x70 fits 64x96 at 1.28, 32x48 at 0.64 and 83x125 at 1.66.
  assert [
    (inputs['images'].shape[:2], inputs['image_sizes'].tolist())
    for *_, inputs in rows[::2]
  ] == [((64, 96), [32, 44]), ((64, 96), [64, 89]), ((96, 128), [83, 116])]
  # Each plain and mirrored.
  seen = [(view.scale, view.mirrored) for view in rows[0][0].views]
  assert seen == [(x, flag) for x in (0.5, 1.0, 1.3) for flag in (False, True)]
  for (*_, plain), (*_, mirrored) in zip(rows[::2], rows[1::2]):
    assert not np.array_equal(plain['images'], mirrored['images'])


def test_images_that_fit_into_a_tile_stay_as_they_are(workdir, pairs):
  tiled = Predictor(workdir, batch_size=2, tile=views.TileOptions())
  for image in draw_images((50, 70), (90, 60), (64, 96)):
    assert_same(tiled(image), pairs(image))


def test_tiles_give_the_detections_of_images_of_their_own(workdir, pairs):
  options = views.TileOptions(size=64, min_score=0.3)
  tiled = Predictor(workdir, batch_size=2, tile=options)
  (image,) = draw_images((100, 150))
  found = tiled(image)
  tiles = list(views.cut_tiles(image, (64, 64), options))
  assert len(tiles) == 2 * 3 + 2 + 1
  # Every detection is one that a tile has as an image of its own, moved.
  seen = [pairs(np.ascontiguousarray(tile.pixels)) for tile in tiles]
  known = [
    (one.boxes + np.tile(tile.start, 2)) * tile.reduced
    for one, tile in zip(seen, tiles)
  ]
  known = np.minimum(np.concatenate(known), [100, 150, 100, 150])
  distances = np.abs(known[None] - found.boxes[:, None]).max(axis=-1)
  assert distances.min(axis=1).max() < 1e-3
  assert len(found.scores) >= 3 and found.scores.min() >= 0.3
  # More than a single view may have.
  assert len(found.scores) > 10 or len(found.scores) < sum(
    (one.scores >= 0.3).sum() for one in seen
  )


_EIGHT = """
from maskrcnn_jax import Predictor
from maskrcnn_jax.evaluation import coco_results
(workdir,) = arguments
rng = np.random.default_rng(0)
sizes = ((50, 70), (40, 90), (64, 96), (30, 40), (7, 9))
images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
found = {}
for num_devices in (1, None):
  predictor = Predictor(workdir, batch_size=3, num_devices=num_devices)
  found[str(num_devices)] = [
    coco_results.image_results(one, index, image.shape[:2])
    for index, (one, image) in enumerate(zip(predictor(images), images))
  ]
print(json.dumps({**found, 'devices': len(jax.devices())}))
"""


@pytest.mark.slow
def test_devices_share_a_batch(workdir):
  answer = run_on_eight(_EIGHT, str(workdir))
  assert answer['devices'] == NUM_DEVICES
  assert sum(map(len, answer['1'])) > 20
  for one, other in zip(answer['1'], answer['None']):
    assert [x['category_id'] for x in one] == [x['category_id'] for x in other]
    for a, b in zip(one, other):
      np.testing.assert_allclose(a['score'], b['score'], atol=1e-5)
      np.testing.assert_allclose(a['bbox'], b['bbox'], atol=1e-3)
