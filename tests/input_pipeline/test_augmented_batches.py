"""Batches with augmentation: keys, hosts, resume, caches and faults."""

import itertools

import example_records
import numpy as np
import pytest
from plain_rows import assert_equal

from maskrcnn_jax import input_pipeline
from maskrcnn_jax.datasets import records
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.input_pipeline import cache as caches
from maskrcnn_jax.input_pipeline import transforms
from maskrcnn_jax.input_pipeline.augment import AugmentOptions

CANVASES = ((64, 96), (96, 64))
SIZES = [(40 + i, 90 - 2 * i) for i in range(5)] + [(90, 40)] * 4
ALL = {
  'scale_range': (0.4, 2.0),
  'vertical_flip': True,
  'quarter_turns': True,
  'rotation': 10.0,
  'crop': 0.8,
  'photometric': True,
  'copy_paste': 0.8,
}


@pytest.fixture(scope='module')
def pattern(tmp_path_factory):
  folder = tmp_path_factory.mktemp('records')
  return example_records.write(folder / 'a.tfrecord', SIZES)


def train(pattern, augment=ALL, **options):
  options = {
    'canvases': CANVASES,
    'batch_size': 4,
    'max_instances': 5,
    'mask_size': 14,
    'num_threads': 2,
    'max_unreadable_share': 1.0,
    'cache': 'nothing',
    **options,
  }
  return input_pipeline.train_batches(pattern, augment=augment, **options)


@pytest.fixture(scope='module')
def whole(pattern):
  """Thirty batches, thirteen epochs, of one host."""
  return list(itertools.islice(train(pattern), 30))


def rows_of(batch, rows):
  return {
    key: rows_of(value, rows) if isinstance(value, dict) else value[rows]
    for key, value in batch.items()
  }


# It takes seconds to set up a pipeline.
@pytest.mark.slow
@pytest.mark.parametrize('host, hosts', [(1, 2), (2, 4)])
def test_batches_do_not_depend_on_the_number_of_hosts(
  pattern, whole, host, hosts
):
  size = 4 // hosts
  part = train(pattern, host_index=host, host_count=hosts)
  for batch, expected in zip(itertools.islice(part, 6), whole):
    rows = slice(host * size, (host + 1) * size)
    assert_equal(batch, rows_of(expected, rows))


@pytest.mark.slow
def test_a_run_goes_on_in_an_epoch_with_other_threads_and_a_cache(
  pattern, whole
):
  assert 12 % len(SIZES)
  options = {'start_examples': 12, 'cache': 'records', 'num_threads': 3}
  for batch, expected in zip(train(pattern, **options), whole[3:]):
    assert_equal(batch, expected)


@pytest.mark.slow
def test_every_epoch_and_salt_is_drawn_anew(pattern, whole):
  seen = {}
  for batch in whole:
    for image_id, image in zip(batch['image_ids'], batch['images']):
      seen.setdefault(int(image_id), []).append(image.tobytes())
  assert max(map(len, seen.values())) >= 12
  assert all(len(set(images)) == len(images) for images in seen.values())
  first, *others = (
    next(train(pattern, {'rotation': 9.0}, **options))['images'].tobytes()
    for options in ({}, {'seed': 1}, {'salt': 1})
  )
  assert first not in others


def test_rows_are_never_cached(pattern):
  with pytest.raises(UserError) as error:
    train(pattern, cache='rows')
  assert error.value.argument == 'input.cache'
  index = records.index_records(pattern)
  fits = np.tile(CANVASES[0], (len(index), 1))
  for augment, expected in ((AugmentOptions(), 'rows'), (None, 'records')):
    augment = augment or AugmentOptions(vertical_flip=True)
    options = transforms.TransformOptions(augment=augment)
    assert mode(index, fits, options) == expected


def mode(index, fits, options):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(caches, 'memory_bytes', lambda: 2**40)
    return caches.choose_mode(index, fits, options)


def assert_sound(batch):
  """Boxes lie in their image and have an area, masks have a pixel."""
  instances = batch['instances']
  valid = instances['valid']
  boxes = instances['boxes'][valid]
  sizes = np.broadcast_to(batch['image_sizes'][:, None], (*valid.shape, 2))
  assert np.all(boxes >= 0)
  assert np.all(boxes[:, 2:] <= sizes[valid])
  assert np.all(boxes[:, 2:] > boxes[:, :2])
  shown = np.any(instances['masks'], axis=(2, 3))
  np.testing.assert_array_equal(shown, valid)
  assert not np.any(instances['boxes'][~valid])
  assert np.all(batch['image_sizes'][batch['valid']] >= 1)
  assert np.all(batch['image_sizes'] <= batch['images'].shape[1:3])
  return np.sum(valid)


def test_no_instance_is_empty_and_no_box_outside(whole):
  assert sum(map(assert_sound, whole)) > 100


@pytest.mark.long
def test_that_holds_for_ten_thousand_examples(pattern):
  iterator = train(pattern, {**ALL, 'scale_range': (0.1, 2.0)})
  found = sum(map(assert_sound, itertools.islice(iterator, 2500)))
  assert found > 5000
  assert iterator.counts == {}


@pytest.mark.slow
def test_faults_are_of_the_example_and_a_broken_partner_is_left_out(tmp_path):
  image, boxes, masks = example_records.rectangles(50, 50, 3)
  masks[1] = 0
  encoded = example_records.jpeg(image)
  bad = [masks[0], b'none', masks[2]]
  contents = [
    example_records.record(encoded, 1, (50, 50), boxes, masks),
    example_records.record(encoded, 2, (50, 50), boxes, bad),
    example_records.record(b'none', 3, (50, 50), boxes, masks),
  ]
  path = str(tmp_path / 'a.tfrecord')
  records.write_records(path, contents)
  options = {'canvases': ((64, 64),), 'batch_size': 3, 'max_instances': 9}
  augment = {'copy_paste': 1.0, 'vertical_flip': True}
  iterator = train(path, augment, **options)
  numbers = set()
  for _ in range(8):
    batch = next(iterator)
    assert batch['valid'].tolist() == [x != 3 for x in batch['image_ids']]
    assert_sound(batch)
    numbers |= set(np.sum(batch['instances']['valid'], axis=1).tolist())
  assert iterator.counts == {
    'unusable_image': 8,
    'unusable_mask': 8,
    'empty_mask': 8,
  }
  # Two good objects in each, and up to two of a partner.
  assert max(numbers) > 2


@pytest.mark.slow
def test_float_images_and_one_canvas(pattern):
  augment = {'crop': 0.5, 'photometric': True}
  batch, whole = (
    next(train(pattern, augment, canvases=((64, 96),), image_dtype=dtype))
    for dtype in ('float32', 'uint8')
  )
  assert batch['images'].dtype == np.float32
  difference = np.abs(batch['images'] - whole['images'])
  assert difference.max() <= 0.5 + 1e-4
  np.testing.assert_array_equal(
    batch['instances']['boxes'], whole['instances']['boxes']
  )
