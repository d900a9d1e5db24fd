"""YOLO text files, read as polygons in pixels or findings."""

import io

import numpy as np
import pytest
from label_sets import kinds, make_image, read
from PIL import Image

from maskrcnn_jax.datasets import coco_json, examples, masks
from maskrcnn_jax.datasets.formats import class_names
from maskrcnn_jax.errors import UserError


def read_text(folder, text, name='a.png', **options):
  """The objects and findings of a text file for an image of 20 x 40 pixels."""
  make_image(folder / 'images' / name, (40, 20), **options)
  (folder / 'labels').mkdir()
  (folder / 'labels' / 'a.txt').write_text(text)
  content, findings = read('yolo', folder, 'cat,dog')
  (size,) = [(x['height'], x['width']) for x in content['images']]
  return content['annotations'], findings, size


def test_a_rectangle_by_hand(tmp_path):
  # From x 10 to 30 of 40 pixels, from y 5 to 15 of 20.
  text = '1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n'
  (each,), findings, size = read_text(tmp_path, text)
  assert size == (20, 40)
  assert not findings
  assert each['category_id'] == 1
  assert each['segmentation'] == [[10, 5, 30, 5, 30, 15, 10, 15]]
  assert each['bbox'] == [10, 5, 20, 10]
  expected = np.zeros((20, 40), bool)
  expected[5:15, 10:30] = True
  mask = masks.decode_segmentation(each['segmentation'], 20, 40)
  np.testing.assert_array_equal(mask, expected)
  assert each['area'] == 200


def test_several_lines_blank_ones_and_rounding_over_the_border(tmp_path):
  text = '0 0 0 1.004 0 0.5 -0.001\n\n1 0 0 1 0 1 1\n'
  (first, second), _, _ = read_text(tmp_path, text)
  assert (first['category_id'], second['category_id']) == (0, 1)
  assert first['segmentation'] == [[0, 0, 40, 0, 20, 0]]
  assert second['bbox'] == [0, 0, 40, 20]


@pytest.mark.parametrize(
  'line, kind, given',
  [
    ('0 0.5 0.5 0.2 0.2', 'box_without_mask', 'box'),
    ('0 0.5 0.5', 'unusable_polygon', 'got 1'),
    ('0 0 0 1 0 1 1 0', 'unusable_polygon', 'got 7'),
    ('0 0 0 30 0 30 20', 'unusable_polygon', 'got 30'),
    ('0 0 0 nan 0 1 1', 'unusable_polygon', "got '0 0 0 nan"),
    ('0_1 0 0 1 0 1 1', 'unusable_polygon', "got '0_1"),
    ('0 0 0 ١ 0 1 1', 'unusable_polygon', "got '0 0 0 ١"),
    ('cat 0 0 1 0 1 1', 'unusable_polygon', "got 'cat 0 0"),
    ('2 0 0 1 0 1 1', 'category_id', 'class 2'),
    ('0.5 0 0 1 0 1 1', 'category_id', 'class 0.5'),
  ],
)
def test_other_lines_are_findings(tmp_path, line, kind, given):
  text = f'1 0 0 1 0 1 1\n{line}\n'
  objects, (finding,), _ = read_text(tmp_path, text)
  assert len(objects) == 1
  severity = 'error' if kind == 'category_id' else 'warning'
  assert kinds([finding]) == [(kind, 'a.txt', severity)]
  assert 'line 2' in finding.message and given in finding.message


# How a camera stores an upright picture, by EXIF orientation.
STORED = {
  1: (),
  2: (Image.Transpose.FLIP_LEFT_RIGHT,),
  3: (Image.Transpose.ROTATE_180,),
  4: (Image.Transpose.FLIP_TOP_BOTTOM,),
  5: (Image.Transpose.TRANSPOSE,),
  6: (Image.Transpose.ROTATE_90,),
  7: (Image.Transpose.TRANSVERSE,),
  8: (Image.Transpose.ROTATE_270,),
}


