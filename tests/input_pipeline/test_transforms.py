import functools
import json

import example_records
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from maskrcnn_jax.datasets import records
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.input_pipeline import (
  decode,
  mask_crops,
  resizing,
  single_images,
  transforms,
)
from maskrcnn_jax.ops import anchors, masks, matching
from maskrcnn_jax.ops import boxes as box_ops

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
MODES = ('eval', 'noflip', 'flip')
OPTIONS = resizing.ResizeOptions()


def name(path):
  return path.stem


SIZES = pytest.mark.parametrize(
  'resized_size', [transforms.resized_size, resizing.resized_size]
)


@SIZES
@pytest.mark.parametrize('path', golden_files.files('12_scaled*.npz'), ids=name)
def test_golden_scaled_sizes(path, resized_size):
  golden = golden_files.load(path)
  fits = [
    resizing.fit_size(p, resizing.ResizeOptions(tuple(t.tolist())))
    for p, t in zip(golden['padded'], golden['target'])
  ]
  np.testing.assert_array_equal(fits, golden['target'])
  sizes, scales = resized_size(golden['hw'], golden['target'])
  np.testing.assert_array_equal(sizes, golden['image_info'][:, :2])
  inverse = 1.0 / np.asarray(scales)[:, 0]
  np.testing.assert_array_equal(inverse, golden['image_info'][:, 2])


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize(
  'path', golden_files.files('12_preprocess*.npz'), ids=name
)
def test_golden_preprocessing(path, mode):
  golden, made, canvas = preprocess(path, mode)
  info = golden[f'{mode}_image_info']
  np.testing.assert_array_equal(made['image_sizes'], info[:2])
  np.testing.assert_array_equal(made['original_sizes'], info[3:])
  np.testing.assert_array_equal(1.0 / made['scales'].numpy(), info[[2, 2]])
  image = normalized(made, canvas)
  if f'{mode}_images' in golden:
    expected = golden[f'{mode}_images']
  else:
    expected = golden[f'{mode}_images_slice']
    mean = np.mean(image, axis=(0, 1), dtype=np.float64)
    assert (
      golden_files.relative_error(mean, golden[f'{mode}_images_mean_f64'])
      < 1e-6
    )
    image = image[::37, ::41]
  assert golden_files.relative_error(image, expected) < 1e-6
  if mode == 'eval':
    return
  count = int(golden[f'{mode}_n_valid'])
  boxes = golden[f'{mode}_gt_boxes'][:count]
  np.testing.assert_array_equal(made['boxes'], boxes)
  classes = golden[f'{mode}_gt_classes'][:count, 0]
  np.testing.assert_array_equal(made['classes'], classes)
  crops = crop_masks(made)
  expected = golden[f'{mode}_cropped_gt_masks'][:, 2:-2, 2:-2]
  assert golden_files.relative_error(crops, expected) < 1e-6


def crop_masks(made):
  """The crops of an example after `resize`."""
  names = ('masks', 'original_sizes', 'boxes', 'rows', 'columns')
  return mask_crops.crop_masks(*(made[name] for name in names), 112)


