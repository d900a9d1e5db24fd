"""Properties of random records from the input pipeline to the losses."""

import hypothesis
import jax
import numpy as np
import pytest
import target_cases
from example_records import jpeg, png, record
from hypothesis import strategies as st

from maskrcnn_jax import input_pipeline
from maskrcnn_jax.datasets import records
from maskrcnn_jax.structures import Instances

MAX_INSTANCES = 100
NAN, INF = float('nan'), float('inf')


@st.composite
def objects(draw):
  """Boxes in pixels, classes, crowd flags and masks of up to 150 objects."""
  some = draw(st.lists(target_cases.box(), min_size=1, max_size=12))
  some += draw(
    st.lists(
      st.sampled_from([(NAN, 0, 9, 9), (0, 0, INF, 9), (9, 9, 3, 3)]),
      max_size=2,
    )
  )
  count = draw(st.sampled_from([0, 1, 5, 99, 100, 101, 150]))
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  # Many coincide.
  boxes = np.array(some, np.float64)[rng.integers(0, len(some), count)]
  return {
    'boxes': boxes.reshape(-1, 4),
    'classes': rng.choice([0, 1, 2, 3, 4], count, p=[0.04] + [0.24] * 4),
    'crowd': rng.choice([0, 1], count, p=[0.9, 0.1]),
    'masks': rng.choice([0, 1], count, p=[0.1, 0.9]),
  }


def write(path, images):
  """A file of one record per image."""
  height, width = target_cases.CANVAS
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
  encoded = [png(np.full((height, width), x, np.uint8)) for x in (0, 1)]
  contents = [
    record(
      jpeg(pixels),
      image_id,
      (height, width),
      image['boxes'],
      [encoded[x] for x in image['masks']],
      image['classes'].tolist(),
      image['crowd'].tolist(),
    )
    for image_id, image in enumerate(images)
  ]
  path.unlink(missing_ok=True)
  records.write_records(path, contents)


def usable_areas(image):
  """Areas of the objects that are neither crowds nor have a bad box or class.

  As shares of the image and in float32, as the record has them.
  """
  shares = np.float32(image['boxes'] / (target_cases.CANVAS * 2))
  sides = shares[:, 2:] - shares[:, :2]
  usable = np.all(np.isfinite(shares), -1) & np.all(sides > 0, -1)
  usable &= (image['classes'] >= 1) & (image['crowd'] == 0)
  return np.prod(sides[usable], axis=-1)


def assert_objects_are_conserved(batch, counts, images):
  """Every object is kept, counted as a fault, a crowd, or above the limit."""
  kept, faults, too_many = 0, sum(counts.values()), 0
  pixels = np.prod(target_cases.CANVAS)
  for row, image_id in enumerate(batch['image_ids']):
    image = images[image_id]
    areas = np.sort(usable_areas(image))[::-1]
    too_many += max(len(areas) - MAX_INSTANCES, 0)
    valid = batch['instances']['valid'][row]
    kept += np.sum(valid)
    boxes = batch['instances']['boxes'][row][valid]
    smallest = np.min(np.prod(boxes[:, 2:] - boxes[:, :2], -1), initial=INF)
    # The largest are kept.
    if len(areas) > MAX_INSTANCES:
      assert smallest >= areas[MAX_INSTANCES - 1] * pixels * (1 - 1e-3)
  crowds = sum(np.sum(image['crowd']) for image in images)
  total = sum(len(image['boxes']) for image in images)
  assert kept + faults + crowds + too_many == total


def make_case(batch, seed):
  """A case for `target_cases.run`."""
  rng = np.random.default_rng(seed)
  candidates = target_cases.NUM_PROPOSALS + MAX_INSTANCES
  outputs = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32),
    jax.eval_shape(target_cases.head_outputs),
  )
  return outputs | {
    'instances': Instances(**batch['instances']),
    'image_sizes': batch['image_sizes'],
    'valid': batch['valid'],
    'key': 0,
    'priorities': rng.uniform(size=(2, candidates)).astype(np.float32),
  }


@pytest.mark.long
@pytest.mark.slow
def test_records_become_finite_losses_and_gradients(tmp_path):
  @hypothesis.settings(hypothesis.settings.get_profile('many'), max_examples=8)
  @hypothesis.given(st.tuples(objects(), objects()), st.integers(0, 1000))
  def holds(images, seed):
    write(tmp_path / 'x.tfrecord', images)
    iterator = input_pipeline.train_batches(
      str(tmp_path / 'x.tfrecord'),
      (target_cases.CANVAS,),
      batch_size=2,
      mask_size=14,
      max_instances=MAX_INSTANCES,
      max_unreadable_share=1.0,
      num_threads=1,
      seed=seed,
    )
    batch = next(iterator)
    assert np.all(batch['valid'])
    assert_objects_are_conserved(batch, iterator.counts, images)
    instances = batch['instances']
    shown = np.any(instances['masks'], axis=(2, 3))
    np.testing.assert_array_equal(shown, instances['valid'])
    case = make_case(batch, seed)
    for family in target_cases.FAMILIES:
      found = target_cases.run(family, case)
      for path, value in jax.tree_util.tree_leaves_with_path(found):
        assert np.all(np.isfinite(value)), (family, jax.tree_util.keystr(path))
      assert np.all(found['rois'].valid.sum(axis=1) > 0), family

  holds()
