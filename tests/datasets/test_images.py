"""Image files as records store them."""

import io
import os
import struct

import hostile_images
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maskrcnn_jax.datasets import image_headers, images, stored_images
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
  encoded, note = stored_images.read(tmp_path / name, 30, 40)
  assert encoded == content
  assert note is None
  assert tf.io.decode_image(encoded, channels=3).shape == (30, 40, 3)


@pytest.mark.parametrize('name', ['a.webp', 'a.gif', 'a.bmp', 'a.tif'])
def test_other_formats_become_png(tmp_path, name):
  _save(tmp_path / name)
  encoded, note = stored_images.read(tmp_path / name, 30, 40)
  assert note == 'stored_as_png'
  opened = Image.open(io.BytesIO(encoded))
  assert opened.format == 'PNG' and opened.size == (40, 30)


@pytest.mark.parametrize('name', ['a.webp', 'a.gif', 'a.tif'])
def test_first_frame_of_several_is_noted(tmp_path, name):
  frames = [Image.new('RGB', (40, 30), colour) for colour in ('red', 'blue')]
  options = {'lossless': True} if name == 'a.webp' else {}
  frames[0].save(
    tmp_path / name, save_all=True, append_images=frames[1:], **options
  )
  encoded, note = stored_images.read(tmp_path / name, 30, 40)
  assert note == 'first_frame'
  opened = Image.open(io.BytesIO(encoded)).convert('RGB')
  assert opened.getpixel((20, 15)) == (255, 0, 0)


def test_rotated_image_is_stored_upright_if_the_json_means_that(tmp_path):
  _save(tmp_path / 'a.jpg', orientation=6)  # Upright after a quarter turn.
  encoded, note = stored_images.read(tmp_path / 'a.jpg', 40, 30)
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
  encoded, note = stored_images.read(tmp_path / 'a.jpg', 30, 40)
  assert (encoded, note) == (content, 'rotation_ignored')


def test_size_mismatch_gives_both_sizes(tmp_path):
  _save(tmp_path / 'a.jpg')
  with pytest.raises(UserError) as error:
    stored_images.read(tmp_path / 'a.jpg', 40, 30)
  assert (error.value.given, error.value.wanted) == ((30, 40), (40, 30))


@pytest.mark.parametrize('name', ['a.jpg', 'a.png'])
def test_truncated_or_missing_file_cannot_be_read(tmp_path, name):
  content = _save(tmp_path / name)
  for share in (0.0, 0.3, 0.7):
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError) as error:
      stored_images.read(tmp_path / name, 30, 40)
    assert error.value.path == str(tmp_path / name)
  (tmp_path / name).unlink()
  with pytest.raises(UserError, match=name):
    stored_images.read(tmp_path / name, 30, 40)


def test_images_of_a_folder(tmp_path):
  (tmp_path / 'sub').mkdir()
  (tmp_path / 'x.png').mkdir()
  for name in ('b.JPG', 'sub/a.avif', '.hidden.jpg', 'notes.txt'):
    (tmp_path / name).touch()
  found = list(images.find_in_folder(tmp_path))
  assert found == [tmp_path / 'b.JPG', tmp_path / 'sub' / 'a.avif']


@pytest.mark.parametrize('name', hostile_images.ALL)
def test_hostile_images_are_refused_before_they_are_decoded(
  tmp_path, monkeypatch, name
):
  def fail(*unused):
    raise AssertionError('decoded, or another program started')

  monkeypatch.setattr(os, 'system', fail)
  monkeypatch.setattr('subprocess.Popen', fail)
  if name not in ('more_data', 'tiff'):
    monkeypatch.setattr('PIL.ImageFile.ImageFile.load', fail)
  path = tmp_path / f'{name}.jpg'  # Whatever the ending says.
  path.write_bytes(hostile_images.ALL[name]())
  for read in (
    lambda: stored_images.read(path, 9, 9),
    lambda: images.decode(path.read_bytes(), path),
  ):
    with pytest.raises(UserError) as error:
      read()
    assert error.value.path == str(path)
    assert '\n' not in str(error.value)


def test_the_budget_counts_pixels_and_bytes(tmp_path, monkeypatch):
  content = _save(tmp_path / 'a.png')
  monkeypatch.setattr(images, '_limit', images.max_pixels())
  images.set_max_pixels(30 * 40)
  assert images.decode(content).size == (40, 30)
  images.set_max_pixels(30 * 40 - 1)
  with pytest.raises(UserError) as error:
    images.read_sizes(tmp_path / 'a.png')
  assert (error.value.given, error.value.wanted) == ((30, 40), 1199)
  os.truncate(tmp_path / 'a.png', 2**26)
  with pytest.raises(UserError, match=f'{2**26} bytes'):
    images.read_bytes(tmp_path / 'a.png')
  for wrong in (0, 1.5):
    with pytest.raises(UserError) as error:
      images.set_max_pixels(wrong, 'input.max_pixels')
    assert error.value.argument == 'input.max_pixels'


def test_what_is_no_file_is_not_read(tmp_path):
  os.mkfifo(tmp_path / 'a.jpg')
  for path in (tmp_path / 'a.jpg', tmp_path, '/dev/zero', 'a\0.jpg'):
    with pytest.raises(UserError) as error:
      stored_images.read(path, 9, 9)
    assert error.value.path == str(path)


@pytest.mark.parametrize('kind', [*images.FORMATS])
def test_headers_tell_the_size_that_decoders_find(kind):
  stream = io.BytesIO()
  frames = [Image.new('RGB', (31, 17), color) for color in ('red', 'blue')]
  more = {'save_all': True, 'append_images': frames[1:]}
  animated = kind in ('GIF', 'WEBP', 'PNG')
  frames[0].save(stream, kind, **(more if animated else {}))
  encoded = stream.getvalue()
  known = kind not in ('TIFF', 'AVIF', 'PPM')
  assert images.check_encoded(encoded) == ((17, 31) if known else None)
  assert images.decode(encoded).size == (31, 17)
  if kind == 'GIF':
    assert image_headers.gif_pixels(encoded) == 2 * 17 * 31


def test_scans_are_those_of_the_image_alone(tmp_path, monkeypatch):
  """Phones append previews and videos, and EXIF holds a thumbnail."""
  content = _save(tmp_path / 'a.jpg')
  scan = b'\xff\xda\0\x02'
  note = b'\xff\xfe' + struct.pack('>H', 2 + len(60 * scan)) + 60 * scan
  monkeypatch.setattr(images, '_limit', 30 * 40)
  photo = content[:2] + note + content[2:] + 1000 * scan
  assert images.check_encoded(photo) == (30, 40)
  assert images.decode(photo).size == (40, 30)
  with pytest.raises(UserError, match='41 scans'):
    images.check_encoded(content[:-2] + 40 * scan + content[-2:])