@functools.cache
def preprocess(path, mode):
  """A recording, its example after `resize`, and the canvas."""
  golden = golden_files.load(path)
  target = json.loads(str(golden['meta']))['params']['image_size']
  canvas = [-(-side // 64) * 64 for side in target]
  masks = [example_records.png(mask) for mask in golden['in_masks']]
  record = {
    'encoded': tf.constant(example_records.png(golden['in_image'])),
    'height': tf.constant(golden['in_image'].shape[0]),
    'width': tf.constant(golden['in_image'].shape[1]),
    'boxes': tf.constant(golden['in_boxes']),
    'classes': tf.constant(golden['in_classes']),
    'is_crowd': tf.constant(golden['in_is_crowd']),
    'masks': tf.constant(masks, tf.string),
  }
  example = decode.decode_record(record, 100, with_instances=mode != 'eval')
  flip = tf.constant(mode == 'flip')
  made = transforms.resize(example, canvas, target, flip, OPTIONS)
  return golden, made, canvas


def normalized(made, canvas):
  """The network's input, as the device computes it."""
  image = transforms.finish_image(made['image'], 'float32')
  image = transforms.pad_image(image, canvas).numpy()
  image = (image / 255 - MEAN) / STD
  height, width = made['image_sizes'].numpy().astype(int)
  image[height:], image[:, width:] = 0, 0
  return image


@pytest.mark.parametrize(
  'path', golden_files.files('12_preprocess*.npz'), ids=name
)
def test_golden_rpn_targets_of_our_boxes(path):
  for mode in ('noflip', 'flip'):
    golden, made, canvas = preprocess(path, mode)
    pyramid = anchors.pyramid_anchors(
      canvas, range(2, 7), anchors.AnchorOptions()
    )
    levels = [pyramid[level] for level in sorted(pyramid)]
    instances = np.zeros([5, 4], np.float32)
    count = len(made['boxes'])
    instances[:count] = made['boxes']
    joined = np.concatenate(levels)
    deltas = rpn_deltas(joined, instances, np.arange(5) < count)
    expected = golden[f'{mode}_box_targets']
    assert golden_files.relative_error(deltas, expected) < 1e-5


@jax.jit
def rpn_deltas(boxes, instances, valid):
  options = matching.MatchingOptions(low_quality_matches='one')
  matches = matching.match(boxes, instances, valid, options)
  deltas = box_ops.encode(instances[matches.indices], boxes)
  return jnp.where(matches.labels[:, None] == 1, deltas, 0.0)


@pytest.mark.parametrize('path', golden_files.files('07_mask*.npz'), ids=name)
def test_golden_mask_crops(path):
  golden = golden_files.load(path)
  masks = golden['instance_masks']
  rows, columns = map(tf.range, masks.shape[1:])
  boxes = golden['gt_boxes_px']
  crops = example_records.crop_masks(masks, boxes, rows, columns, 112)
  expected = golden['cropped_gt_masks'][:, 2:-2, 2:-2]
  assert golden_files.relative_error(crops, expected) < 1e-4


TORCHVISION = golden_files.files('ops_transform_misc*.npz', 'torchvision')


@pytest.mark.parametrize('path', TORCHVISION, ids=name)
@pytest.mark.parametrize('sides', [(800, 1333), (320, 512)])
@SIZES
def test_torchvision_sizes(path, sides, resized_size):
  golden = golden_files.load(path)
  original = golden['resize_input_hw'].astype(np.int32)
  tall = original[:, :1] > original[:, 1:]
  fits = np.where(tall, sides[::-1], sides)
  sizes, scales = resized_size(original, fits, exact=True)
  expected = golden[f'resize_{sides[0]}_{sides[1]}']
  np.testing.assert_array_equal(sizes, expected)
  ratios = expected / original
  np.testing.assert_allclose(scales, ratios, rtol=1e-6)


@pytest.mark.parametrize('path', TORCHVISION, ids=name)
@pytest.mark.parametrize('case', [0, 1])
@pytest.mark.parametrize('image', [0, 1])
def test_torchvision_images_boxes_and_masks(path, case, image):
  golden = golden_files.load(path)
  prefix = f'{case}/'
  canvas = golden[f'{prefix}batched'].shape[2:]
  options = resizing.ResizeOptions(
    tuple(golden[f'{prefix}min_max'].tolist()),
    exact_sizes=True,
    half_pixel_masks=False,
  )
  pixels = golden[f'{prefix}image_{image}'].transpose(1, 2, 0)
  size = pixels.shape[:2]
  boxes = golden[f'{prefix}boxes_{image}'][:, [1, 0, 3, 2]]
  example = {
    # The recorded transform normalizes first, with the same result.
    'image': tf.constant(pixels),
    'boxes': tf.constant(boxes / np.array(size * 2, np.float32)),
    'classes': tf.zeros([len(boxes)], tf.int32),
    'masks': tf.constant([b''] * len(boxes)),  # Not decoded.
  }
  fit = resizing.fit_size(canvas, options)
  made = transforms.resize(example, canvas, fit, tf.constant(False), options)
  sizes = golden[f'{prefix}image_sizes'][image]
  np.testing.assert_array_equal(made['image_sizes'], sizes)
  actual = (made['image'] - MEAN) / STD
  expected = golden[f'{prefix}batched'][image].transpose(1, 2, 0)
  expected = expected[: sizes[0], : sizes[1]]
  assert golden_files.relative_error(actual, expected) < 1e-5
  expected = golden[f'{prefix}boxes_out_{image}'][:, [1, 0, 3, 2]]
  assert golden_files.relative_error(made['boxes'], expected) < 1e-6
  rows, columns = made['rows'].numpy(), made['columns'].numpy()
  rows, columns = rows[: sizes[0]], columns[: sizes[1]]
  masks = golden[f'{prefix}masks_{image}'][:, rows][:, :, columns]
  np.testing.assert_array_equal(masks, golden[f'{prefix}masks_out_{image}'])
  results = golden[f'{prefix}post_boxes_{image}'][:, [1, 0, 3, 2]]
  expected = golden[f'{prefix}post_boxes_out_{image}'][:, [1, 0, 3, 2]]
  actual = results / np.tile(made['scales'].numpy(), 2)
  assert golden_files.relative_error(actual, expected) < 1e-5


def test_nearest_pixels_are_those_of_the_resize_kernel():
  rng = np.random.default_rng(0)
  for original, resized in rng.integers(1, 1500, [300, 2]):
    pixels = tf.range(original)[:, None, None]
    expected = tf.image.resize(pixels, [resized, 1], 'nearest')[:, 0, 0]
    actual = transforms.nearest_pixels(original, resized)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize('flip', [False, True])
def test_crops_are_those_of_full_masks(flip):
  image, boxes, masks = example_records.rectangles(97, 61, 6)
  example = {
    'image': tf.constant(image),
    'boxes': tf.constant(boxes / np.array([97, 61] * 2, np.float32)),
    'classes': tf.range(1, 7),
    'masks': tf.constant([example_records.png(mask) for mask in masks]),
  }
  canvas = (160, 128)
  made = transforms.resize(example, canvas, canvas, tf.constant(flip), OPTIONS)
  full = tf.constant(masks)[..., None]
  full = tf.reverse(full, [2]) if flip else full
  size = tf.cast(made['image_sizes'], tf.int32)
  full = tf.image.resize(full, size, 'nearest')
  full = tf.image.pad_to_bounding_box(full, 0, 0, *canvas)
  normalized_boxes = made['boxes'] / np.array(canvas * 2, np.float32)
  expected = tf.image.crop_and_resize(
    tf.cast(full, tf.float32), normalized_boxes, tf.range(6), [112, 112]
  )
  np.testing.assert_allclose(crop_masks(made), expected[..., 0], atol=1e-4)


@pytest.mark.parametrize('original', [(1, 3000), (3000, 2), (1, 1), (5, 7)])
def test_extreme_shapes_keep_a_pixel(original):
  row = run(np.zeros([*original, 3], np.uint8), (64, 96))
  height, width = row['image_sizes'].numpy()
  assert 1 <= height <= 64
  assert 1 <= width <= 96
  assert row['images'].shape == (64, 96, 3)


@pytest.mark.parametrize('channels', [1, 2, 4])
def test_grey_and_transparent_images(channels):
  values = np.arange(64 * 64 * channels).reshape(64, 64, channels) % 251
  image = values.astype(np.uint8)
  row = run(image[..., 0] if channels == 1 else image, (64, 64), flip=False)
  expected = image[..., :3] if channels == 4 else image[..., [0, 0, 0]]
  np.testing.assert_array_equal(row['images'], expected)


def run(image, canvas, boxes=(), masks=(), crowd=None, seed=(0, 0), **options):
  """The row of a record."""
  options = transforms.TransformOptions(**options)
  serialized = example_records.record(
    *(example_records.png(image), 1, image.shape[:2], boxes, masks), crowd=crowd
  )
  record = records.parse_record(tf.constant(serialized))
  flip = transforms.draw_flip(tf.constant(seed, tf.int64), options)
  row = transforms.transform(record, canvas, canvas, flip, options)
  return transforms.pad(row, canvas, options)


def test_crowds_and_empty_boxes_are_skipped_and_the_largest_kept():
  image, boxes, masks = example_records.rectangles(64, 64, 7)
  boxes[:, :] = [[0, 0, s, s] for s in (10, 40, 20, 60, 30, 50, 0)]
  masks[:] = 1
  crowd = [0, 0, 0, 1, 0, 0, 0]
  given = (image, (64, 64), boxes, masks, crowd)
  instances = run(*given, flip=False, max_instances=9)['instances']
  np.testing.assert_array_equal(
    instances['classes'], [1, 2, 3, 5, 6, 0, 0, 0, 0]
  )
  np.testing.assert_array_equal(instances['valid'], np.arange(9) < 5)
  assert not np.any(instances['boxes'][5:])
  assert not np.any(instances['masks'][5:])
  instances = run(*given, flip=False, max_instances=3)['instances']
  np.testing.assert_array_equal(instances['classes'], [2, 5, 6])
  assert np.all(instances['valid'])


def test_flip_mirrors_image_boxes_and_masks_together():
  image, boxes, masks = example_records.rectangles(64, 64, 3)
  masks[:, :, :20] = 0
  given = (image, (64, 64), boxes, masks)
  rows = [run(*given, seed=(s, 1)) for s in range(8)]
  plain = run(*given, flip=False)
  flipped = [np.any(row['images'] != plain['images']) for row in rows]
  assert set(flipped) == {True, False}
  mirrored = rows[flipped.index(True)]
  np.testing.assert_array_equal(mirrored['images'], plain['images'][:, ::-1])
  expected = np.stack(
    [boxes[:, 0], 64 - boxes[:, 3], boxes[:, 2], 64 - boxes[:, 1]], -1
  )
  np.testing.assert_array_equal(mirrored['instances']['boxes'][:3], expected)
  # Only the sampling grid, which ends one pixel short, breaks the symmetry.
  crops = np.asarray(mirrored['instances']['masks'], int)[:3, :, ::-1]
  other = np.asarray(plain['instances']['masks'], int)[:3]
  assert np.mean(np.abs(crops - other)) < 255 * 0.03


def test_uint8_images_are_rounded_float32():
  image, _, _ = example_records.rectangles(50, 70, 0)
  exact = run(image, (96, 128), image_dtype='float32', flip=False)
  rounded = run(image, (96, 128), flip=False)
  assert rounded['images'].dtype == tf.uint8
  difference = np.abs(exact['images'] - tf.cast(rounded['images'], tf.float32))
  assert np.max(difference) <= 0.5 + 1e-4


def test_sizes_of_detection():
  inputs = {'canvases': [[64, 96]], 'resize': {'fit_size': [60, 90]}}
  own = {'canvases': [[96, 96]], 'fit_size': None}
  for evaluation, canvas, fit in (
    (None, (64, 96), [60, 90]),
    ({'canvases': None, 'fit_size': None}, (64, 96), [60, 90]),
    (own, (96, 96), None),
    (own | {'fit_size': (80, 90)}, (96, 96), (80, 90)),
  ):
    config = {'input': inputs, 'evaluation': evaluation}
    found = single_images.detection_sizes(config)
    assert found == {'canvases': (canvas,), 'resize': {'fit_size': fit}}
  config['evaluation'] = own | {'fit_size': (80, 100)}
  with pytest.raises(UserError) as error:
    single_images.detection_sizes(config)
  assert error.value.argument == 'evaluation.fit_size'


def test_fit_size_must_fit():
  options = resizing.ResizeOptions((800, 1333))
  assert resizing.fit_size((1344, 800), options) == (1333, 800)
  with pytest.raises(UserError) as error:
    resizing.fit_size((832, 1024), options)
  assert error.value.argument == 'input.resize.fit_size'
  assert (error.value.given, error.value.wanted) == ((800, 1333), (832, 1024))


@pytest.mark.parametrize('path', golden_files.files('07_mask*.npz'), ids=name)
def test_mask_targets_through_uint8(path):
  golden = golden_files.load(path)
  instance_masks = golden['instance_masks']
  rows, columns = map(tf.range, instance_masks.shape[1:])
  instances = golden['gt_boxes_px']
  crops = example_records.crop_masks(
    instance_masks, instances, rows, columns, 112
  )
  crops = np.asarray(tf.cast(crops * 255.0 + 0.5, tf.uint8))
  agreeing = []
  # Later images have their own instances, which are not recorded in full.
  for image, count in enumerate(golden['gt_index'][:1]):
    assert count == len(instances)
    values = masks.crop_masks(
      crops.astype(np.float32) / 255,
      instances,
      golden['fg_boxes'][image],
      golden['fg_label_map'][image],
    )
    real = golden['valid_fg'][image].astype(bool)
    targets = golden['mask_targets'][image]
    agreeing.append((np.asarray(values) >= 0.5)[real] == targets[real])
  assert np.mean(agreeing) >= 0.999
