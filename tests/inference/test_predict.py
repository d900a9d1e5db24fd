"""The verb `predict`: files in, files out."""

import concurrent.futures
import contextlib
import functools
import io
import json
import pathlib
import types

import drawn_checkpoint
import jax
import narrow_models
import numpy as np
import pytest
import small_disk
import tiny_run
from found import make_found
from PIL import Image
from plain_evaluation import to_results
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskrcnn_jax import visualize
from maskrcnn_jax.checkpoints import store
from maskrcnn_jax.cli import main as command
from maskrcnn_jax.evaluation import coco_results
from maskrcnn_jax.inference import detection, image_files, predict, writer
from maskrcnn_jax.inference.image_files import ImageFile
from maskrcnn_jax.inference.predictor import Predictor
from maskrcnn_jax.input_pipeline import resizing, single_images
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.weights import tensor_files, torchvision

NAMES = drawn_checkpoint.CLASSES
CATEGORY_IDS = {1: 7, 2: 0}  # Class 2 is the one that is detected.
# Of a stranger; every use of a field would fail.
RUNTIME = {
  'backend': 'abacus',
  'compilation_cache': '/planted/cache',
  'plugin_path': '/planted/plugin.so',
  'coordinator_address': 'planted.invalid:1',
  'num_processes': 2,
  'process_id': 1,
}


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  config = tiny_run.make_config('none', 'none')
  config.input.canvases = ((64, 96),)
  config.input.image_dtype = 'uint8'
  config.runtime = RUNTIME
  classes = {
    i: {'name': name, 'category_id': CATEGORY_IDS[i]}
    for i, name in NAMES.items()
  }
  folder = tmp_path_factory.mktemp('run') / 'run'
  return drawn_checkpoint.write(folder, config, classes=classes)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """A folder with three images, two of one name, and three broken files."""
  folder = tmp_path_factory.mktemp('photos')
  rng = np.random.default_rng(0)
  (folder / 'sub').mkdir()
  for name, shape in (
    ('a.jpg', (60, 80, 3)),
    ('b.png', (90, 50, 3)),
    ('sub/a.png', (30, 100)),
  ):
    image = rng.integers(0, 256, shape, np.uint8)
    Image.fromarray(image).save(folder / name)
  (folder / 'empty.jpg').touch()
  (folder / 'text.jpg').write_text('This is no picture.\n' * 9)
  (folder / 'cut.jpg').write_bytes((folder / 'a.jpg').read_bytes()[:900])
  (folder / 'notes.txt').write_text('Skipped.')
  return folder


def run(workdir, output, *flags, images, expected=0):
  """Runs the command."""
  argv = ['predict', f'--workdir={workdir}', f'--output={output}', *flags]
  code = command.main([*argv, '--batch_size=2', '--images', str(images)])
  assert code == expected


def read(output, name):
  return json.loads((output / name).read_text())


@pytest.fixture(scope='module')
def finished(workdir, photos, tmp_path_factory):
  """Output folder, stdout and stderr of a run with `--strict`."""
  output = tmp_path_factory.mktemp('output') / 'found'
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    flags = ('--min_score=0.2', '--strict')
    run(workdir, output, *flags, images=photos, expected=2)
  return output, out.getvalue(), err.getvalue()


@pytest.fixture(scope='module')
def output(finished):
  return finished[0]


@pytest.fixture(scope='module')
def predictor(workdir):
  return Predictor(workdir, batch_size=2)


def test_the_files_of_a_run(output):
  files = {
    p.relative_to(output).as_posix() for p in output.rglob('*') if p.is_file()
  }
  assert files == {
    *('detections.json', 'images.json', 'index.html', 'predict.json'),
    *(f'pictures/{name}.png' for name in ('a', 'a-2', 'b')),
  }
  page = (output / 'index.html').read_text()
  for name in ('a.jpg', 'b.png', 'sub/a.png'):
    assert f'"name":"{name}"' in page


def test_no_runtime_field_of_the_checkpoint_is_used(workdir, photos, tmp_path):
  assert read(workdir, 'config.json')['runtime'] == RUNTIME
  cache = 'jax_compilation_cache_dir'
  before = jax.config.values[cache]
  jax.config.update(cache, None)  # A cache that is set stays.
  try:
    # Without --strict, files that cannot be read are no failure.
    run(workdir, tmp_path / 'out', '--compilation_cache=', images=photos)
    assert jax.config.values[cache] is None
  finally:
    jax.config.update(cache, before)
  assert len(read(tmp_path / 'out', 'predict.json')['skipped']) == 3


