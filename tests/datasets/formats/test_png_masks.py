"""PNG masks of all kinds, read as objects or findings."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_jax.datasets.formats import convert, png_masks

ONE = {1: 'cell'}
TWO = {1: 'cat', 2: 'dog'}
# Two objects of 2 x 3 and 1 x 2 pixels.
NUMBERS = np.array(
  [
    [0, 5, 5, 5, 0, 0],
    [0, 5, 5, 5, 0, 9],
    [0, 0, 0, 0, 0, 9],
    [0, 0, 0, 0, 0, 0],
  ]
)


@pytest.fixture
def folder(tmp_path):
  """An image of 4 x 6 pixels, and a folder for its masks."""
  (tmp_path / 'images').mkdir()
  (tmp_path / 'masks').mkdir()
  Image.new('RGB', (6, 4)).save(tmp_path / 'images' / 'a.jpg')
  return tmp_path


def read(folder, kind=png_masks.read_instances, names=ONE):
  return convert.read_image(
    'a.jpg', kind, folder / 'images', folder / 'masks', names
  )


def save(path, array, palette=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(array)
  if palette:
    image = image.convert('L')
    image.putpalette(palette)
  image.save(path)


def decoded(found):
  return [coco_mask.decode(each['segmentation']) for each in found.objects]


def areas(found):
  """Category and area of every object."""
  return [(each['category_id'], each['area']) for each in found.objects]


def colours(numbers):
  """Numbers as colours that share their red."""
  table = {0: (0, 0, 0), 5: (200, 0, 1), 9: (200, 1, 0)}
  return np.array([[table[x] for x in row] for row in numbers], np.uint8)


KINDS = {
  '8 bits': lambda x: x.astype(np.uint8),
  # 5 and 9 differ in the upper byte alone.
  '16 bits': lambda x: (x * 256).astype(np.uint16),
  'colour': colours,
  'alpha': lambda x: np.dstack([colours(x), np.full(x.shape, 255, np.uint8)]),
}


@pytest.mark.parametrize('kind', [*KINDS, 'palette'])
def test_numbers_of_every_kind_of_png(folder, kind):
  path = folder / 'masks' / 'a.png'
  if kind == 'palette':
    # Two entries of one colour are two objects: the index counts.
    save(path, NUMBERS.astype(np.uint8), [7] * 768)
    with Image.open(path) as image:
      assert image.mode == 'P'
  else:
    save(path, KINDS[kind](NUMBERS))
  found = read(folder)
  assert not found.findings
  assert found.size == (4, 6)
  by_area = sorted(found.objects, key=lambda x: x['area'])
  assert [x['area'] for x in by_area] == [2, 6]
  assert [x['bbox'] for x in by_area] == [[5, 1, 1, 2], [1, 0, 3, 2]]
  assert {x['category_id'] for x in by_area} == {1}
  total = sum(mask.astype(int) for mask in decoded(found))
  np.testing.assert_array_equal(total, NUMBERS > 0)


def test_run_lengths_by_hand(folder):
  mask = np.zeros((4, 6), np.uint8)
  mask[1:3, 0] = 1
  save(folder / 'masks' / 'a.png', mask)
  (found,) = read(folder).objects
  # Column by column: one pixel without, two with, twenty-one without.
  plain = coco_mask.frPyObjects({'size': [4, 6], 'counts': [1, 2, 21]}, 4, 6)
  assert found['segmentation']['counts'] == plain['counts'].decode()
  assert found['segmentation']['size'] == [4, 6]


def test_classes_are_thousands(folder):
  numbers = np.where(NUMBERS == 5, 1001, np.where(NUMBERS == 9, 2007, 0))
  path = folder / 'masks' / 'a.png'
  save(path, numbers.astype(np.uint16))
  found = read(folder, names=TWO)
  assert areas(found) == [(1, 6), (2, 2)]
  save(path, np.where(NUMBERS == 9, 3001, numbers).astype(np.uint16))
  (finding,) = read(folder, names=TWO).findings
  assert finding.severity == 'error'
  assert finding.file == str(path)
  assert '3001' in finding.message and '1 cat, 2 dog' in finding.message


def test_unusable_files_are_named(folder):
  path = folder / 'masks' / 'a.png'
  (finding,) = read(folder).findings
  assert 'a.png' in finding.message
  save(path, np.ones((4, 7), np.uint8))
  (finding,) = read(folder).findings
  assert '4 x 7' in finding.message and '4 x 6' in finding.message
  path.write_bytes(path.read_bytes()[:30])
  (finding,) = read(folder).findings
  assert (finding.kind, finding.file) == ('unusable_mask', str(path))
  (folder / 'images' / 'a.jpg').write_bytes(b'no image')
  found = read(folder)
  assert found.size is None
  assert found.findings[0].kind == 'unusable_image'


@pytest.mark.parametrize('place', ['masks/a', 'masks/a/masks', 'masks/x/masks'])
def test_a_png_for_every_object(folder, place):
  name = 'a.jpg'
  if place == 'masks/x/masks':
    # As in DSB2018: x/images/a.jpg and x/masks/*.png.
    name = 'x/images/a.jpg'
    (folder / 'images/x/images').mkdir(parents=True)
    (folder / 'images/a.jpg').rename(folder / 'images' / name)
  save(folder / place / '1.png', 255 * (NUMBERS == 5).astype(np.uint8))
  # 16 bits of which the upper 8 are 0.
  save(folder / place / '2.png', (NUMBERS == 9).astype(np.uint16))
  found = convert.read_image(
    name, png_masks.read_objects, folder / 'images', folder / 'masks', ONE
  )
  assert not found.findings
  assert areas(found) == [(1, 6), (1, 2)]
  np.testing.assert_array_equal(decoded(found)[0], NUMBERS == 5)


def test_objects_may_overlap_and_unusable_ones_are_skipped(folder):
  place = folder / 'masks' / 'a'
  save(place / '1.png', np.ones((4, 6), np.uint8))
  save(place / '2.png', (NUMBERS == 5).astype(np.uint8))
  save(place / '3.png', np.zeros((4, 6), np.uint8))
  save(place / '4.png', np.ones((3, 6), np.uint8))
  found = read(folder, png_masks.read_objects)
  assert [x['area'] for x in found.objects] == [24, 6]
  assert [(x.kind, x.file[-5:], x.severity) for x in found.findings] == [
    ('empty_mask', '3.png', 'warning'),
    ('unusable_mask', '4.png', 'warning'),
  ]


def test_objects_of_several_classes_are_in_their_folders(folder):
  place = folder / 'masks' / 'a'
  save(place / 'dog' / '1.png', (NUMBERS == 5).astype(np.uint8))
  save(place / 'cat' / '1.png', (NUMBERS == 9).astype(np.uint8))
  found = read(folder, png_masks.read_objects, TWO)
  assert areas(found) == [(1, 2), (2, 6)]
  save(place / '3.png', (NUMBERS == 9).astype(np.uint8))
  (finding,) = read(folder, png_masks.read_objects, TWO).findings
  assert finding.file == str(place / '3.png')
  assert finding.severity == 'error'


@pytest.mark.parametrize('kind', ['read_instances', 'read_objects'])
def test_no_masks_are_an_error_and_empty_ones_are_not(folder, kind):
  kind = getattr(png_masks, kind)
  (finding,) = read(folder, kind).findings
  assert (finding.kind, finding.severity) == ('missing_mask', 'error')
  (folder / 'masks' / 'a').mkdir()
  save(folder / 'masks' / 'a.png', np.zeros((4, 6), np.uint8))
  found = read(folder, kind)
  assert found.size == (4, 6)
  assert not found.findings and not found.objects
