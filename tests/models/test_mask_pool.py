"""Places of the mask head that images share."""

import jax
import numpy as np
import pytest
import quick
import tiny_model

from maskrcnn_jax.models import mask_pool
from maskrcnn_jax.models.targets import SamplingOptions
from maskrcnn_jax.ops.roi_align import pyramid_roi_align
from maskrcnn_jax.structures import SampledRois
from maskrcnn_jax.training import train_step

NUM_INSTANCES = 5


def make_rois(counts, num_rois=8):
  """Foreground first; the box says which image and row it is."""
  batch = len(counts)
  rows = np.broadcast_to(np.arange(num_rois), (batch, num_rois))
  images = np.broadcast_to(np.arange(batch)[:, None], rows.shape)
  foreground = rows < np.array(counts)[:, None]
  return SampledRois(
    boxes=np.stack([images, rows, images + 9, rows + 9], -1).astype(np.float32),
    classes=np.where(foreground, 1 + rows % 3, 0).astype(np.int32),
    instance_indices=np.where(foreground, rows % NUM_INSTANCES, 0),
    valid=rows < 7,
  )


def pool(counts, **options):
  options = SamplingOptions(num_rois=8, foreground_fraction=0.5, **options)
  found = mask_pool.pool_foreground(make_rois(counts), NUM_INSTANCES, options)
  return jax.tree.map(np.asarray, found)


def test_without_a_pool_they_are_the_first_rows():
  found = pool([3, 0, 4])
  expected = make_rois([3, 0, 4]).first(4)
  np.testing.assert_array_equal(found.rois.boxes, expected.boxes)
  np.testing.assert_array_equal(
    found.rois.instance_indices, expected.instance_indices
  )
  np.testing.assert_array_equal(found.rois.valid, expected.classes > 0)
  assert not found.images.any() and found.num_left_out == 0


@pytest.mark.parametrize(
  'counts, taken, left_out',
  [
    ([3, 1, 0, 0], [[3, 1], [0, 0]], 0),
    ([4, 0, 1, 3], [[4, 0], [1, 3]], 0),
    # The first image of a group has the first turn.
    ([4, 4, 4, 1], [[3, 2], [4, 1]], 3),
  ],
)
def test_images_in_turn_get_a_place(counts, taken, left_out):
  found = pool(counts, mask_pool_group=2, mask_pool_size=5)
  assert found.num_left_out == left_out
  assert found.rois.valid.shape == (2, 5)
  for group in (0, 1):
    valid = found.rois.valid[group]
    images = found.images[group][valid]
    assert [np.sum(images == i) for i in (0, 1)] == taken[group]
    boxes = found.rois.boxes[group][valid]
    np.testing.assert_array_equal(boxes[:, 0], 2 * group + images)
    rows = boxes[:, 1].astype(int)
    assert len({*zip(images.tolist(), rows.tolist())}) == len(rows)
    np.testing.assert_array_equal(
      found.rois.instance_indices[group][valid],
      images * NUM_INSTANCES + rows % NUM_INSTANCES,
    )
    np.testing.assert_array_equal(
      found.rois.classes[group][valid], 1 + rows % 3
    )


def test_what_finds_no_place_is_not_the_lowest_score():
  rows = pool([4], mask_pool_size=2).rois.boxes[0, :, 1]
  assert sorted(rows) != [0, 1]


@pytest.mark.parametrize(
  'options, message',
  [
    ({'mask_pool_group': 2}, 'mask_pool_group 2 does not divide the batch of'),
    ({'mask_pool_size': 0}, 'mask_pool_size must be at least 1, got 0'),
  ],
)
def test_what_cannot_be_is_an_error(options, message):
  with pytest.raises(ValueError, match=message):
    pool([1, 2, 3], **options)


def test_boxes_of_a_group_are_aligned_on_their_own_image():
  rng = np.random.default_rng(0)
  pyramid = {
    level: rng.normal(size=(4, 64 >> level, 96 >> level, 3)).astype('float32')
    for level in range(2, 7)
  }
  starts = rng.uniform(0, 30, (4, 6, 2))
  boxes = np.concatenate([starts, starts + rng.uniform(1, 60, (4, 6, 2))], -1)
  boxes = boxes.astype(np.float32)
  expected = pyramid_roi_align(pyramid, boxes, 3)
  images = np.broadcast_to(np.arange(4)[:, None] % 2, (4, 6))
  actual = pyramid_roi_align(
    pyramid, boxes.reshape(2, 12, 4), 3, images=images.reshape(2, 12)
  )
  np.testing.assert_array_equal(
    np.asarray(actual).reshape(expected.shape), expected
  )
  with pytest.raises(ValueError, match='or with images a multiple'):
    pyramid_roi_align(pyramid, boxes.reshape(2, 12, 4), 3)


# All that may be foreground is: what is drawn does not matter.
SAMPLING = {'num_rois': 64, 'foreground_fraction': 0.5}


@pytest.fixture(scope='module')
def losses_and_gradients():
  batch = tiny_model.make_batch((2, 3))
  params = tiny_model.make_state(tiny_model.make_model(), batch)[0].params

  def compute(**pool):
    model = tiny_model.make_model(sampling={**SAMPLING, **pool})

    @quick.jit
    def gradients(params):
      def total(params):
        losses, (_, counts) = train_step.loss_fn(
          model, params, {}, batch, jax.random.key(0)
        )
        return sum(losses.values()), (losses, counts)

      return jax.grad(total, has_aux=True)(params)

    grads, (losses, counts) = gradients(params)
    return losses, grads, counts

  return compute


@pytest.mark.slow
def test_a_pool_with_room_changes_nothing(losses_and_gradients):
  expected, expected_grads, counts = losses_and_gradients()
  assert counts == {}
  losses, grads, counts = losses_and_gradients(
    mask_pool_group=2, mask_pool_size=40
  )
  assert counts == {'mask_rois_left_out': 0}
  assert expected['mask'] > 0.1
  for name, value in expected.items():
    np.testing.assert_allclose(losses[name], value, rtol=1e-6, err_msg=name)
  for x, y in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads)):
    largest = np.max(np.abs(y))
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * largest + 1e-9)
