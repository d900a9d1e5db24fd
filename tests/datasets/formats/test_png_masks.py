"""PNG masks of all kinds, read as objects or findings."""

import struct
import zlib

import numpy as np
import pytest
from label_sets import (
  NUMBERS,
  areas,
  decode,
  kinds,
  make_image,
  read,
  save_mask,
)
from PIL import Image
from pycocotools import mask as coco_mask


@pytest.fixture
def folder(tmp_path):
  """An image of 4 x 6 pixels."""
  make_image(tmp_path / 'images' / 'a.jpg')
  return tmp_path


def colours(numbers):
  """Numbers as colours that share their red."""
  table = {0: (0, 0, 0), 5: (200, 0, 1), 9: (200, 1, 0)}
  return np.array([[table[x] for x in row] for row in numbers], np.uint8)


PIXELS = {
  '8 bits': lambda x: x.astype(np.uint8),
  # 5 and 9 differ in the upper byte alone.
  '16 bits': lambda x: (x * 256).astype(np.uint16),
  'colour': colours,
  'alpha': lambda x: np.dstack([colours(x), np.full(x.shape, 255, np.uint8)]),
}


@pytest.mark.parametrize('kind', [*PIXELS, 'palette'])
def test_numbers_of_every_kind_of_png(folder, kind):
  path = folder / 'labels' / 'a.png'
  if kind == 'palette':
    # Two entries of one colour are two objects: the index counts.
    save_mask(path, NUMBERS.astype(np.uint8), [7] * 768)
    with Image.open(path) as image:
      assert image.mode == 'P'
  else:
    save_mask(path, PIXELS[kind](NUMBERS))
  content, findings = read('instance_png', folder)
  assert not findings
  expected = {'id': 1, 'file_name': 'a.jpg', 'height': 4, 'width': 6}
  assert content['images'] == [{**expected, 'upright': True}]
  assert content['categories'] == [{'id': 1, 'name': 'object'}]
  by_area = sorted(content['annotations'], key=lambda x: x['area'])
  assert [x['area'] for x in by_area] == [2, 6]
  assert [x['bbox'] for x in by_area] == [[5, 1, 1, 2], [1, 0, 3, 2]]
  np.testing.assert_array_equal(decode(by_area[0]), NUMBERS == 9)
  np.testing.assert_array_equal(decode(by_area[1]), NUMBERS == 5)


def test_run_lengths_by_hand(folder):
  mask = np.zeros((4, 6), np.uint8)
  mask[1:3, 0] = 1
  save_mask(folder / 'labels' / 'a.png', mask)
  (found,) = read('instance_png', folder)[0]['annotations']
  # Column by column: one pixel without, two with, twenty-one without.
  plain = coco_mask.frPyObjects({'size': [4, 6], 'counts': [1, 2, 21]}, 4, 6)
  assert found['segmentation']['counts'] == plain['counts'].decode()
  assert found['segmentation']['size'] == [4, 6]


def test_classes_are_thousands(folder):
  numbers = np.where(NUMBERS == 5, 1001, np.where(NUMBERS == 9, 2007, 0))
  path = folder / 'labels' / 'a.png'
  save_mask(path, numbers.astype(np.uint16))
  assert areas(read('instance_png', folder, 'cat,dog')[0]) == [(1, 6), (2, 2)]
  save_mask(path, np.where(NUMBERS == 9, 3001, numbers).astype(np.uint16))
  (finding,) = read('instance_png', folder, 'cat,dog')[1]
  assert (finding.severity, finding.file) == ('error', str(path))
  assert '3001' in finding.message and '1 cat, 2 dog' in finding.message


def test_unusable_files_are_named(folder):
  path = folder / 'labels' / 'a.png'
  save_mask(path, np.ones((4, 7), np.uint8))
  (finding,) = read('instance_png', folder)[1]
  assert '4 x 7' in finding.message and '4 x 6' in finding.message
  path.write_bytes(path.read_bytes()[:30])
  content, findings = read('instance_png', folder)
  assert kinds(findings) == [('unusable_label', 'a.png', 'error')]
  (folder / 'images' / 'a.jpg').write_bytes(b'no image')
  content, findings = read('instance_png', folder)
  assert not content['images']
  assert kinds(findings) == [('unusable_image', 'a.jpg', 'error')]