def test_images_and_classes_behind_the_ids(output, photos):
  content = read(output, 'images.json')
  images = {
    pathlib.Path(image['file_name']).relative_to(photos).as_posix(): image
    for image in content['images']
  }
  assert set(images) == {'a.jpg', 'b.png', 'sub/a.png'}
  # All six files were numbered, in the order of their names.
  assert [images[name]['id'] for name in images] == [1, 2, 5]
  assert images['sub/a.png']['picture'] == 'pictures/a-2.png'
  assert (images['b.png']['height'], images['b.png']['width']) == (90, 50)
  assert content['categories'] == [
    {'id': CATEGORY_IDS[i], 'name': name} for i, name in NAMES.items()
  ]


def test_results_are_those_of_the_predictor(output, predictor):
  expected = []
  for image in read(output, 'images.json')['images']:
    pixels = image_files.read(image['file_name'])
    found = predictor(pixels)
    results = coco_results.image_results(found, image['id'], pixels.shape[:2])
    # Classes have the ids of the annotations.
    expected += [
      {**result, 'category_id': CATEGORY_IDS[result['category_id']]}
      for result in results
    ]
  assert 0 in {result['category_id'] for result in expected}
  assert len(expected) >= 6
  assert read(output, 'detections.json') == json.loads(json.dumps(expected))


def test_results_are_coco_results(output):
  content = read(output, 'images.json')
  truth = COCO()
  truth.dataset = {**content, 'annotations': [], 'info': {}}
  truth.createIndex()
  loaded = truth.loadRes(str(output / 'detections.json'))
  sizes = {x['id']: (x['height'], x['width']) for x in content['images']}
  for result in loaded.dataset['annotations']:
    mask = coco_mask.decode(result['segmentation'])
    assert mask.shape == sizes[result['image_id']]
    assert result['category_id'] in truth.cats


def test_pictures_show_the_detections(output, photos, predictor):
  pixels = image_files.read(photos / 'b.png')
  expected = visualize.draw(
    pixels, predictor(pixels), NAMES, min_score=0.2, enlarge=5
  )
  picture = np.asarray(Image.open(output / 'pictures' / 'b.png'))
  np.testing.assert_array_equal(picture, expected)
  assert (picture != pixels.repeat(5, 0).repeat(5, 1)).any()


def test_unreadable_files_are_reported(finished, photos):
  output, out, err = finished
  assert out.startswith('3 images ')
  names = {'empty.jpg', 'text.jpg', 'cut.jpg'}
  for name in names:
    assert str(photos / name) in err
  written = read(output, 'predict.json')
  assert written['complete']
  assert {pathlib.Path(x['file_name']).name for x in written['skipped']} == (
    names
  )
  # With --strict, in the end.
  assert '3 of 6' in err.splitlines()[-1]


def test_no_readable_file_is_an_error_before_the_model_is_loaded(
  photos, tmp_path, capfd
):
  empty = photos / 'empty.jpg'
  run('nowhere', tmp_path / 'out', images=empty, expected=2)
  first, last = capfd.readouterr().err.splitlines()[-2:]
  assert str(empty) in first and 'none of 1' in last
  assert not (tmp_path / 'out').exists()


def test_a_second_run_replaces_the_first(workdir, photos, tmp_path):
  for name in ('a.jpg', 'b.png'):
    (tmp_path / name).write_bytes((photos / name).read_bytes())
    # The output of the first run lies in the folder, and is skipped.
    run(workdir, tmp_path / 'out', '--strict', images=tmp_path)
    (tmp_path / name).unlink()
  pictures = (tmp_path / 'out' / 'pictures').iterdir()
  assert [path.name for path in pictures] == ['b.png']


@pytest.mark.parametrize('free', [0, 3, 8, 16])
def test_a_full_disk_leaves_no_half_files(
  free, workdir, photos, tmp_path, capfd
):
  with (
    small_disk.mounted(tmp_path / 'disk', 2**20) as disk,
    small_disk.nearly_full(disk, free * small_disk.PAGE),
  ):
    run(workdir, disk / 'out', images=photos, expected=2)
    assert str(disk) in capfd.readouterr().err.splitlines()[-1]
    written = [x for x in (disk / 'out').rglob('*') if x.is_file()]
    for path in written:
      assert path.stat().st_size > 0 and not path.name.startswith('.')
      if path.suffix == '.png':
        Image.open(path).load()


