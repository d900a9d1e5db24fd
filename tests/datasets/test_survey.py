"""Decisions for a whole set: EXIF rotations and value ranges."""

import io
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maskrcnn_jax.datasets import prepare, records, survey, value_range
from maskrcnn_jax.datasets.doctor import split
from maskrcnn_jax.datasets.findings import InvalidDataError
from maskrcnn_jax.datasets.labelled import LabelOptions
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.inference import image_files
from maskrcnn_jax.input_pipeline import decode

BOX = (6, 4, 20, 16)  # x, y, width and height of a red object.
# How a camera stores an upright picture, by EXIF orientation.
STORED = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_90,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_270,
}


def write_set(folder, sizes):
  """A COCO json of images by name and (height, width), an object in each."""
  (folder / 'images').mkdir(exist_ok=True)
  x, y, width, height = BOX
  polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
  content = {
    'images': [
      {'id': i, 'file_name': name, 'height': h, 'width': w}
      for i, (name, (h, w)) in enumerate(sizes.items(), 1)
    ],
    'annotations': [
      {
        'id': i,
        'image_id': i,
        'category_id': 1,
        'bbox': list(BOX),
        'area': width * height,
        'iscrowd': 0,
        'segmentation': [polygon],
      }
      for i in range(1, len(sizes) + 1)
    ],
    'categories': [{'id': 1, 'name': 'red'}],
  }
  (folder / 'labels.json').write_text(json.dumps(content))
  return folder / 'images', folder / 'labels.json'


def write_photos(
  folder, turns, size=(80, 48), meant='upright', ending='.jpg', **options
):
  """Photos with a red square that a camera turned; see `write_set`."""
  upright, sizes = Image.new('RGB', size, 'gray'), {}
  x, y, width, height = BOX
  upright.paste('red', (x, y, x + width, y + height))
  (folder / 'images').mkdir()
  for turn in turns:
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = upright.transpose(STORED[turn]) if turn in STORED else upright
    shown = stored if meant == 'stored' else upright
    sizes[f'o{turn}{ending}'] = shown.size[::-1]
    path = folder / 'images' / f'o{turn}{ending}'
    stored.save(path, exif=exif, **options)
  return write_set(folder, sizes)


def read_pixels(pattern):
  """Pixels of every record, by the decoder of training."""
  index = records.index_records(pattern)
  found = []
  for row in range(len(index)):
    record = tf.constant(records.read_record(index, row))
    encoded = records.parse_record(record)['encoded']
    found.append(decode.decode_image(encoded).numpy())
  return found


def kinds(findings):
  return {each.kind: each.severity for each in findings}


def is_red(pixels):
  x, y, width, height = BOX
  inside = pixels[y + 2 : y + height - 2, x + 2 : x + width - 2].mean((0, 1))
  return bool(inside[0] > 240 and inside[1:].max() < 20)


def prepared(folder, images, labels, **options):
  summary = prepare.prepare(
    images, labels, folder / 'rec' / 'x', num_workers=1, **options
  )
  return read_pixels(str(folder / 'rec' / 'x-*')), kinds(summary.findings)


@pytest.mark.parametrize(
  'turns, size, exif, severity, kind, red',
  [
    # Those of 5 to 8 are proved upright.
    (range(1, 9), (80, 48), None, 'note', 'rotation_decided', True),
    ((2, 3, 4), (80, 48), None, 'warning', 'rotation_unclear', False),
    ((2, 3, 4), (80, 48), 'upright', None, None, True),
    (range(2, 9), (48, 48), None, 'warning', 'rotation_unclear', False),
    (range(2, 9), (48, 48), 'upright', None, None, True),
    (range(2, 9), (48, 48), 'stored', None, None, False),
  ],
)
def test_images_whose_size_tells_decide_for_others(
  tmp_path, turns, size, exif, severity, kind, red
):
  paths = write_photos(tmp_path, turns, size)
  pixels, found = prepared(tmp_path, *paths, exif=exif)
  assert [is_red(x) for x in pixels] == [red] * len(turns)
  assert found.get(kind) == severity
  if exif:
    assert not {'rotation_decided', 'rotation_unclear'} & found.keys()
  checked = split.read_split(
    'train', *paths, LabelOptions(num_workers=1, exif=exif)
  )
  assert kinds(checked.findings).get(kind) == severity
  # The same in predict.
  files, _ = image_files.list_images([paths[0]], tmp_path / 'out', paths[1])
  files, _ = image_files.survey_files(files, paths[1], exif)
  seen = [image_files.read(x.path, x.size, x.upright) for x in files]
  assert [is_red(x) for x in seen] == [red] * len(turns)


