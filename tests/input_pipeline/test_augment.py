"""Draws and placements of augmentation, and the recordings of Detectron2."""

import dataclasses
import json

import data_sets
import golden_files
import numpy as np
import pytest
import slow_augment
from PIL import Image

from maskrcnn_jax.datasets import masks as segmentation
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.input_pipeline import (
  augment,
  order,
  placement,
  transforms,
  warp,
)

ALL = augment.AugmentOptions(
  scale_range=(0.1, 2.0),
  vertical_flip=True,
  quarter_turns=True,
  rotation=15.0,
  crop=0.5,
  photometric=True,
)


def draws(options, count=300):
  seeds = [order.example_seed(0, 0, 0, row) for row in range(count)]
  return [augment.draw(seed, False, options) for seed in seeds]


def test_all_is_off_by_default():
  assert not augment.AugmentOptions().is_on
  assert augment.augment_options(None) == augment.AugmentOptions()
  for drawn in draws(augment.AugmentOptions(), 20):
    drawn = dataclasses.replace(drawn, offset=(0.0, 0.0))
    assert drawn == augment.Draw()


@pytest.mark.parametrize(
  'name, value',
  [
    ('scale_range', (0.8, 1.25)),
    ('vertical_flip', True),
    ('quarter_turns', True),
    ('rotation', 10.0),
    ('crop', 0.6),
    ('crop_short_edges', (400, 500, 600)),
    ('photometric', True),
  ],
)
def test_one_switch_changes_only_its_own_draw(name, value):
  fields = {
    'scale_range': {'scale'},
    'vertical_flip': {'vertical'},
    'quarter_turns': {'turns'},
    'rotation': {'angle'},
    'crop': {'crop_shares', 'crop_position'},
    'crop_short_edges': {'pixel_crop', 'crop_position'},
    'photometric': {'colors'},
  }[name]
  options = augment.AugmentOptions(**{name: value})
  assert options.is_on
  plain = draws(augment.AugmentOptions(), 50)
  rest = ALL
  if name == 'crop_short_edges':  # Instead of the other crop.
    rest = dataclasses.replace(ALL, crop=None)
  together = draws(dataclasses.replace(rest, **{name: value}), 50)
  for alone, off, each in zip(draws(options, 50), plain, together):
    for field in dataclasses.fields(augment.Draw):
      found = getattr(alone, field.name)
      other = each if field.name in fields else off
      assert found == getattr(other, field.name)


def test_draws_are_spread_over_their_ranges():
  found = draws(ALL, 2000)
  np.testing.assert_allclose(
    np.bincount([x.turns for x in found]) / 2000, [0.25] * 4, atol=0.04
  )
  assert np.mean([x.vertical for x in found]) == pytest.approx(0.5, abs=0.05)
  for values, low, high in (
    ([x.scale for x in found], 0.1, 2.0),
    ([x.angle for x in found], -15.0, 15.0),
    ([x.crop_shares[0] for x in found], 0.5, 1.0),
    ([x.offset[1] for x in found], 0.0, 1.0),
  ):
    deciles = np.quantile(values, np.linspace(0, 1, 11))
    np.testing.assert_allclose(
      deciles, np.linspace(low, high, 11), atol=0.05 * (high - low)
    )
  colors = [x.colors for x in found]
  for name, neutral, low, high in (
    ('brightness', 0.0, -32.0, 32.0),
    ('contrast', 1.0, 0.5, 1.5),
    ('saturation', 1.0, 0.5, 1.5),
    ('hue', 0.0, -0.05, 0.05),
  ):
    values = np.array([getattr(x, name) for x in colors])
    assert np.mean(values != neutral) == pytest.approx(0.5, abs=0.05)
    changed = values[values != neutral]
    assert low <= changed.min() < low + 0.05 * (high - low)
    assert high - 0.05 * (high - low) < changed.max() <= high
  order_of_channels = np.bincount([x.permutation for x in colors]) / 2000
  np.testing.assert_allclose(
    order_of_channels, [7 / 12] + [1 / 12] * 5, atol=0.05
  )
  # The two axes and the two parts of a key are drawn by themselves.
  pairs = np.array([x.offset for x in found])
  assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.08


