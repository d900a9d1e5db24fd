"""Pictures of the page: annotations and training batches."""

import base64
import io

import data_sets
import numpy as np
import pytest
from PIL import Image

from maskrcnn_jax import input_pipeline, visualize
from maskrcnn_jax.datasets import prepare
from maskrcnn_jax.datasets.doctor import page, split
from maskrcnn_jax.datasets.labelled import LabelOptions
from maskrcnn_jax.structures import Instances

NAMES = {1: 'cat', 2: 'dog'}


@pytest.fixture
def drawn(tmp_path):
  data = data_sets.draw_set(tmp_path / 'set')
  data.write()
  return data


def _read(data):
  options = LabelOptions(num_workers=1)
  return split.read_split('train', *data.paths('train'), options)


def test_large_images_are_reduced_with_their_objects(drawn):
  Image.new('RGB', (2560, 1280)).save(drawn.image_path)
  drawn.image.update(width=2560, height=1280)
  entry = data_sets.rectangle(500, drawn.image['id'], 1, 1280, 640, 800)
  drawn.train['annotations'] = [entry]
  drawn.write()
  split = _read(drawn)
  image = next(x for x in split.dataset.images if x.width == 2560)
  picture = page.draw_entries(split, image, [entry], ['cat'])
  assert picture.shape == (320, 640, 3)
  # From (640, 1280) to (1040, 2080), a quarter of that in the picture.
  is_red = picture[..., 0] > 50
  assert is_red[162:258, 322:518].all()
  assert not is_red[:140].any() and not is_red[:, :318].any()
  assert not is_red[263:].any() and not is_red[:, 524:].any()


def test_invalid_objects_are_not_drawn(drawn):
  split = _read(drawn)
  image = split.dataset.images[0]
  empty = page.draw_entries(split, image, [], [])
  for changes in (
    {'bbox': None},
    {'bbox': [1, 2, float('nan'), 3]},
    {'bbox': [1e300, -1e300, 1, 1], 'segmentation': []},
  ):
    entry = split.dataset.annotations[1][1] | changes
    picture = page.draw_entries(split, image, [entry], [''])
    assert np.mean(picture == empty) > 0.99


@pytest.mark.slow
def test_pictures_of_batches_show_the_inputs_of_the_step(drawn):
  """The same images, augmented alike, with the same masks on the canvas."""
  for number in (1, 2, 3):  # Smooth, so that JPEG changes little.
    ramp = np.linspace(60, 200, 200)[None, :, None] + np.zeros((150, 1, 3))
    ramp += np.linspace(-40, 40, 150)[:, None, None]
    Image.fromarray(ramp.astype(np.uint8)).save(
      drawn.folder / 'train' / f'{number}.jpg', quality=95
    )
  prepare.prepare(*drawn.paths('train'), drawn.folder / 'train.tfrecord')
  options = {
    'file_pattern': str(drawn.folder / 'train-*.tfrecord'),
    'canvases': ((96, 128),),
    'batch_size': 4,
    'max_instances': 2,
    'mask_size': 28,
    'seed': 5,
    'num_threads': 1,
    'augment': {'vertical_flip': True},
  }
  drawn_pictures = list(page.draw_batches({'input': options}, NAMES))
  assert len(drawn_pictures) == 12
  batches = input_pipeline.train_batches(**options)
  rows = [
    (batch, row) for batch, _ in zip(batches, range(3)) for row in range(4)
  ]
  slopes = set()
  for (batch, row), (caption, jpeg) in zip(rows, drawn_pictures):
    instances = Instances(
      **{name: x[row] for name, x in batch['instances'].items()}
    )
    assert instances.valid.sum() == 2  # Of three.
    expected = visualize.draw_instances(
      batch['images'][row], instances, NAMES, enlarge=4
    )
    with Image.open(io.BytesIO(base64.b64decode(jpeg))) as opened:
      shown = np.asarray(opened).astype(int)
    assert np.mean(np.abs(shown - expected)) < 4
    assert f'image {batch["image_ids"][row]}, 150 x 200' in caption
    assert caption.endswith('on a canvas of 96 x 128, objects: 2')
    slopes.add(
      (
        np.sign(shown[350, 470, 0] - shown[350, 10, 0]),
        np.sign(shown[370, 10, 0] - shown[10, 10, 0]),
      )
    )
  # Some are mirrored, some are upside down.
  assert [{*signs} for signs in zip(*slopes)] == [{-1, 1}] * 2
