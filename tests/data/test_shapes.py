"""The shapes data set: pictures, records and annotations."""

import json
import os
import pathlib
import subprocess
import sys

import drawing
import examples as shapes_examples
import numpy as np
import pytest
from pycocotools import coco

from maskrcnn_jax.datasets import records

FOLDER = pathlib.Path(drawing.__file__).parent


@pytest.fixture(scope='module')
def drawings():
  return [drawing.draw(3, index) for index in range(300)]


def test_pictures_are_as_described(drawings):
  for each in drawings:
    assert each.image.shape == (128, 128, 3) and each.image.dtype == np.uint8
    assert 1 <= len(each.classes) <= 8
    assert each.masks.shape == (len(each.classes), 128, 128)
    assert not (each.masks.sum(axis=0) > 1).any()  # No overlap.
  classes = np.concatenate([each.classes for each in drawings])
  counts = np.bincount(classes, minlength=5)
  assert len(counts) == len(drawing.CLASS_NAMES) + 1 == 5
  assert counts[0] == 0 and counts[1:].min() > 0.2 * counts.sum()
  assert len({len(each.classes) for each in drawings}) == 8


def test_masks_are_never_empty_and_many_are_partly_covered(drawings):
  visible = np.concatenate([each.masks.sum((1, 2)) for each in drawings])
  whole = np.concatenate([each.whole_areas for each in drawings])
  assert visible.min() >= 30
  assert np.all(visible >= 0.3 * whole)
  assert np.mean(visible < whole) >= 0.35


def test_sizes_are_between_12_and_64_pixels(drawings):
  sides = []
  for each in drawings:
    boxes = each.boxes
    uncovered = each.masks.sum((1, 2)) == each.whole_areas
    longer = np.maximum(*(boxes[:, 2:] - boxes[:, :2]).T)
    assert longer.max() <= 64
    sides += longer[uncovered].tolist()
  # The mask may lose a row of half-covered pixels at each end.
  assert 10 <= min(sides) < 20 and 60 < max(sides) <= 64


def test_boxes_are_tight(drawings):
  for each in drawings[:50]:
    for (y1, x1, y2, x2), mask in zip(each.boxes.astype(int), each.masks):
      assert mask.sum() == mask[y1:y2, x1:x2].sum()
      inside = mask[y1:y2, x1:x2]
      assert inside[[0, -1]].any(axis=1).all()
      assert inside[:, [0, -1]].any(axis=0).all()


def test_colour_does_not_tell_the_class(drawings):
  colours, classes = [], []
  for each in drawings:
    colours += [each.image[mask].mean(axis=0) for mask in each.masks]
    classes += each.classes.tolist()
  colours, classes = np.array(colours), np.array(classes)
  means = np.array([colours[classes == k].mean(axis=0) for k in range(1, 5)])
  # Standard error of a mean over about 300 shapes of spread 62 is 3.6.
  assert np.abs(means - colours.mean(axis=0)).max() < 4 * 3.6


def test_a_picture_depends_on_seed_and_index_alone():
  first = drawing.draw(5, 9)
  drawing.draw(5, 10)
  again = drawing.draw(5, 9)
  np.testing.assert_array_equal(again.image, first.image)
  np.testing.assert_array_equal(again.masks, first.masks)
  assert not np.array_equal(drawing.draw(6, 9).image, first.image)
  assert not np.array_equal(drawing.draw(5, 8).image, first.image)


def _run(*arguments):
  command = [sys.executable, str(FOLDER / 'shapes.py'), *map(str, arguments)]
  root = str(FOLDER.parents[1])
  env = os.environ | {'PYTHONPATH': root}
  return subprocess.run(
    command, cwd=root, env=env, capture_output=True, text=True
  )


@pytest.mark.slow
def test_command_writes_a_tfds_directory(tmp_path):
  output = tmp_path / 'deep' / 'shapes'
  sizes = ('--train', 6, '--val', 4, '--seed', 11, '--workers', 2)
  done = _run('--output', output, *sizes)
  assert done.returncode == 0, done.stderr
  assert [path.name for path in output.parent.iterdir()] == ['shapes']
  for split, seed, count in (('train', 11, 6), ('val', 12, 4)):
    index = records.index_records(f'{output}:{split}')
    assert sorted(index.image_ids) == list(range(1, count + 1))
    for row in range(count):
      parsed = records.parse_record(records.read_record(index, row))
      expected = drawing.draw(seed, int(parsed['image_id']) - 1)
      np.testing.assert_array_equal(parsed['boxes'] * 128, expected.boxes)
      np.testing.assert_array_equal(parsed['classes'], expected.classes)
      decoded = [
        records.tf.io.decode_png(mask)[..., 0] for mask in parsed['masks']
      ]
      np.testing.assert_array_equal(decoded, expected.masks)
      image = records.tf.io.decode_image(parsed['encoded']).numpy()
      assert np.abs(image.astype(int) - expected.image).mean() < 4
  # Asked for again, it stays; asked for otherwise, it is refused.
  assert _run('--output', output, *sizes).returncode == 0
  refused = _run('--output', output)
  assert refused.returncode == 1 and str(output) in refused.stderr

  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(output)
  assert builder.info.splits['val'].num_examples == 4
  (first,) = builder.as_dataset(split='train').take(1)
  assert first['image']['object']['mask'].shape[1:] == (128, 128, 1)


def test_coco_annotations_fit_the_pictures(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text(json.dumps(shapes_examples.coco_annotations(7, 5)))
  truth = coco.COCO(path)
  assert [each['name'] for each in truth.loadCats([1, 2, 3, 4])] == [
    'disc',
    'square',
    'triangle',
    'cross',
  ]
  for image_id in truth.getImgIds():
    expected = drawing.draw(7, image_id - 1)
    entries = truth.imgToAnns[image_id]
    for entry, mask, (y1, x1, y2, x2) in zip(
      entries, expected.masks, expected.boxes, strict=True
    ):
      np.testing.assert_array_equal(truth.annToMask(entry), mask)
      assert entry['bbox'] == [x1, y1, x2 - x1, y2 - y1]
      assert entry['area'] == mask.sum()