@pytest.mark.parametrize('value', [1.5, -1, np.nan])
def test_values_that_number_no_object_are_refused(folder, value):
  numbers = np.where(NUMBERS == 9, value, NUMBERS).astype(np.float32)
  save_mask(folder / 'labels' / 'a.tif', numbers)
  (finding,) = read('instance_png', folder)[1]
  assert (finding.kind, finding.severity) == ('unusable_label', 'error')


def test_channels_of_16_bits_are_refused(folder):
  # A PNG by hand, since Pillow writes no such file: its decoder drops 8 bits.
  rows = np.zeros((4, 1 + 6 * 6), np.uint8)
  parts = (
    (b'IHDR', struct.pack('>IIBBBBB', 6, 4, 16, 2, 0, 0, 0)),
    (b'IDAT', zlib.compress(rows.tobytes())),
    (b'IEND', b''),
  )
  chunks = (
    struct.pack('>I', len(data))
    + name
    + data
    + struct.pack('>I', zlib.crc32(name + data))
    for name, data in parts
  )
  path = folder / 'labels' / 'a.png'
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(chunks))
  (finding,) = read('instance_png', folder)[1]
  assert (finding.kind, finding.severity) == ('unusable_label', 'error')
  assert '16 bits' in finding.message


@pytest.mark.parametrize('place', ['a', 'a/masks', 'x/masks'])
def test_a_png_for_every_object(folder, place):
  if place == 'x/masks':
    # As in DSB2018: x/images/a.jpg and x/masks/*.png.
    (folder / 'images/x/images').mkdir(parents=True)
    (folder / 'images/a.jpg').rename(folder / 'images/x/images/a.jpg')
  path = folder / 'labels' / place
  save_mask(path / '1.png', 255 * (NUMBERS == 5).astype(np.uint8))
  # 16 bits of which the upper 8 are 0.
  save_mask(path / '2.png', (NUMBERS == 9).astype(np.uint16))
  content, findings = read('object_png', folder)
  assert not findings
  assert areas(content) == [(1, 6), (1, 2)]
  np.testing.assert_array_equal(decode(content['annotations'][0]), NUMBERS == 5)


def test_objects_may_overlap_and_unusable_ones_are_skipped(folder):
  place = folder / 'labels' / 'a'
  save_mask(place / '1.png', np.ones((4, 6), np.uint8))
  save_mask(place / '2.png', (NUMBERS == 5).astype(np.uint8))
  save_mask(place / '3.png', np.zeros((4, 6), np.uint8))
  save_mask(place / '4.png', np.ones((3, 6), np.uint8))
  content, findings = read('object_png', folder)
  assert areas(content) == [(1, 24), (1, 6)]
  assert kinds(findings) == [
    ('empty_mask', '3.png', 'warning'),
    ('unusable_mask', '4.png', 'warning'),
  ]


def test_objects_of_several_classes_are_in_their_folders(folder):
  place = folder / 'labels' / 'a'
  save_mask(place / 'dog' / '1.png', (NUMBERS == 5).astype(np.uint8))
  save_mask(place / 'cat' / '1.png', (NUMBERS == 9).astype(np.uint8))
  assert areas(read('object_png', folder, 'cat,dog')[0]) == [(1, 2), (2, 6)]
  save_mask(place / '3.png', (NUMBERS == 9).astype(np.uint8))
  _, findings = read('object_png', folder, 'cat,dog')
  assert kinds(findings) == [('category_id', '3.png', 'error')]


