"""The page of detections: its data, and its behaviour in a real browser."""

import base64
import io
import json
import re

import browser
import numpy as np
import pytest
from browser import needs_chromium
from found import make_found
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_jax import visualize
from maskrcnn_jax.inference import browse

NAMES = {1: 'disc', 2: '</script><b>star & "co"'}


def make_solid(boxes, scores, classes):
  """Detections whose masks fill their boxes."""
  masks = np.ones((len(boxes), 28, 28), np.float32)
  return make_found(boxes, scores, classes, masks)


def grey(height=60, width=80, value=120):
  return np.full((height, width, 3), value, np.uint8)


def decode(jpeg):
  return Image.open(io.BytesIO(base64.b64decode(jpeg)))


def make_page(entries, min_score=0.5):
  texts, jpegs = zip(*entries) if entries else ((), ())
  return ''.join(browse.make_page(texts, jpegs, NAMES, min_score))


def read_scripts(page):
  """Texts of script elements by id, delimited as in a browser."""
  pattern = r'<script[^>]* id="(\w+)">(.*?)</script>'
  return dict(re.findall(pattern, page, re.DOTALL))


def test_an_entry():
  found = make_solid(
    [[12, 16, 36, 64], [0, 0, 6, 8], [0, 0, 60, 80]],
    [0.9, 0.87654, 0.3],
    [1, 2, 1],
  )
  text, jpeg = browse.make_entry('a.jpg', grey(), found, 40, 0.5)
  entry = json.loads(text)
  assert (entry['name'], entry['height'], entry['width']) == ('a.jpg', 30, 40)
  picture = decode(jpeg)
  assert picture.format == 'JPEG' and picture.size == (40, 30)
  # Half as large, like the picture; the last score is too low.
  assert [x['box'] for x in entry['found']] == [[8, 6, 24, 12], [0, 0, 4, 3]]
  assert [x['score'] for x in entry['found']] == [0.9, 0.8765]
  assert [x['class'] for x in entry['found']] == [1, 2]
  counts = entry['found'][0]['mask']
  mask = coco_mask.decode({'size': [30, 40], 'counts': counts})
  assert mask[6:18, 8:32].all() and mask.sum() <= 14 * 26


@pytest.mark.parametrize(
  'size, reduced', [((1, 1), (1, 1)), ((2, 3000), (1, 640))]
)
def test_a_small_side_keeps_a_pixel(size, reduced):
  found = make_found([[0, 0, 1, 1]])  # Of a model without masks.
  text, _ = browse.make_entry('a', grey(*size), found, 640, 0.0)
  entry = json.loads(text)
  assert (entry['height'], entry['width']) == reduced
  assert entry['found'][0]['mask'] is None


def test_pages_of_many_images_have_smaller_pictures():
  sides = [browse.picture_side(n) for n in (1, 100, 101, 1000, 5000, 10**6)]
  assert sides == [1024, 1024, 640, 640, 400, 256]


def test_the_page_holds_all_data_and_makes_no_requests():
  found = make_solid([[12, 16, 36, 64]], [0.9], [2])
  entries = [
    browse.make_entry(name, grey(value=value), found, 640, 0.0)
    for name, value in (('<i>a.jpg', 10), ('</script>b.jpg', 200))
  ]
  page = make_page(entries, 0.25)
  assert not re.search(r'<\w[^>]*\s(src|href)=', page)
  scripts = read_scripts(page)
  data = json.loads(scripts['data'])
  assert data['classes'] == {str(k): v for k, v in NAMES.items()}
  assert data['minScore'] == 0.25
  assert [x['name'] for x in data['images']] == ['<i>a.jpg', '</script>b.jpg']
  assert data['images'] == [json.loads(text) for text, _ in entries]
  for number, value in enumerate((10, 200)):
    pixels = np.asarray(decode(scripts[f'jpeg{number}']))
    assert abs(pixels.mean() - value) < 2
  assert json.loads(read_scripts(make_page([]))['data'])['images'] == []


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
  """A browser, and the path of a page.

  Sixty images: two discs, a disc and a star, a star of score 0.35, nothing;
  repeated.
  """
  folder = tmp_path_factory.mktemp('page')
  kinds = (
    make_solid([[5, 5, 25, 25], [30, 40, 50, 70]], [0.95, 0.6], [1, 1]),
    make_solid([[5, 5, 25, 25], [30, 40, 50, 70]], [0.9, 0.8], [1, 2]),
    make_solid([[10, 10, 40, 60]], [0.35], [2]),
    make_solid([], [], []),
  )
  entries = [
    browse.make_entry(f'image-{i}.jpg', grey(), kinds[i % 4], 640, 0.0)
    for i in range(60)
  ]
  (folder / 'index.html').write_text(make_page(entries), encoding='utf-8')
  page = browser.Page(folder / 'profile')
  yield page, folder / 'index.html'
  page.close()


@pytest.fixture
def page(opened):
  """The page as it is when it was just opened."""
  page, path = opened
  page.open(path)
  return page


def shown(page):
  """Number of images shown, and what the page says of them."""
  visible = page.run("document.querySelectorAll('figure:not([hidden])').length")
  return visible, page.run("document.querySelector('#count').textContent")


def set_value(page, selector, value):
  page.run(
    f"""(() => {{
      const field = document.querySelector('{selector}');
      field.value = {json.dumps(value)};
      field.dispatchEvent(new Event('input'));
    }})()"""
  )


def pixel(selector, x, y):
  """Script for `[r, g, b]` at a share of the width and height of a canvas."""
  return f"""(() => {{
    const canvas = document.querySelector({json.dumps(selector)});
    const pen = canvas.getContext('2d');
    const place = [canvas.width * {x}, canvas.height * {y}].map(Math.floor);
    return [...pen.getImageData(...place, 1, 1).data].slice(0, 3);
  }})()"""