def test_a_short_edge_is_one_of_the_choices():
  options = augment.AugmentOptions(short_edges=(640, 672, 800))
  found = [x.short_edge for x in draws(options, 900)]
  sides, counts = np.unique(found, return_counts=True)
  assert sides.tolist() == [640, 672, 800]
  np.testing.assert_allclose(counts / 900, [1 / 3] * 3, atol=0.06)


@pytest.mark.parametrize(
  'name, value',
  [
    ('short_edges', ()),
    ('short_edges', (0,)),
    ('scale_range', (0.0, 1.0)),
    ('scale_range', (2.0, 1.0)),
    ('rotation', -1.0),
    ('crop', 0.0),
    ('crop', 1.5),
    ('crop_short_edges', (0,)),
    ('crop_sides', (600, 384)),
    ('copy_paste', 1.5),
    ('occluded_move', -1.0),
  ],
)
def test_options_out_of_range(name, value):
  with pytest.raises(UserError) as error:
    augment.augment_options({name: value})
  assert error.value.argument == f'input.augment.{name}'
  assert error.value.given == value


def test_unknown_and_exclusive_options():
  with pytest.raises(UserError) as error:
    augment.augment_options({'vertical_flips': True})
  assert error.value.argument == 'input.augment.vertical_flips'
  assert 'vertical_flip' in error.value.wanted
  with pytest.raises(UserError) as error:
    augment.augment_options({'short_edges': (8,), 'scale_range': (1.0, 2.0)})
  assert error.value.argument == 'input.augment.scale_range'
  with pytest.raises(UserError) as error:
    augment.augment_options({'crop': 0.5, 'crop_short_edges': (400,)})
  assert error.value.argument == 'input.augment.crop_short_edges'


def test_a_crop_in_pixels_by_hand():
  """An image of 480 x 960 is 500 x 1000 when it is cropped."""
  options = augment.AugmentOptions(crop_short_edges=(400, 500, 600))
  crops = [x.pixel_crop for x in draws(options, 900)]
  chosen = [crop for crop in crops if crop]
  assert len(chosen) / len(crops) == pytest.approx(0.5, abs=0.06)
  edges, counts = np.unique([x.short_edge for x in chosen], return_counts=True)
  assert edges.tolist() == [400, 500, 600]
  np.testing.assert_allclose(counts / len(chosen), [1 / 3] * 3, atol=0.07)
  for shares, cut in (
    ((0.0, 0.0), (384, 384)),
    # Both ends can be drawn: 117 heights, 217 widths.
    ((0.9999, 0.9999), (500, 600)),
    ((1 / 117, 0.5), (385, 492)),
  ):
    crop = augment.PixelCrop(500, (384, 600), shares)
    drawn = augment.Draw(pixel_crop=crop, short_edge=800)
    placed = placement.place(drawn, (480, 960), (800, 1333))
    kept = [round(side * 0.96) for side in cut]
    assert placed.crop.tolist() == [0, 0, *kept]
    assert placed.scaled.min() == 800 or placed.scaled.max() == 1333
  # The longer side is limited, and what is smaller than the crop is kept.
  drawn = augment.Draw(
    pixel_crop=augment.PixelCrop(600, (384, 600), (0.5, 0.5))
  )
  placed = placement.place(drawn, (100, 1000), (800, 1000))
  assert placed.crop.tolist() == [0, 0, 100, 492]


