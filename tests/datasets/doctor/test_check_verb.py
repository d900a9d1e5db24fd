"""The command: exit status, files, and the pictures of the page."""

import base64
import io
import json
import re

import browser
import data_sets
import numpy as np
import pytest
from PIL import Image

from maskrcnn_jax.cli import main as command
from maskrcnn_jax.datasets import prepare


@pytest.fixture
def drawn(tmp_path):
  data = data_sets.draw_set(tmp_path / 'set')
  data.write()
  return data


def _argv(data, *more):
  images, annotations = data.paths('train')
  return ['check', f'--images={images}', f'--annotations={annotations}', *more]


def test_exit_status(drawn, capsys):
  images, annotations = drawn.paths('val')
  val = [f'--val_images={images}', f'--val_annotations={annotations}']
  assert command.main(_argv(drawn, *val)) == 0
  shown = capsys.readouterr()
  assert re.search(r'\n0 errors, \d+ warnings?, \d+ notes?\n', shown.out)
  assert not shown.err
  drawn.val['annotations'].append(drawn.val['annotations'][0])
  drawn.write()
  assert command.main(_argv(drawn, *val)) == 1
  assert 'error: duplicate_annotation_id (1)' in capsys.readouterr().out


def test_val_may_share_the_folder_of_the_images(drawn, capsys):
  drawn.val = drawn.train
  drawn.write()
  annotations = drawn.folder / 'val.json'
  assert command.main(_argv(drawn, f'--val_annotations={annotations}')) == 0
  assert 'image_in_both (3)' in capsys.readouterr().out


@pytest.mark.parametrize(
  'flags, message',
  [
    (['--val_images=x'], '--val_images needs --val_annotations'),
    (['--config.input.seed=3'], '--config.input.seed=3 needs --config'),
    (['--config=shape'], "did you mean 'shapes'"),
    (['--images=nowhere'], 'no folder of images nowhere'),
    (['--annotations=none.json'], 'none.json'),
  ],
)
def test_mistakes_of_the_command_line(drawn, flags, message, capsys):
  assert command.main(_argv(drawn, *flags)) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1


@pytest.mark.parametrize('text', ['[' * 10**5, '{"images": "\\ud800"}'])
def test_a_hostile_json_ends_in_one_line(drawn, text, capsys):
  path = drawn.folder / 'train.json'
  path.write_text(text)
  assert command.main(_argv(drawn, f'--html={drawn.folder}/a.html')) == 2
  error = capsys.readouterr().err
  assert str(path) in error and error.count('\n') == 1


def test_files_are_replaced_only_if_check_wrote_them(drawn, capsys):
  folder = drawn.folder
  flags = [f'--html={folder}/new/a.html', f'--json={folder}/new/a.json']
  assert command.main(_argv(drawn, *flags)) == 0
  before = (folder / 'new' / 'a.html').read_text()
  assert json.loads((folder / 'new' / 'a.json').read_text())['errors'] == 0
  drawn.train['annotations'].append(drawn.train['annotations'][0])
  drawn.write()
  assert command.main(_argv(drawn, *flags)) == 1
  assert (folder / 'new' / 'a.html').read_text() != before
  assert json.loads((folder / 'new' / 'a.json').read_text())['errors'] == 1
  capsys.readouterr()
  content = (folder / 'train.json').read_text()
  assert command.main(_argv(drawn, f'--json={folder}/train.json')) == 2
  assert f'--json {folder}/train.json' in capsys.readouterr().err
  assert (folder / 'train.json').read_text() == content
  assert command.main(_argv(drawn, f'--html={folder}')) == 2
  assert f'--html {folder}' in capsys.readouterr().err


def test_pictures_show_the_objects_that_were_found(drawn, capsys):
  drawn.train['annotations'][1]['area'] = 5  # The annotation 11 on image 1.
  drawn.write()
  path = drawn.folder / 'a.html'
  assert command.main(_argv(drawn, f'--html={path}')) == 0
  text = path.read_text()
  assert 'area_mismatch: 1.jpg, image 1, annotation 11' in text
  _, _, shown = text.partition('alt="area_mismatch: 1.jpg')
  (jpeg, *_) = re.findall(r'base64,([^"]+)', shown)
  with Image.open(io.BytesIO(base64.b64decode(jpeg))) as picture:
    pixels = np.asarray(picture).astype(int)
  # 200 x 150, twice as large. The object is 40 x 20 from x 43, y 32, in red.
  assert pixels.shape == (300, 400, 3)
  red, green, _ = np.moveaxis(pixels, -1, 0)
  inside = np.mean((red - green)[66:102, 90:164])
  outside = np.mean((red - green)[150:, :])
  assert inside > outside + 40
  addresses = re.findall(r'(?:src|href)="([^"]{0,20})', text)
  assert addresses and all(x.startswith('data:image') for x in addresses)


@pytest.mark.slow
def test_a_config_whose_records_are_there(drawn, capsys):
  prepare.prepare(*drawn.paths('train'), drawn.folder / 'train.tfrecord')
  flags = [
    '--config=shapes',
    f'--config.input.file_pattern={drawn.folder}/train-*.tfrecord',
    '--config.model.num_classes=3',
    '--config.input.batch_size=2',
    f'--html={drawn.folder}/a.html',
  ]
  assert command.main(_argv(drawn, *flags)) == 0
  text = (drawn.folder / 'a.html').read_text()
  assert text.count('on a canvas of 128 x 128, objects: 3"') == 12
  assert command.main(_argv(drawn, *flags[:-1])) == 0
  assert '--html FILE' in capsys.readouterr().out


def test_a_config_without_records_draws_the_rest(drawn, capsys):
  flags = ['--config=shapes', f'--html={drawn.folder}/a.html']
  pattern = f'--config.input.file_pattern={drawn.folder}/none-*'
  assert command.main(_argv(drawn, *flags, pattern)) == 0
  assert 'no_records' in capsys.readouterr().out
  text = (drawn.folder / 'a.html').read_text()
  assert 'Samples of train' in text and 'training step' not in text


@pytest.mark.slow
@browser.needs_chromium
def test_the_page_in_a_browser(drawn, tmp_path, capsys):
  drawn.train['annotations'][1]['area'] = 5
  drawn.train['annotations'].append(drawn.train['annotations'][0])
  drawn.write()
  path = drawn.folder / 'a.html'
  assert command.main(_argv(drawn, f'--html={path}')) == 1
  page = browser.Page(tmp_path / 'profile')
  try:
    page.open(path)
    assert page.run('document.images.length') >= 4
    page.wait('[...document.images].every(x => x.complete)')
    assert page.run('[...document.images].every(x => x.naturalWidth > 0)')
    assert page.run('document.querySelector("details.error").open')
    assert not page.run('document.querySelector("details.warning").open')
    page.click('details.warning summary')
    assert page.run('document.querySelector("details.warning").open')
    width = 'document.querySelector(".pictures img").clientWidth'
    small = page.run(width)
    page.click('.pictures img')
    assert page.run(width) == page.run('innerWidth') > 2 * small
    page.click('.pictures img')
    assert page.run(width) == small
    assert not page.errors
    assert page.requests == [path.resolve().as_uri()]
  finally:
    page.close()