@pytest.mark.parametrize(
  'ending, options, told',
  [
    ('.png', {}, True),
    ('.webp', {'lossless': True}, True),
    ('.avif', {'quality': 95}, True),
    ('.tif', {}, False),  # Pillow always turns it.
  ],
)
def test_rotations_of_other_formats(tmp_path, ending, options, told):
  paths = write_photos(tmp_path, range(1, 9), ending=ending, **options)
  pixels, found = prepared(tmp_path, *paths)
  assert [is_red(x) for x in pixels] == [True] * 8
  assert ('rotation_decided' in found) == told
  files, _ = image_files.list_images([paths[0]], tmp_path / 'out', paths[1])
  files, _ = image_files.survey_files(files, paths[1])
  seen = [image_files.read(x.path, x.size, x.upright) for x in files]
  assert [is_red(x) for x in seen] == [True] * 8


def test_a_rotation_behind_the_pixels_of_a_long_png(tmp_path):
  size = (400, 300)
  images, labels = write_photos(tmp_path, (3, 6), size, ending='.png')
  noise = np.random.default_rng(0).integers(0, 99, (300, 400, 3))
  x, y, width, height = BOX
  noise[y : y + height, x : x + width] = (255, 0, 0)
  stored = Image.fromarray(noise.astype(np.uint8)).transpose(STORED[3])
  exif = Image.Exif()
  exif[0x0112] = 3
  stream = io.BytesIO()
  stored.save(stream, 'PNG', exif=exif)
  content = stream.getvalue()
  begin = content.index(b'eXIf') - 4
  end = begin + 12 + int.from_bytes(content[begin : begin + 4])
  (images / 'o3.png').write_bytes(
    content[:begin] + content[end:-12] + content[begin:end] + content[-12:]
  )
  assert len(content) > 2**17
  pixels, found = prepared(tmp_path, images, labels)
  assert [is_red(x) for x in pixels] == [True] * 2
  assert found['rotation_decided'] == 'note'


def test_a_set_of_stored_pictures(tmp_path):
  paths = write_photos(tmp_path, (3, 6), meant='stored')
  pixels, found = prepared(tmp_path, *paths)
  assert found['rotation_decided'] == 'note'
  assert found['rotation_ignored'] == 'note'
  assert not any(is_red(x) for x in pixels)


def ramp(dtype, highest):
  """Values from 0 to the highest, `[48, 64]`."""
  return np.linspace(0, highest, 48 * 64).reshape(48, 64).astype(dtype)


def scaled(values, low, high):
  """Plain equal steps from `low` to `high`."""
  unit = 0 if values.dtype.kind == 'f' else 1
  steps = (values.astype(np.float64) - low) * 256 / (high - low + unit)
  return np.floor(steps).clip(0, 255)


def check_pixels(pixels, expected):
  """Equal, but for a step that single precision rounds."""
  difference = np.abs(pixels[..., 0] - expected)
  assert difference.max() <= 1 and np.mean(difference > 0) < 0.01
  assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize(
  'name, dtype, highest, by_type',
  [
    ('a.tif', np.float32, 1, True),
    ('a.tif', np.float32, 0.9, True),
    ('a.tif', np.float32, 0.01, False),
    ('a.tif', np.float32, 4095, False),
    ('a.tif', np.int32, 4095, False),
    ('a.tif', np.uint16, 4095, False),
    ('a.png', np.uint16, 4095, False),
    ('a.png', np.uint16, 60000, True),
    ('a.tif', np.uint16, 60000, True),
    ('a.pgm', np.uint16, 60000, True),
  ],
)
def test_values_are_scaled_by_the_stated_range(
  tmp_path, name, dtype, highest, by_type
):
  images, labels = write_set(tmp_path, {name: (48, 64)})
  values = ramp(dtype, highest)
  Image.fromarray(values).save(images / name)
  low, high = np.percentile(values, [0.1, 99.9])
  if dtype is not np.float32:
    low, high = np.floor(low), np.ceil(high)
  if by_type:
    low, high = 0, 1 if dtype is np.float32 else 65535
  (pixels,), found = prepared(tmp_path, images, labels)
  assert found['value_range'] == 'note' and 'values_clipped' not in found
  check_pixels(pixels.astype(int), scaled(values, low, high))
  files, _ = image_files.list_images([images], tmp_path / 'out')
  files, seen = image_files.survey_files(files)
  (value,) = seen.ranges.values()
  assert value == pytest.approx((low, high))
  again = image_files.read(files[0].path, ranges=seen.ranges)
  np.testing.assert_array_equal(again, pixels)


