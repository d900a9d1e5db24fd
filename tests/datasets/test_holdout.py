"""Validation images that are held out of a data set."""

import collections
import hashlib

import pytest

from maskrcnn_jax.datasets import coco_json, holdout
from maskrcnn_jax.errors import UserError


def make(classes):
  """A data set of images with objects of these classes; a negative: a crowd."""
  images = [
    {'id': number, 'file_name': f'{number}.png', 'height': 4, 'width': 4}
    for number in range(1, len(classes) + 1)
  ]
  objects = [
    {'image_id': number, 'category_id': abs(each), 'iscrowd': int(each < 0)}
    | {'id': 100 * number + index}
    for number, some in enumerate(classes, 1)
    for index, each in enumerate(some)
  ]
  content = {'images': images, 'annotations': objects}
  content['categories'] = [{'id': i, 'name': f'c{i}'} for i in range(1, 9)]
  return coco_json.parse(content, 'labels.json')


def expected(count, wanted, seed):
  """Images by the hash of seed and name, when no class is in the way."""
  names = {
    hashlib.sha256(f'{seed}/{i}.png'.encode()).hexdigest(): i
    for i in range(1, count + 1)
  }
  return sorted(names[key] for key in sorted(names)[:wanted])


@pytest.mark.parametrize(
  'count, share, wanted',
  [(50, 0.2, 10), (60, 0.2, 12), (3, 0.2, 1), (4, 0.99, 3), (2, 0.01, 1)],
)
@pytest.mark.parametrize('seed', [0, 7])
def test_images_are_held_out_by_seed_and_name(count, share, wanted, seed):
  held = holdout.hold_out(make([[1]] * count), share, seed)
  assert held == expected(count, wanted, seed)


def test_other_seeds_hold_out_other_images():
  dataset = make([[1]] * 40)
  assert len({tuple(holdout.hold_out(dataset, 0.25, s)) for s in range(9)}) == 9


def test_every_class_keeps_an_image_to_train_on():
  classes = [[1, 2], [1, -3], [1, 3], [1], [1, 2], [1, 4], [], [1]]
  for seed in range(30):
    held = holdout.hold_out(make(classes), 0.5, seed)
    kept = set(range(1, 9)) - {*held}
    trained = collections.Counter(
      each for number in kept for each in classes[number - 1]
    )
    # The crowd of class 3 teaches nothing.
    assert all(trained[class_id] for class_id in (1, 2, 3, 4)), seed
    assert not {3, 6} & {*held}
    assert len(held) <= 4


@pytest.mark.parametrize('share', [0, 1, -0.5])
def test_the_share_leaves_images_on_both_sides(share):
  with pytest.raises(UserError) as error:
    holdout.hold_out(make([[1]] * 4), share)
  assert (error.value.argument, error.value.given) == ('val_share', share)


@pytest.mark.parametrize('classes', [[[1]], [[1], [2], [3]], [[1], [], [-1]]])
def test_nothing_can_be_held_out(classes):
  with pytest.raises(UserError) as error:
    holdout.hold_out(make(classes), 0.5)
  assert error.value.argument == 'val_share'
  assert error.value.path == 'labels.json'