@pytest.mark.parametrize('name', ['instance_png', 'object_png'])
def test_no_masks_are_an_error_and_empty_ones_are_not(folder, name):
  (folder / 'labels' / 'a').mkdir(parents=True)
  save_mask(folder / 'labels' / 'a.png', np.zeros((4, 6), np.uint8))
  content, findings = read(name, folder)
  assert len(content['images']) == 1
  assert not content['annotations']
  passed = [('file_passed_over', 'a.png', 'warning')]
  passed = passed if name == 'object_png' else []
  assert kinds(findings) == passed
  make_image(folder / 'images' / 'b.jpg')
  content, findings = read(name, folder)
  assert len(content['images']) == 1
  assert kinds(findings) == [*passed, ('missing_label', 'b.jpg', 'error')]


def test_void_of_a_palette_is_of_no_object(folder):
  # As Pascal VOC draws borders around objects.
  numbers = np.where(NUMBERS, NUMBERS, 255 * (np.arange(6) == 0))
  path = folder / 'labels' / 'a.png'
  save_mask(path, numbers.astype(np.uint8), [7] * 768)
  content, findings = read('instance_png', folder)
  assert areas(content) == [(1, 6), (1, 2)]
  assert kinds(findings) == [('void_pixels', 'a.png', 'note')]
  assert ' 4 pixels' in findings[0].message
  save_mask(path, numbers.astype(np.uint8))  # Of no palette.
  assert areas(read('instance_png', folder)[0]) == [(1, 6), (1, 2), (1, 4)]


def test_numbers_below_1000_are_groups_or_background(folder):
  numbers = np.select([NUMBERS == 5, NUMBERS == 9], [2000, 2], 1)
  numbers[3, 0] = 7
  save_mask(folder / 'labels' / 'a.png', numbers.astype(np.uint16))
  content, findings = read('instance_png', folder, 'sky,car')
  found = [
    (*x, y['iscrowd']) for x, y in zip(areas(content), content['annotations'])
  ]
  assert found == [(2, 2, 1), (2, 6, 0)]
  assert sorted(kinds(findings)) == [
    ('no_instance', 'a.jpg', 'warning'),
    ('no_instance', 'a.png', 'warning'),
  ]


@pytest.mark.parametrize('ending', ['.PNG', '.tif', '.jpg', '.bmp', '.gif'])
def test_object_masks_of_any_image_type(tmp_path, ending):
  make_image(tmp_path / 'images' / 'a.jpg', (64, 48))
  mask = np.zeros((48, 64), np.uint8)
  mask[8:24, 16:40] = 255  # Along blocks of a JPEG.
  save_mask(tmp_path / 'labels' / 'a' / f'0{ending}', mask)
  content, findings = read('object_png', tmp_path)
  assert not findings
  np.testing.assert_array_equal(
    decode(content['annotations'][0], 48, 64), mask > 0
  )


def test_an_object_mask_for_print(tmp_path):
  """The object is bright, so of little ink."""
  make_image(tmp_path / 'images' / 'a.png')
  mask = np.repeat(255 * (NUMBERS == 5)[..., None], 3, axis=-1).astype(np.uint8)
  path = tmp_path / 'labels' / 'a' / '0.tif'
  path.parent.mkdir(parents=True)
  Image.fromarray(mask).convert('CMYK').save(path)
  content, _ = read('object_png', tmp_path)
  np.testing.assert_array_equal(decode(content['annotations'][0]), NUMBERS == 5)


def test_object_masks_in_alpha_and_with_noise(folder):
  pixels = np.full((4, 6, 4), 255, np.uint8)
  pixels[..., 3] = 255 * (NUMBERS == 5)
  save_mask(folder / 'labels' / 'a' / '1.png', pixels)
  noise = np.where(NUMBERS == 9, 252, NUMBERS == 0).astype(np.uint8)
  save_mask(folder / 'labels' / 'a' / '2.png', noise)
  (folder / 'labels' / 'a' / 'notes.txt').write_text('x')
  content, findings = read('object_png', folder)
  first, second = map(decode, content['annotations'])
  np.testing.assert_array_equal(first, NUMBERS == 5)
  np.testing.assert_array_equal(second, NUMBERS == 9)
  assert kinds(findings) == [('file_passed_over', 'notes.txt', 'warning')]