def assert_pixel(page, selector, x, y, expected):
  color = page.run(pixel(selector, x, y))
  np.testing.assert_allclose(color, expected, atol=4)


def drawn(page, selector):
  page.wait(
    f'document.querySelector({json.dumps(selector)}).width > 100 &&'
    f' document.querySelector({json.dumps(selector)}).style.width != ""'
  )


def in_browser(test):
  return needs_chromium(pytest.mark.slow(test))


FIRST = 'figure:not([hidden]) canvas'
LARGE = '#stage canvas'


@in_browser
def test_the_page_works_in_a_browser(page):
  # A slider at 0.5: 30 images have 15 * (2 + 2) objects.
  assert shown(page) == (30, '30 of 60 images, 60 objects')
  page.click('#only')
  assert shown(page) == (60, '60 of 60 images, 60 objects')
  page.click('#only')

  # Filters of the score.
  set_value(page, '#score', 0.3)
  assert shown(page) == (45, '45 of 60 images, 75 objects')
  set_value(page, '#score', 0.85)
  assert shown(page) == (30, '30 of 60 images, 30 objects')
  set_value(page, '#score', 1)
  assert shown(page) == (0, '0 of 60 images, 0 objects')
  assert page.run("!document.querySelector('#nothing').hidden")
  set_value(page, '#score', 0.5)

  # Filters of the class; the name is shown as it is.
  texts = page.run(
    "[...document.querySelectorAll('[data-class]')].map(x => x.textContent)"
  )
  assert texts == ['disc 45', f'{NAMES[2]} 15']
  page.click('[data-class="1"]')
  assert shown(page) == (15, '15 of 60 images, 15 objects')
  page.click('#classes .all:nth-child(2)')
  assert shown(page)[0] == 0
  page.click('#classes .all:nth-child(1)')
  assert shown(page) == (30, '30 of 60 images, 60 objects')

  # By name.
  set_value(page, '#search', 'MAGE-1.')
  assert shown(page) == (1, '1 of 60 images, 2 objects')
  set_value(page, '#search', '')
  assert page.errors == []


@in_browser
def test_pictures_are_drawn_only_while_in_view(page):
  drawn(page, FIRST)
  # Inside the mask of the first disc: the colour of `visualize` over grey.
  color = visualize._color(0)
  blended = 0.6 * 120 + 0.4 * color
  assert_pixel(page, FIRST, 0.2, 0.25, blended)
  assert_pixel(page, FIRST, 0.9, 0.1, 120)
  page.click('#masks')
  page.wait(f'Math.abs({pixel(FIRST, 0.2, 0.25)}[0] - 120) < 5')
  page.click('#masks')
  # A canvas out of view is released, and drawn again when it is back.
  width = f'document.querySelector({json.dumps(FIRST)}).width'
  last = (
    "[...document.querySelectorAll('figure:not([hidden]) canvas')]"
    '.at(-1).style.width'
  )
  assert page.run(last) == ''  # Not drawn yet.
  page.run('scrollTo(0, document.body.scrollHeight)')
  page.wait(f'{last} !== ""')
  page.wait(f'{width} === 0')
  page.run('scrollTo(0, 0)')
  page.wait(f'{width} > 100')
  assert page.errors == []


@in_browser
def test_masks_are_read_as_pycocotools_reads_them(page):
  rng = np.random.default_rng(0)
  for shape, share in (((7, 5), 0.5), ((600, 40), 0.001), ((300, 500), 0.9)):
    mask = (rng.random(shape) < share).astype(np.uint8)
    encoded = coco_mask.encode(np.asfortranarray(mask))
    counts = json.dumps(encoded['counts'].decode())
    runs = page.run(f'decodeRuns({counts})')
    values = np.arange(len(runs)) % 2
    np.testing.assert_array_equal(
      np.repeat(values, runs).reshape(shape[::-1]).T, mask
    )


@in_browser
def test_an_image_is_enlarged(page):
  page.click('figure:not([hidden]) button')
  drawn(page, LARGE)
  assert page.run("document.querySelector('dialog').open")
  assert page.run("document.querySelector('#title').textContent") == (
    'image-0.jpg'
  )
  items = "[...document.querySelectorAll('#objects li')].map(x => x.innerText)"
  assert [x.split() for x in page.run(items)] == [
    ['disc', '0.95'],
    ['disc', '0.60'],
  ]
  width = page.run(f"document.querySelector('{LARGE}').width")
  assert width > 500
  color = visualize._color(1)
  assert_pixel(page, LARGE, 0.7, 0.7, 0.6 * 120 + 0.4 * color)
  page.press('ArrowRight')
  page.wait("document.querySelector('#title').textContent === 'image-1.jpg'")
  page.click('#next')
  # Images that the filter hides are skipped.
  page.wait("document.querySelector('#title').textContent === 'image-4.jpg'")
  page.press('ArrowLeft')
  page.wait("document.querySelector('#title').textContent === 'image-1.jpg'")
  assert page.run(items)[1].startswith(NAMES[2])
  page.press('Escape')
  page.wait("!document.querySelector('dialog').open")
  assert page.errors == []
  # The file itself was the only request.
  assert len(page.requests) == 1 and page.requests[0].startswith('file:')


@in_browser
def test_the_driver_notices_errors(tmp_path):
  """Without this, an empty list of errors would prove nothing."""
  broken = tmp_path / 'broken.html'
  broken.write_text(
    '<img src="none.png"><script>console.error("a"); missing.call();</script>'
  )
  page = browser.Page(tmp_path / 'profile')
  page.open(broken)
  assert len(page.errors) >= 3
  assert any('none.png' in url for url in page.requests)
  page.close()
