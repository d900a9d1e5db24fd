"""Image files: which are meant, and that they become the usual pixels."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image

from maskrcnn_jax.datasets import images
from maskrcnn_jax.inference import image_files


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
  'name, mode',
  [
    ('a.jpg', 'RGB'),
    ('a.jpg', 'L'),
    ('a.jpg', 'CMYK'),
    ('a.png', 'RGB'),
    ('a.png', 'RGBA'),
    ('a.png', 'LA'),
    ('a.png', 'L'),
    ('a.png', 'P'),
    ('a.png', '1'),
  ],
)
def test_jpeg_and_png_have_the_pixels_of_records(tmp_path, name, mode):
  save(tmp_path / name, mode=mode)
  encoded, _ = images.read_image(tmp_path / name, 40, 56)
  pixels = image_files.read(tmp_path / name)
  assert pixels.dtype == np.uint8
  np.testing.assert_array_equal(
    pixels, tf.io.decode_image(encoded, channels=3, expand_animations=False)
  )


@pytest.mark.parametrize(
  'name, mode',
  [
    ('a.bmp', 'RGB'),
    ('a.gif', 'P'),
    ('a.tif', 'RGB'),
    ('a.tif', 'CMYK'),
    ('a.tif', 'L'),
    ('a.webp', 'RGBA'),
    ('a.ppm', 'RGB'),
    ('a.tga', 'RGB'),
  ],
)
def test_other_formats_have_the_pixels_of_records(tmp_path, name, mode):
  save(tmp_path / name, mode=mode)
  encoded, _ = images.read_image(tmp_path / name, 40, 56)
  np.testing.assert_array_equal(
    image_files.read(tmp_path / name), tf.io.decode_png(encoded, channels=3)
  )


@pytest.mark.parametrize('name', ['a.png', 'a.tif'])
@pytest.mark.parametrize('order', ['<u2', '>u2'])
def test_of_16_bits_the_upper_8_count(tmp_path, name, order):
  values = np.random.default_rng(0).integers(0, 65536, (30, 40)).astype(order)
  Image.fromarray(values).save(tmp_path / name)
  expected = np.repeat((values >> 8)[..., None], 3, axis=-1)
  np.testing.assert_array_equal(image_files.read(tmp_path / name), expected)
  encoded, _ = images.read_image(tmp_path / name, 30, 40)
  decoded = tf.io.decode_png(encoded, channels=3)
  np.testing.assert_array_equal(decoded, expected)


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


def test_a_size_that_the_json_does_not_say(tmp_path):
  save(tmp_path / 'a.jpg')
  with pytest.raises(ValueError, match=r'is 40 x 56 .* the json says 56 x 40'):
    image_files.read(tmp_path / 'a.jpg', (56, 40))


@pytest.mark.parametrize(
  'content, message',
  [
    (b'', 'is empty'),
    (b'A text, not a picture.\n' * 20, 'is no image of a known format'),
  ],
)
def test_no_images(tmp_path, content, message):
  (tmp_path / 'a.jpg').write_bytes(content)
  with pytest.raises(ValueError, match=message):
    image_files.read(tmp_path / 'a.jpg')


def test_a_missing_file(tmp_path):
  with pytest.raises(ValueError, match='cannot be read'):
    image_files.read(tmp_path / 'a.jpg')


def test_a_bomb_is_not_decoded(tmp_path, monkeypatch):
  save(tmp_path / 'a.png')
  monkeypatch.setattr(image_files, 'MOST_PIXELS', 40 * 56 - 1)
  with pytest.raises(ValueError, match='is 40 x 56, more than 2,239 pixels'):
    image_files.read(tmp_path / 'a.png')


def test_images_too_large_for_tensorflow(tmp_path, monkeypatch):
  save(tmp_path / 'a.png')
  expected = image_files.read(tmp_path / 'a.png')
  monkeypatch.setattr(image_files, '_MOST_PIXELS_OF_TENSORFLOW', 100)
  np.testing.assert_array_equal(image_files.read(tmp_path / 'a.png'), expected)


@pytest.mark.parametrize(
  'name', ['a.jpg', 'a.png', 'a.gif', 'a.tif', 'a.webp', 'a.bmp']
)
def test_damage_is_a_value_error_or_an_image(tmp_path, name):
  content = np.frombuffer(save(tmp_path / name), np.uint8)
  rng = np.random.default_rng(0)
  refused = 0
  for number in range(60):
    damaged = content.copy()
    if number % 2:
      damaged = damaged[: rng.integers(1, len(content))]
    places = rng.integers(0, len(damaged), 1 + len(damaged) // 100)
    damaged[places] = rng.integers(0, 256, len(places))
    (tmp_path / name).write_bytes(damaged.tobytes())
    try:
      pixels = image_files.read(tmp_path / name)
    except ValueError:
      refused += 1
    else:
      assert pixels.dtype == np.uint8 and pixels.shape[2:] == (3,)
  assert refused > 5


def test_damaged_exif_does_not_cost_the_picture(tmp_path):
  stream = io.BytesIO()
  Image.fromarray(photo()).save(stream, 'JPEG', exif=b'Exif\0\0MM\0*nonsense')
  (tmp_path / 'a.jpg').write_bytes(stream.getvalue())
  assert image_files.read(tmp_path / 'a.jpg').shape == (40, 56, 3)


@pytest.fixture
def folder(tmp_path):
  """Files of many kinds; none is opened."""
  names = (
    *('b.jpg', 'a.PNG', 'notes.txt', '.hidden.jpg', 'sub/c.jpeg', 'sub/d.json'),
    'sub/deep/e.tiff',
  )
  for name in names:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  return tmp_path


def found(folder, *paths):
  files = image_files.find([str(folder / path) for path in paths])
  return [file.relative_to(folder).as_posix() for file in files]


def test_a_folder_gives_the_images_below_it(folder):
  everything = ['a.PNG', 'b.jpg', 'sub/c.jpeg', 'sub/deep/e.tiff']
  assert found(folder, '') == everything
  assert found(folder, 'sub') == everything[2:]


def test_what_is_named_is_taken_as_it_is(folder):
  assert found(folder, 'notes.txt', 'b.jpg') == ['notes.txt', 'b.jpg']


def test_patterns(folder):
  assert found(folder, '*.jpg') == ['b.jpg']
  assert found(folder, '**/*.j*') == ['b.jpg', 'sub/c.jpeg', 'sub/d.json']
  assert found(folder, 's*') == ['sub/c.jpeg', 'sub/deep/e.tiff']


def test_no_image_twice(folder):
  assert found(folder, 'b.jpg', '', 'sub/../b.jpg')[0] == 'b.jpg'
  assert len(found(folder, 'b.jpg', '', 'sub/../b.jpg')) == 4


def test_a_file_whose_name_looks_like_a_pattern(folder):
  (folder / 'x[1].jpg').touch()
  assert found(folder, 'x[1].jpg') == ['x[1].jpg']


@pytest.mark.parametrize('path', ['none.jpg', '*.webp', 'nowhere/'])
def test_what_means_nothing_is_named(folder, path):
  with pytest.raises(FileNotFoundError, match='nothing matches it'):
    found(folder, path)


def test_a_folder_without_images(folder):
  (folder / 'empty').mkdir()
  with pytest.raises(FileNotFoundError, match='empty holds no image file'):
    found(folder, 'b.jpg', 'empty')
