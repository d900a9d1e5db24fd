"""Image files: the same pixels as in records; which files, ids and names."""

import json
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image

from maskrcnn_jax.datasets import stored_images
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.inference import image_files
from maskrcnn_jax.input_pipeline import decode


def photo(height=40, width=56, seed=0):
  """`[h, w, 3]` uint8, smooth as photographs are."""
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (5, 7, 3), np.uint8)
  return np.asarray(Image.fromarray(small).resize((width, height)))


def save(path, pixels=None, mode='RGB', **options):
  """Writes a picture; returns the file's bytes."""
  pixels = photo() if pixels is None else pixels
  Image.fromarray(pixels).convert(mode).save(path, **options)
  return path.read_bytes()


@pytest.mark.parametrize(
  'ending, modes',
  [
    ('jpg', 'RGB L CMYK'),
    ('png', 'RGB RGBA LA L P 1'),
    ('bmp', 'RGB'),
    ('gif', 'P'),
    ('tif', 'RGB CMYK L'),
    ('webp', 'RGBA'),
    ('ppm', 'RGB'),
  ],
)
def test_files_have_the_pixels_of_records(tmp_path, ending, modes):
  for mode in modes.split():
    path = tmp_path / f'{mode}.{ending}'
    save(path, mode=mode)
    encoded, _ = stored_images.read(path, 40, 56)
    pixels = image_files.read(path)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(
      pixels, decode.decode_image(encoded, accurate_jpeg=True)
    )


@pytest.mark.parametrize('name', ['a.png', 'a.tif'])
@pytest.mark.parametrize('order', ['<u2', '>u2'])
def test_of_16_bits_the_upper_8_count(tmp_path, name, order):
  values = np.random.default_rng(0).integers(0, 65536, (30, 40)).astype(order)
  Image.fromarray(values).save(tmp_path / name)
  expected = np.repeat((values >> 8)[..., None], 3, axis=-1)
  np.testing.assert_array_equal(image_files.read(tmp_path / name), expected)
  encoded, _ = stored_images.read(tmp_path / name, 30, 40)
  decoded = tf.io.decode_png(encoded, channels=3)
  np.testing.assert_array_equal(decoded, expected)


def test_of_16_bit_colors_the_upper_8_count(tmp_path):
  values = np.random.default_rng(0).integers(0, 65536, (30, 40, 3), np.uint16)
  encoded = tf.io.encode_png(values).numpy()
  (tmp_path / 'a.png').write_bytes(encoded)
  pixels = image_files.read(tmp_path / 'a.png')
  np.testing.assert_array_equal(pixels, values >> 8)
  np.testing.assert_array_equal(
    pixels, decode.decode_image(encoded, accurate_jpeg=True)
  )


@pytest.mark.parametrize('quality', [20, 95])
@pytest.mark.parametrize('size', [(1, 1), (17, 9), (40, 56), (203, 301)])
@pytest.mark.parametrize('subsampling', [0, 1, 2])
def test_photos_have_the_pixels_of_records(
  tmp_path, size, quality, subsampling
):
  options = {'quality': quality, 'subsampling': subsampling}
  options['progressive'] = quality == 20
  noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
  for pixels in (noise, photo(*size)):
    encoded = save(tmp_path / 'a.jpg', pixels, **options)
    np.testing.assert_array_equal(
      image_files.read(tmp_path / 'a.jpg'),
      decode.decode_image(encoded, accurate_jpeg=True),
    )


def corners(pixels):
  """How bright the four corners are: (top left, top right, ...), by rank."""
  values = pixels[[2, 2, -3, -3], [2, -3, 2, -3], 0]
  return np.argsort(np.argsort(values)).tolist()


@pytest.mark.parametrize('name', ['a.jpg', 'a.png', 'a.tif'])
@pytest.mark.parametrize(
  'orientation, shape, expected',
  [
    (1, (40, 56), [0, 1, 2, 3]),
    (2, (40, 56), [1, 0, 3, 2]),
    (3, (40, 56), [3, 2, 1, 0]),
    (4, (40, 56), [2, 3, 0, 1]),
    (5, (56, 40), [0, 2, 1, 3]),
    (6, (56, 40), [2, 0, 3, 1]),
    (7, (56, 40), [3, 1, 2, 0]),
    (8, (56, 40), [1, 3, 0, 2]),
  ],
)
def test_pictures_come_out_upright(
  tmp_path, name, orientation, shape, expected
):
  pixels = np.zeros((40, 56, 3), np.uint8)
  pixels[:20, 28:], pixels[20:, :28], pixels[20:, 28:] = 80, 160, 240
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = orientation
  save(tmp_path / name, pixels, exif=exif)
  upright = image_files.read(tmp_path / name)
  assert upright.shape[:2] == shape
  assert corners(upright) == expected
  if name == 'a.tif':
    return  # Pillow knows no other way up.
  # The json decides, where it can: these sizes are those of the stored pixels.
  stored = image_files.read(tmp_path / name, (40, 56))
  assert corners(stored) == [0, 1, 2, 3]
  if shape == (56, 40):
    turned = image_files.read(tmp_path / name, (56, 40))
    np.testing.assert_array_equal(turned, upright)


