"""`predict` on COCO's images, some of them corrupt."""

import json
import os
import pathlib
import shutil

import browser
import drawn_checkpoint
import numpy as np
import pytest
import tiny_run
from PIL import Image

from maskrcnn_jax.cli import main as command
from maskrcnn_jax.datasets import prepare
from maskrcnn_jax.training import loop

DATA = pathlib.Path(os.environ.get('MASKRCNN_TEST_DATA', 'missing'))
COCO = DATA / 'coco-mini'
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not COCO.is_dir(), reason='MASKRCNN_TEST_DATA names no folder'
  ),
]
ANNOTATIONS = COCO / 'annotations' / 'instances_val2017.json'


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """A tiny model of COCO's classes, and records of two dozen images."""
  folder = tmp_path_factory.mktemp('records')
  truth = json.loads(ANNOTATIONS.read_text())
  image_ids = [image['id'] for image in truth['images'][:24]]
  prepare.prepare(
    COCO / 'val2017',
    ANNOTATIONS,
    folder / 'val',
    num_workers=1,
    image_ids=image_ids,
  )
  config = tiny_run.make_config(f'{folder}/val*', str(ANNOTATIONS))
  config.model.num_classes = 91
  config.model.detections.max_detections = 8
  config.input.canvases = ((96, 160), (160, 96))
  config.input.image_dtype = 'uint8'
  config.input.accurate_jpeg = True  # The pixels that predict sees.
  config.evaluation.batch_size = 4
  return config


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, config):
  workdir = tmp_path_factory.mktemp('run') / 'run'
  return drawn_checkpoint.write(workdir, config, classes=category_names())


def category_names():
  categories = json.loads(ANNOTATIONS.read_text())['categories']
  return {category['id']: category['name'] for category in categories}


def run(workdir, output, images, *flags):
  argv = ['predict', f'--workdir={workdir}', f'--output={output}', *flags]
  return command.main([*argv, '--images', *map(str, images)])


def in_order(results):
  return sorted(results, key=lambda x: (x['image_id'], -x['score'], x['bbox']))


def test_detections_in_files_equal_those_in_records(config, workdir, tmp_path):
  loop.evaluate(config, workdir)
  expected = json.loads((workdir / 'eval' / 'detections-4.json').read_text())
  seen = {result['image_id'] for result in expected}
  assert len(seen) == 24
  images = [COCO / 'val2017' / f'{image_id:012d}.jpg' for image_id in seen]
  flags = (f'--annotations={ANNOTATIONS}', '--batch_size=4')
  assert run(workdir, tmp_path / 'out', images, *flags) == 0
  results = json.loads((tmp_path / 'out' / 'detections.json').read_text())
  assert in_order(results) == in_order(expected)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """A copy of all images, with unusual ones and files that are no images."""
  folder = tmp_path_factory.mktemp('photos') / 'val2017'
  shutil.copytree(COCO / 'val2017', folder)
  (folder / 'text.jpg').write_text('No picture, whatever its name says.\n' * 40)
  (folder / 'empty.jpg').touch()
  rng = np.random.default_rng(0)
  for name, size in (('dot.png', (1, 1)), ('long.jpg', (200, 6000))):
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(image).save(folder / name)
  grey = Image.open(folder / '000000000785.jpg').convert('L')
  grey.save(folder / 'grey.jpg')
  return folder


@pytest.fixture(scope='module')
def output(workdir, photos, tmp_path_factory):
  output = tmp_path_factory.mktemp('output') / 'found'
  # A tiny model gives low scores to each of 91 classes.
  assert run(workdir, output, [photos], '--min_score=0.1') == 0
  return output


def test_all_real_images_are_detected_and_the_others_reported(
  output, photos, workdir, capfd, tmp_path
):
  images = json.loads((output / 'images.json').read_text())['images']
  names = {pathlib.Path(image['file_name']).name for image in images}
  real = {path.name for path in photos.iterdir()} - {'text.jpg', 'empty.jpg'}
  assert names == real and len(real) == 63
  sizes = {
    pathlib.Path(x['file_name']).name: (x['height'], x['width']) for x in images
  }
  assert sizes['dot.png'] == (1, 1) and sizes['long.jpg'] == (200, 6000)
  for image in images:
    with Image.open(output / image['picture']) as picture:
      assert picture.size[0] % image['width'] == 0  # Enlarged if anything.
  written = json.loads((output / 'predict.json').read_text())
  skipped = [pathlib.Path(x['file_name']).name for x in written['skipped']]
  assert sorted(skipped) == ['empty.jpg', 'text.jpg']
  results = json.loads((output / 'detections.json').read_text())
  # The 1x1 image may well have none.
  assert len({result['image_id'] for result in results}) >= 62

  odd = [photos / name for name in ('text.jpg', 'dot.png', 'empty.jpg')]
  assert run(workdir, tmp_path / 'out', odd) == 0
  assert run(workdir, tmp_path / 'out', odd, '--strict') == 2
  error = capfd.readouterr().err
  assert 'text.jpg' in error and 'empty.jpg' in error
  assert run(workdir, tmp_path / 'out', odd[1:2], '--strict') == 0


@browser.needs_chromium
def test_the_page_of_real_images_opens_in_a_browser(output, tmp_path):
  page = browser.Page(tmp_path / 'profile')
  page.open(output / 'index.html')
  page.wait("document.querySelector('figure canvas').style.width !== ''")
  page.run("document.querySelector('#only').click()")
  count = page.run("document.querySelector('#count').textContent")
  assert count.startswith('63 of 63 images, ')
  objects = int(count.split()[-2])
  assert objects > 63
  first = page.run("document.querySelector('[data-class]').textContent")
  page.click('#classes .all:nth-child(2)')
  page.click('[data-class]')
  count = page.run("document.querySelector('#count').textContent")
  name, number = first.rsplit(' ', 1)
  assert count.endswith(f', {number} objects') and 0 < int(number) < objects
  assert name in category_names().values()
  assert page.errors == [] and len(page.requests) == 1
  page.close()