@pytest.mark.parametrize('turns', range(4))
@pytest.mark.parametrize('flips', [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_corner_by_hand(turns, flips):
  # An object in the top left corner of an image of 2 x 4 pixels.
  drawn = augment.Draw(turns, *map(bool, flips))
  placed = placement.place(drawn, (2, 4), (8, 8))
  (box,) = placement.place_boxes(placed, [[0, 0, 0.5, 0.25]])
  # Against the clock the corner goes down the left side and on.
  down, right = [(0, 0), (1, 0), (1, 1), (0, 1)][turns]
  down, right = down ^ flips[0], right ^ flips[1]
  height, width = (8, 4) if turns % 2 else (4, 8)
  y, x = down * (height - 2), right * (width - 2)
  np.testing.assert_array_equal(box, [y, x, y + 2, x + 2])
  shown = placement.source_pixels(placed) == 0
  assert shown.shape == (height, width)
  expected = np.zeros((height, width), bool)
  expected[y : y + 2, x : x + 2] = True
  np.testing.assert_array_equal(shown, expected)


def test_a_rotation_by_hand():
  placed = placement.place(augment.Draw(angle=90.0), (5, 5), (5, 5))
  pixels = placement.source_pixels(placed)
  expected = np.rot90(np.arange(25).reshape(5, 5))
  np.testing.assert_array_equal(pixels, expected)
  (box,) = placement.place_boxes(placed, [[0.0, 0.6, 0.2, 1.0]])
  np.testing.assert_allclose(box, [0, 0, 2, 1], atol=1e-9)


def rows_of(path):
  table = json.loads(path.read_text())
  return [dict(zip(table['columns'], row)) for row in table['rows']]


@pytest.mark.parametrize(
  'path',
  golden_files.files('augment_shortest_edge_*.json', 'detectron2'),
  ids=lambda x: x.stem,
)
def test_shortest_edges_of_detectron2(path):
  rows = rows_of(path)
  assert rows
  for row in rows:
    size = (row['height'], row['width'])
    short, longest = row['short edge'], row['max size']
    fit = (longest, longest)
    placed = placement.place(augment.Draw(short_edge=short), size, fit)
    expected = [row['new height'], row['new width']]
    assert placed.scaled.tolist() == expected, row
    assert placed.size.tolist() == expected


@pytest.mark.parametrize(
  'path',
  golden_files.files('augment_resize_scale_*.json', 'detectron2'),
  ids=lambda x: x.stem,
)
def test_scales_of_detectron2(path):
  rows = rows_of(path)
  assert rows
  for row in rows:
    drawn = augment.Draw(scale=row['scale drawn'])
    fit = (row['target'], row['target'])
    placed = placement.place(drawn, (row['height'], row['width']), fit)
    expected = [row['new height'], row['new width']]
    assert placed.scaled.tolist() == expected, row


class Crop:
  """A recorded large-scale jitter, as a draw, with what came out of it.

  Mirroring comes first here, and in `augment_lsj_*` last, after the padding:
  the part that is cut then counts from the other side, and the padding lies at
  the left.
  """

  def __init__(self, recorded):
    self.target = int(recorded['target'])
    self.size = recorded['image_hw']
    kinds = recorded['transforms'].tolist()
    steps = [x for x in kinds if x not in ('PadTransform',)]
    values = dict(
      zip(
        [x.replace('NoOp', 'HFlip') for x in steps],
        recorded['draws_low_high_value'][:, 2].tolist(),
      )
    )
    flip = values['HFlipTransform'] < 0.5
    assert flip == bool(recorded['flipped'])
    offset = values['CropTransform']
    # Last, except where it is the first step.
    is_last = flip and kinds[0] != 'HFlipTransform'
    self.draw = augment.Draw(
      horizontal=flip,
      scale=values['ResizeTransform'],
      offset=(offset, 1 - offset if is_last else offset),
    )
    self.placed = placement.place(self.draw, self.size, [self.target] * 2)
    height, width = recorded['output_hw'].tolist()
    self.shift = width - self.placed.size[1] if is_last else 0
    self.canvas = (height, width)

  def expected_boxes(self, boxes):
    """Recorded boxes (x, y, x, y) on our canvas."""
    boxes = golden_files.swap_axes(boxes).astype(np.float64)
    return boxes - [0, self.shift, 0, self.shift]


LSJ = [
  pattern
  for pattern in ('augment_lsj_*.npz', 'augment_vitdet_*.npz')
  if golden_files.files(pattern, 'detectron2')
]


@pytest.mark.parametrize('pattern', LSJ)
def test_crops_of_detectron2(pattern):
  for path in golden_files.files(pattern, 'detectron2'):
    recorded = golden_files.load(path)
    crop = Crop(recorded)
    np.testing.assert_array_equal(crop.placed.scaled, recorded['scaled_hw'])
    x, y, _, _ = recorded['crop_xywh'].tolist()
    if pattern.startswith('augment_lsj') and crop.draw.horizontal:
      x = max(crop.placed.scaled[1] - crop.target, 0) - x
    assert crop.placed.offset.tolist() == [y, x], path
    fractions = golden_files.swap_axes(recorded['boxes_before'])
    fractions = fractions / np.tile(crop.size, 2)
    found = placement.place_boxes(crop.placed, fractions)
    found = np.clip(found, 0, np.tile(crop.placed.size, 2))
    expected = crop.expected_boxes(recorded['boxes_clipped'])
    # Detectron2 clips to the padded image, and keeps empty boxes at its side.
    expected = np.clip(expected, 0, np.tile(crop.placed.size, 2))
    np.testing.assert_allclose(found, expected, atol=1e-3, err_msg=path)


def photograph(path):
  """Pixels and annotations of the image of a recording, from coco-mini."""
  number = int(path.stem.split('_')[3])
  root = data_sets.real('coco-mini')
  (file,) = root.glob(f'*2017/{number:012d}.jpg')
  content = json.loads(
    (root / 'annotations' / f'instances_{file.parent.name}.json').read_text()
  )
  objects = {x['id']: x for x in content['annotations']}
  return np.asarray(Image.open(file).convert('RGB')), objects


@pytest.mark.parametrize('pattern', LSJ)
def test_images_and_masks_of_detectron2(pattern):
  for path in golden_files.files(pattern, 'detectron2'):
    recorded = golden_files.load(path)
    crop = Crop(recorded)
    pixels, objects = photograph(path)
    check_image(crop, pixels, recorded)
    height, width = crop.size.tolist()
    chosen = [objects[number] for number in recorded['ann_ids'].tolist()]
    masks = [
      segmentation.decode_segmentation(x['segmentation'], height, width)
      for x in chosen
    ]
    bits = np.unpackbits(recorded['mask_bits_bitmask'], axis=1)
    full = bits[:, : np.prod(crop.canvas)].reshape(-1, *crop.canvas)
    expected = full[:, : crop.placed.size[0], crop.shift :]
    expected = expected[:, :, : crop.placed.size[1]]
    shown = placement.source_pixels(crop.placed)
    found = np.stack([np.ravel(mask)[shown] for mask in masks])
    # Just between two pixels both are nearest; Pillow adds up its steps.
    clear = [is_clear(crop.placed, axis) for axis in (0, 1)]
    same = (found == (expected > 0)) | ~(clear[0][:, None] & clear[1])
    assert same.all(), path
    assert np.mean(clear[0]) > 0.95
    assert np.mean(clear[1]) > 0.95
    kept = recorded['kept_bitmask']
    np.testing.assert_array_equal(found.any(axis=(1, 2)), kept)
    tight = [slow_augment.tight_box(mask) for mask in found[kept]]
    boxes = crop.expected_boxes(recorded['boxes_recomputed_bitmask'][kept])
    # Of one object an edge lies just between two pixels.
    assert np.abs(tight - boxes).max() <= 1
    assert np.mean(np.array(tight) != boxes) < 0.02


def is_clear(placed, axis):
  """For each row or column, whether one pixel is nearest."""
  shown = placed.offset[axis] + np.arange(placed.size[axis]) + 0.5
  places = shown * placed.original[axis] / placed.scaled[axis]
  return np.abs(places - np.round(places)) > 1e-9


def check_image(crop, pixels, recorded):
  """Within one grey level of Pillow's, which rounds after each axis."""
  options = transforms.TransformOptions()
  arranged = warp.as_arrays(crop.placed, np.zeros([0, 4]), options)
  found = warp.warp_image(pixels, arranged, augment.AugmentOptions())
  whole = np.full([*crop.canvas, 3], slow_augment.GREY, np.uint8)
  found = (found.numpy() + 0.5).astype(np.uint8)
  height, width = found.shape[:2]
  whole[:height, crop.shift : crop.shift + width] = found
  if 'image_rgb_every_8th' in recorded:
    expected = recorded['image_rgb_every_8th'].astype(int)
    assert np.abs(whole[::8, ::8] - expected).max() <= 1
  if 'image_rgb' in recorded:
    difference = np.abs(whole - recorded['image_rgb'].astype(int))
    assert difference.max() <= 1
  mean, deviation = recorded['image_stats_rgb'][:, :2].T
  np.testing.assert_allclose(whole.mean(axis=(0, 1)), mean, atol=0.2)
  np.testing.assert_allclose(whole.std(axis=(0, 1)), deviation, atol=0.2)