@pytest.mark.parametrize(
  'content, size, given',
  [
    (b'', None, None),
    (b'A text, not a picture.\n' * 20, None, None),
    (None, None, None),
    ('image', (56, 40), (40, 56)),  # The size by the annotations.
  ],
)
def test_files_that_are_refused(tmp_path, content, size, given):
  path = tmp_path / 'a.jpg'
  if content == 'image':
    save(path)
  elif content is not None:
    path.write_bytes(content)
  with pytest.raises(UserError) as error:
    image_files.read(path, size)
  assert error.value.path == str(path)
  assert (error.value.given, error.value.wanted) == (given, size)


@pytest.mark.parametrize(
  'name', ['a.jpg', 'a.png', 'a.gif', 'a.tif', 'a.webp', 'a.bmp']
)
def test_corrupt_files_are_user_errors_or_images(tmp_path, name):
  content = np.frombuffer(save(tmp_path / name), np.uint8)
  rng = np.random.default_rng(0)
  refused = 0
  for number in range(60):
    corrupt = content.copy()
    if number % 2:
      corrupt = corrupt[: rng.integers(1, len(content))]
    places = rng.integers(0, len(corrupt), 1 + len(corrupt) // 100)
    corrupt[places] = rng.integers(0, 256, len(places))
    (tmp_path / name).write_bytes(corrupt.tobytes())
    try:
      pixels = image_files.read(tmp_path / name)
    except UserError:
      refused += 1
    else:
      assert pixels.dtype == np.uint8 and pixels.shape[2:] == (3,)
  assert refused > 5


def test_corrupt_exif_is_ignored(tmp_path):
  save(tmp_path / 'a.jpg', exif=b'Exif\0\0MM\0*nonsense')
  assert image_files.read(tmp_path / 'a.jpg').shape == (40, 56, 3)


def touch(folder, *names):
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
  return folder


@pytest.fixture
def folder(tmp_path):
  """A folder of empty files of many kinds."""
  names = ('b.jpg', 'a.PNG', 'notes.txt', '.hidden.jpg', 'sub/c.jpeg')
  return touch(tmp_path, *names, 'sub/d.json', 'sub/deep/e.tiff')


def found(folder, *paths):
  files = image_files.find([str(folder / path) for path in paths])
  return [file.relative_to(folder).as_posix() for file in files]


@pytest.mark.parametrize(
  'paths, expected',
  [
    # Folders.
    ([''], ['a.PNG', 'b.jpg', 'sub/c.jpeg', 'sub/deep/e.tiff']),
    (['sub'], ['sub/c.jpeg', 'sub/deep/e.tiff']),
    # Files of any ending, also with names that look like patterns.
    (['notes.txt', 'b.jpg'], ['notes.txt', 'b.jpg']),
    (['sub/x[1].gif'], ['sub/x[1].gif']),
    # Patterns.
    (['*.jpg'], ['b.jpg']),
    (['**/*.j*'], ['b.jpg', 'sub/c.jpeg', 'sub/d.json']),
    (['s*'], ['sub/c.jpeg', 'sub/deep/e.tiff']),
    # Each image once.
    (
      ['b.jpg', '', 'sub/../b.jpg'],
      ['b.jpg', 'a.PNG', 'sub/c.jpeg', 'sub/deep/e.tiff'],
    ),
  ],
)
def test_find(folder, paths, expected):
  if '[' in paths[0]:
    touch(folder, *paths)
  assert found(folder, *paths) == expected


@pytest.mark.parametrize('path', ['none.jpg', '*.webp', 'nowhere/', 'empty'])
def test_paths_without_images(folder, path):
  (folder / 'empty').mkdir()
  with pytest.raises(FileNotFoundError, match=re.escape(path.rstrip('/'))):
    found(folder, 'b.jpg', path)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """A folder of empty files."""
  names = ('a.jpg', 'b.png', 'cut.jpg', 'sub/a.png', 'notes.txt')
  return touch(tmp_path_factory.mktemp('photos'), *names)


def test_ids_without_annotations_count_from_1(photos):
  files, class_names = image_files.list_images([photos], 'out')
  assert class_names == {}
  assert [(file.image_id, file.name, file.picture) for file in files] == [
    (1, 'a.jpg', 'pictures/a.png'),
    (2, 'b.png', 'pictures/b.png'),
    (3, 'cut.jpg', 'pictures/cut.png'),
    (4, 'sub/a.png', 'pictures/a-2.png'),
  ]
  assert [file.path for file in files] == [photos / x.name for x in files]
  assert {file.size for file in files} == {None}


def test_images_in_the_output_are_skipped(photos):
  files, _ = image_files.list_images([photos], photos / 'sub')
  assert [file.name for file in files] == ['a.jpg', 'b.png', 'cut.jpg']
  with pytest.raises(FileNotFoundError, match=str(photos / 'sub')):
    image_files.list_images([photos / 'sub'], photos / 'sub')


def test_picture_names_are_unique():
  paths = ['a/x.jpg', 'b/X.png', 'x-2.jpg', 'y.tar.gz', 'b/x.jpg']
  names = image_files.picture_names(map(pathlib.Path, paths))
  assert names == [
    'pictures/x.png',
    'pictures/X-2.png',
    'pictures/x-2-2.png',
    'pictures/y.tar.png',
    'pictures/x-3.png',
  ]


@pytest.fixture
def annotations(tmp_path):
  """Writes a COCO json of test images, which has no annotations."""

  def write(**images):
    content = {
      'images': [
        {'id': 70 + i, 'file_name': name, 'height': h, 'width': w}
        for i, (name, (h, w)) in enumerate(images.items())
      ],
      'categories': [{'id': 1, 'name': 'other'}],
    }
    path = tmp_path / 'images.json'
    path.write_text(json.dumps(content))
    return path

  return write


def ids(photos, annotations, *names):
  """The ids of some photos by the annotations."""
  images = [photos / name for name in names]
  files, class_names = image_files.list_images(images, 'out', annotations)
  assert class_names == {1: 'other'}
  return [file.image_id for file in files]


def test_ids_by_the_annotations(photos, annotations):
  names = ('a.jpg', 'b.png', 'sub/a.png')
  file = annotations(**{'b.png': (90, 50), 'a.png': (3, 4), 'a.jpg': (6, 8)})
  assert ids(photos, file, *names) == [72, 70, 71]
  # The longest name that fits, and one with folders that are not there.
  file = annotations(
    **{'a.png': (3, 4), 'sub/a.png': (3, 4), 'train/b.png': (9, 5)}
  )
  assert ids(photos, file, *names[1:]) == [72, 71]


def test_images_that_are_not_in_the_annotations(photos, annotations):
  file = annotations(**{'b.png': (90, 50)})
  with pytest.raises(UserError, match='3 of 4') as error:
    ids(photos, file, '')
  assert error.value.path == str(file)
  assert error.value.item == str(photos / 'a.jpg')
  # Ambiguous: two folders of the annotations have such a file.
  file = annotations(**{'x/b.png': (90, 50), 'y/b.png': (90, 50)})
  with pytest.raises(UserError, match='1 of 1') as error:
    ids(photos, file, 'b.png')
  assert error.value.item == str(photos / 'b.png')


def test_two_images_with_one_id(photos, annotations, tmp_path):
  file = annotations(**{'b.png': (90, 50)})
  (tmp_path / 'b.png').touch()
  with pytest.raises(UserError) as error:
    ids(photos, file, 'b.png', tmp_path / 'b.png')
  assert error.value.item == 70
  assert error.value.path == str(tmp_path / 'b.png')


@pytest.mark.parametrize(
  'annotated, item',
  [
    ({}, None),
    ({1: 'Red'}, None),
    ({3: 'green'}, None),  # The checkpoint does not have it.
    ({1: 'blue', 2: 'red'}, 1),
    ({2: 'green'}, 2),
  ],
)
def test_annotations_of_other_classes_are_a_warning(caplog, annotated, item):
  trained = {1: 'red', 2: 'blue'}
  image_files.warn_of_other_names(trained, annotated, 'run', 'a.json')
  assert [x.args for x in caplog.records] == (
    [('a.json', item, annotated[item], 'run')] if item else []
  )
