"""Image files as records store them."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maskrcnn_jax.datasets import images
from maskrcnn_jax.errors import UserError


def _save(path, size=(40, 30), mode='RGB', orientation=None, **options):
  """Writes a picture whose left half is dark; returns the file's bytes."""
  width, height = size
  pixels = np.full((height, width), 200, np.uint8)
  pixels[:, : width // 2] = 20
  if orientation is not None:
    options['exif'] = Image.Exif()
    options['exif'][0x0112] = orientation
  Image.fromarray(pixels).convert(mode).save(path, **options)
  return path.read_bytes()


@pytest.mark.parametrize(
  'name, mode',
  [
    *(('a.jpg', mode) for mode in ('RGB', 'L', 'CMYK')),
    *(('a.png', mode) for mode in ('RGBA', 'L', 'P', '1')),
  ],
)
def test_usual_files_are_kept_byte_for_byte(tmp_path, name, mode):
  content = _save(tmp_path / name, mode=mode)
  encoded, note = images.read_image(tmp_path / name, 30, 40)
  assert encoded == content
  assert note is None
  assert tf.io.decode_image(encoded, channels=3).shape == (30, 40, 3)


@pytest.mark.parametrize('name', ['a.webp', 'a.gif', 'a.bmp', 'a.tif'])
def test_other_formats_become_png(tmp_path, name):
  _save(tmp_path / name)
  encoded, note = images.read_image(tmp_path / name, 30, 40)
  assert note == 'stored_as_png'
  opened = Image.open(io.BytesIO(encoded))
  assert opened.format == 'PNG' and opened.size == (40, 30)


def test_rotated_image_is_stored_upright_if_the_json_means_that(tmp_path):
  _save(tmp_path / 'a.jpg', orientation=6)  # Upright after a quarter turn.
  encoded, note = images.read_image(tmp_path / 'a.jpg', 40, 30)
  assert note == 'stored_upright'
  opened = Image.open(io.BytesIO(encoded))
  assert opened.size == (30, 40)
  assert opened.getexif().get(0x0112, 1) == 1
  pixels = np.asarray(opened.convert('L'))
  assert pixels[:15].mean() < 40 and pixels[25:].mean() > 180


@pytest.mark.parametrize('orientation', [3, 6])
def test_rotation_is_ignored_if_the_json_means_stored_pixels(
  tmp_path, orientation
):
  content = _save(tmp_path / 'a.jpg', orientation=orientation)
  encoded, note = images.read_image(tmp_path / 'a.jpg', 30, 40)
  assert (encoded, note) == (content, 'rotation_ignored')


def test_size_mismatch_gives_both_sizes(tmp_path):
  _save(tmp_path / 'a.jpg')
  with pytest.raises(UserError) as error:
    images.read_image(tmp_path / 'a.jpg', 40, 30)
  assert (error.value.given, error.value.wanted) == ((30, 40), (40, 30))


@pytest.mark.parametrize('name', ['a.jpg', 'a.png'])
def test_truncated_or_missing_file_cannot_be_read(tmp_path, name):
  content = _save(tmp_path / name)
  for share in (0.0, 0.3, 0.7):
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError) as error:
      images.read_image(tmp_path / name, 30, 40)
    assert error.value.path == str(tmp_path / name)
  (tmp_path / name).unlink()
  with pytest.raises(UserError, match=name):
    images.read_image(tmp_path / name, 30, 40)


def test_images_of_a_folder(tmp_path):
  (tmp_path / 'sub').mkdir()
  (tmp_path / 'x.png').mkdir()
  for name in ('b.JPG', 'sub/a.jp2', '.hidden.jpg', 'notes.txt'):
    (tmp_path / name).touch()
  found = list(images.find_in_folder(tmp_path))
  assert found == [tmp_path / 'b.JPG', tmp_path / 'sub' / 'a.jp2']