def test_images_of_a_set_share_their_range(tmp_path):
  images, labels = write_set(tmp_path, {'a.tif': (48, 64), 'b.tif': (48, 64)})
  Image.fromarray(ramp(np.int32, 100)).save(images / 'a.tif')
  Image.fromarray(ramp(np.int32, 1000)).save(images / 'b.tif')
  (dim, bright), _ = prepared(tmp_path, images, labels)
  assert 20 <= dim.max() <= 30 and bright.max() == 255


def test_a_given_range_and_what_it_clips(tmp_path):
  images, labels = write_set(tmp_path, {'a.tif': (48, 64), 'b.png': (48, 64)})
  values = ramp(np.float32, 4095)
  Image.fromarray(values).save(images / 'a.tif')
  Image.fromarray(values.astype(np.uint16)).save(images / 'b.png')
  given = (1000, 2000)
  pixels, found = prepared(tmp_path, images, labels, value_range=given)
  assert found['values_clipped'] == 'warning'
  check_pixels(pixels[0].astype(int), scaled(values, *given))
  check_pixels(pixels[1].astype(int), scaled(values.astype(np.uint16), *given))
  checked = split.read_split(
    *('train', images, labels),
    LabelOptions(num_workers=1, value_range=given),
  )
  assert kinds(checked.findings)['values_clipped'] == 'warning'


@pytest.mark.parametrize(
  'argument, value',
  [('exif', 'turned'), ('value_range', (5, 5)), ('value_range', (0, np.inf))],
)
def test_wrong_options(tmp_path, argument, value):
  paths = write_set(tmp_path, {'a.png': (48, 64)})
  with pytest.raises(UserError) as error:
    prepare.prepare(*paths, tmp_path / 'x', **{argument: value})
  assert (error.value.argument, error.value.given) == (argument, value)


def test_values_that_are_no_numbers():
  values = np.float32([[np.nan, -np.inf, np.inf, 0.5, 1.0]])
  pixels, clipped = value_range.scale(values, (0, 1))
  assert pixels.tolist() == [[0, 0, 255, 128, 255]]
  assert clipped == pytest.approx(0.6)
  assert value_range.find('float32', value_range.sample(values)) == (0, 1)
  assert value_range.find('int32', np.zeros(0)) == (0, 1)


def damaged_pngs():
  """PNG files that Pillow reads and TensorFlow does not."""
  stream = io.BytesIO()
  noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
  Image.fromarray(noise).save(stream, 'PNG')
  content = stream.getvalue()
  end = content.index(b'IEND') - 4  # The checksum of the pixels ends there.
  wrong = bytes([content[end - 1] ^ 1])
  return {
    'sound.png': content,
    'checksum.png': content[: end - 1] + wrong + content[end:],
    'no_end.png': content[:end],
  }


def test_files_that_training_refuses_are_errors(tmp_path):
  files = damaged_pngs()
  images, labels = write_set(tmp_path, dict.fromkeys(files, (48, 64)))
  for name, content in files.items():
    (images / name).write_bytes(content)
    Image.open(images / name).load()
  with pytest.raises(InvalidDataError) as error:
    prepare.prepare(images, labels, tmp_path / 'rec' / 'x', num_workers=1)
  refused = {(x.kind, x.image_id) for x in error.value.findings}
  assert refused == {('unusable_image', 2), ('unusable_image', 3)}
  checked = split.read_split(
    'train', images, labels, LabelOptions(num_workers=1)
  )
  assert {
    (x.kind, x.image_id) for x in checked.findings if x.severity == 'error'
  } == refused
  assert not list(tmp_path.glob('rec/*'))


def test_files_outside_of_the_folder_are_not_opened(tmp_path, monkeypatch):
  images, labels = write_set(tmp_path, {'../a.jpg': (48, 64)})
  (tmp_path / 'a.jpg').write_bytes(b'secret')
  opened = []
  monkeypatch.setattr(
    survey, '_look', lambda row: opened.append(row) or (None, None)
  )
  split.read_split('train', images, labels, LabelOptions(num_workers=1))
  assert opened == []
