"""YOLO text files, read as polygons in pixels or findings."""

import numpy as np
import pytest
from PIL import Image

from maskrcnn_jax.datasets import masks
from maskrcnn_jax.datasets.formats import convert, yolo

NAMES = {0: 'cat', 1: 'dog'}


@pytest.fixture
def folder(tmp_path):
  Image.new('RGB', (40, 20)).save(tmp_path / 'a.png')
  return tmp_path


def read(folder, text=None, name='a.png'):
  if text is not None:
    (folder / 'a.txt').write_text(text)
  return convert.read_image(name, yolo.read_polygons, folder, folder, NAMES)


def test_a_rectangle_by_hand(folder):
  # From x 10 to 30 of 40 pixels, from y 5 to 15 of 20.
  found = read(folder, '1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n')
  (each,) = found.objects
  assert found.size == (20, 40)
  assert not found.findings
  assert each['category_id'] == 1
  assert each['segmentation'] == [[10, 5, 30, 5, 30, 15, 10, 15]]
  assert each['bbox'] == [10, 5, 20, 10]
  expected = np.zeros((20, 40), bool)
  expected[5:15, 10:30] = True
  mask = masks.decode_segmentation(each['segmentation'], 20, 40)
  np.testing.assert_array_equal(mask, expected)
  assert each['area'] == 200


def test_several_lines_blank_ones_and_rounding_over_the_border(folder):
  found = read(folder, '0 0 0 1.004 0 0.5 -0.001\n\n1 0 0 1 0 1 1\n')
  assert [each['category_id'] for each in found.objects] == [0, 1]
  assert found.objects[0]['segmentation'] == [[0, 0, 40, 0, 20, 0]]
  assert found.objects[1]['bbox'] == [0, 0, 40, 20]


@pytest.mark.parametrize(
  'line, kind, given',
  [
    ('0 0.5 0.5 0.2 0.2', 'box_without_mask', 'box'),
    ('0 0.5 0.5', 'unusable_polygon', 'got 2'),
    ('0 0 0 1 0 1 1 0', 'unusable_polygon', 'got 7'),
    ('0 0 0 30 0 30 20', 'unusable_polygon', 'got 30'),
    ('0 0 0 nan 0 1 1', 'unusable_polygon', 'got nan'),
    ('cat 0 0 1 0 1 1', 'unusable_polygon', "got 'cat 0 0"),
    ('2 0 0 1 0 1 1', 'category_id', 'class 2'),
    ('0.5 0 0 1 0 1 1', 'category_id', 'class 0.5'),
  ],
)
def test_other_lines_are_findings_with_file_and_line(folder, line, kind, given):
  found = read(folder, f'1 0 0 1 0 1 1\n{line}\n')
  assert len(found.objects) == 1
  (finding,) = found.findings
  assert finding.kind == kind
  assert finding.file == str(folder / 'a.txt')
  assert 'line 2' in finding.message and given in finding.message
  assert finding.severity == ('error' if kind == 'category_id' else 'warning')


def test_an_image_without_a_file_has_no_objects(folder):
  found = read(folder)
  assert (found.size, list(found.objects)) == ((20, 40), [])
  assert found.findings[0].severity == 'note'


def test_fractions_are_of_the_upright_photo(folder):
  exif = Image.Exif()
  exif[0x0112] = 6  # To be rotated by a quarter.
  Image.new('RGB', (40, 20)).save(folder / 'a.jpg', exif=exif)
  found = read(folder, '0 0 0 1 0 1 1\n', 'a.jpg')
  assert found.size == (40, 20)
  assert found.objects[0]['bbox'] == [0, 0, 20, 40]