@pytest.mark.parametrize('size', [(40, 24), (32, 32)])
@pytest.mark.parametrize('turn', STORED)
def test_labels_are_of_the_upright_photo(tmp_path, size, turn):
  upright = Image.new('RGB', size, 'gray')
  upright.paste('red', (8, 0, 24, 8))
  stored = upright.transpose(*STORED[turn]) if STORED[turn] else upright
  exif = Image.Exif()
  exif[0x0112] = turn
  (tmp_path / 'images').mkdir()
  (tmp_path / 'labels').mkdir()
  path = tmp_path / 'images' / 'a.jpg'
  stored.save(path, exif=exif, quality=95)
  corners = np.array([[8, 0], [24, 0], [24, 8], [8, 8]]) / size
  text = ' '.join(map(str, [0, *corners.reshape(-1)]))
  (tmp_path / 'labels' / 'a.txt').write_text(text)
  content, _ = read('yolo', tmp_path, 'cat')
  dataset = coco_json.parse(content, 'a.json')
  (image,) = dataset.images
  assert (image.width, image.height) == size
  encoded, _ = examples.read_image(image, str(path))
  (each,) = content['annotations']
  pixels = np.asarray(Image.open(io.BytesIO(encoded)))
  mask = masks.decode_segmentation(each['segmentation'], *size[::-1])
  assert np.all(abs(pixels[mask].mean(axis=0) - [255, 0, 0]) < 20)


def test_files_of_notepad_begin_with_a_mark(tmp_path):
  make_image(tmp_path / 'images' / 'a.png', (40, 20))
  (tmp_path / 'labels').mkdir()
  for name, text in (
    ('a.txt', '0 0 0 1 0 1 1\r\n1 0 0 1 0 1 1\r\n'),
    ('classes.txt', 'red\r\nblue\r\n'),
  ):
    (tmp_path / 'labels' / name).write_text(text, encoding='utf-8-sig')
  content, findings = read('yolo', tmp_path)
  assert not findings
  assert [x['category_id'] for x in content['annotations']] == [0, 1]
  assert [x['name'] for x in content['categories']] == ['red', 'blue']


def test_links_are_followed_and_what_is_not_used_is_named(tmp_path):
  for name in ('day1/a.jpg', 'day1/b.jfif', 'day1/c.JPE', 'day1/d.mpo'):
    make_image(tmp_path / 'images' / name, format='JPEG')
  make_image(tmp_path / 'elsewhere' / 'img' / 'e.jpg')
  (tmp_path / 'images' / 'day2').symlink_to(tmp_path / 'elsewhere' / 'img')
  (tmp_path / 'images' / 'day1' / 'loop').symlink_to(tmp_path / 'images')
  (tmp_path / 'images' / 'f.heic').write_bytes(b'x')
  for name in ('day1/a', 'day1/b', 'day1/c', 'day1/d', 'day1/gone', 'day2/e'):
    path = tmp_path / 'labels' / f'{name}.txt'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('0 0 0 1 0 1 1\n')
  content, findings = read('yolo', tmp_path, 'cat')
  assert [x['file_name'] for x in content['images']] == [
    *('day1/a.jpg', 'day1/b.jfif', 'day1/c.JPE', 'day1/d.mpo', 'day2/e.jpg')
  ]
  assert len(content['annotations']) == 5
  assert kinds(findings) == [
    ('label_without_image', 'gone.txt', 'warning'),
    ('file_passed_over', 'f.heic', 'warning'),
  ]


@pytest.mark.parametrize(
  'names',
  [
    *('{0: cat, 0: dog}', '{0: cat, 00: dog}', '{0: cat, 0_1: dog}'),
    *('[cat, cat]', '[[cat], [dog]]'),
  ],
)
def test_names_that_are_not_one_for_each_number(tmp_path, names):
  path = tmp_path / 'data.yaml'
  path.write_text(f'names: {names}\n')
  with pytest.raises(UserError):
    class_names.read(str(path))


def test_names_with_aliases_are_refused(tmp_path):
  make_image(tmp_path / 'images' / 'a.png')
  (tmp_path / 'labels').mkdir()
  (tmp_path / 'labels' / 'a.txt').write_text('0 0 0 1 0 1 1\n')
  path = tmp_path / 'data.yaml'
  lines = [
    f'x{k}: &x{k} [{", ".join([f"*x{k - 1}"] * 9)}]' for k in range(1, 12)
  ]
  path.write_text('\n'.join(['x0: &x0 [a]', *lines, 'names: *x11']))
  with pytest.raises(UserError) as error:
    read('yolo', tmp_path)
  assert error.value.path == str(path)