@pytest.mark.parametrize(
  'flags, message',
  [
    ({'workdir': 'nowhere'}, 'nowhere'),
    ({'workdir': __file__}, 'import_weights'),
    ({'flag': '--tile_overlap=0.5'}, '--tile_overlap'),
    ({'images': 'nowhere/*.jpg'}, 'nowhere/*.jpg'),
    ({'output': 'mine'}, 'mine'),
  ],
)
def test_errors_come_before_anything_is_written(
  flags, message, workdir, photos, tmp_path, capfd
):
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'index.html').write_text('mine')  # Not by `predict`.
  image = photos / 'b.png'
  options = {'workdir': workdir, 'images': image, 'flag': '--strict'}
  options |= {'output': 'out', **flags}
  output, flag = tmp_path / options['output'], options['flag']
  run(options['workdir'], output, flag, images=options['images'], expected=2)
  error = capfd.readouterr().err
  assert message in error and error.count('\n') == 1
  files = [x for x in tmp_path.rglob('*') if x.is_file()]
  assert files == [tmp_path / 'mine' / 'index.html']


@pytest.mark.slow
def test_imported_weights_detect(photos, tmp_path):
  """Weights of another program, by commands alone."""
  variables = drawn_checkpoint.draw_variables(
    narrow_models.make_model(depth=18, num_classes=4)
  )
  source = tmp_path / 'weights.pth'
  tensor_files.write(source, torchvision.state_dict(variables))
  argv = ['import_weights', f'--source={source}', f'--output={tmp_path}/run']
  canvas = '--config.input.canvases=((64, 96),)'
  fit = '--config.input.resize.fit_size=(64, 96)'
  assert command.main([*argv, canvas, fit]) == 0
  run(tmp_path / 'run', tmp_path / 'out', images=photos / 'b.png')
  results = read(tmp_path / 'out', 'detections.json')
  # The same, without a file or a folder in between.
  config = store.restore(tmp_path / 'run')[1]
  model = MaskRCNN.from_config(config.model)
  row = single_images.fit_image(
    image_files.read(photos / 'b.png'),
    (64, 96),
    (64, 96),
    'uint8',
    resizing.ResizeOptions(**config.input.resize),
  )
  expected = to_results(
    jax.jit(functools.partial(detection.detect, model))(
      variables, row['images'][None], row['image_sizes'][None]
    ),
    *(np.array([1]), row['original_sizes'][None], row['scales'][None]),
    np.ones(1, bool),
  )
  assert len(results) == len(expected) > 3
  for result, other in zip(results, expected):
    assert result['category_id'] == other['category_id']
    np.testing.assert_allclose(result['score'], other['score'], atol=1e-4)
    np.testing.assert_allclose(result['bbox'], other['bbox'], atol=0.02)


@pytest.mark.slow
def test_flags_reach_the_predictor(workdir, photos, tmp_path):
  flags = ['--tile=64', '--tile_overlap=0.5', '--tile_levels=1', '--tta=1']
  run(workdir, tmp_path / 'out', *flags, images=photos / 'b.png')
  written = read(tmp_path / 'out', 'predict.json')
  tile = {name: written['tile'][name] for name in ('size', 'overlap', 'levels')}
  assert tile == {'size': 64, 'overlap': 0.5, 'levels': 1}
  assert written['scales'] == [1.0]
  assert written['mirror'] is True
  results = read(tmp_path / 'out', 'detections.json')
  assert results and all(result['score'] >= 0.05 for result in results)


def test_very_large_pictures_are_reduced(monkeypatch):
  monkeypatch.setattr(writer, '_LARGEST_PICTURE', 100_000)
  image = np.random.default_rng(0).integers(0, 256, (500, 1500, 3), np.uint8)
  masks = np.ones((1, 28, 28), np.float32)
  found = make_found([[90, 300, 390, 900]], masks=masks)
  picture = writer.draw(image, found, None, 0.5)
  small = np.asarray(Image.fromarray(image).reduce(3))
  assert picture.shape == (167, 500, 3)
  changed = np.flatnonzero((picture != small).any(axis=(0, 2)))
  # The mask grows by a part of its outermost cells.
  assert 96 <= changed[0] <= 100 and 299 <= changed[-1] <= 303


def test_a_large_image_is_not_read_ahead(photos, monkeypatch):
  names = ('a.jpg', 'b.png', 'empty.jpg', 'sub/a.png')
  files = [
    ImageFile(photos / name, number, None, '', '')
    for number, name in enumerate(names * 4)
  ]
  readable = [file for file in files if file.path.name != 'empty.jpg']
  for large, most in ((predict._LARGE, predict._WORKERS), (10, 0)):
    monkeypatch.setattr(predict, '_LARGE', large)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      found, submitted, skipped = [], [], {}

      def submit(*call, submitted=submitted, pool=pool):
        submitted.append(call)
        return pool.submit(*call)

      counter = types.SimpleNamespace(submit=submit)
      for file, image in predict._read_all(files, counter, skipped):
        found.append(file)
        assert image.ndim == 3
        done = len(found) + len(skipped)
        # The first one is not known to be large.
        if done > predict._WORKERS + 1:
          assert len(submitted) <= done + most
    assert found == readable
    assert [*skipped] == [file for file in files if file not in readable]
