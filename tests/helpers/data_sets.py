"""Small COCO data sets on disk, valid ones and ones to break.

A set is a folder with `train`, `val`, `train.json` and `val.json`.
"""

import copy
import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

# Few and small images of coco-mini, crowds and several polygons among them.
_COCO_IMAGES = 4


@dataclasses.dataclass
class DataSet:
  """A data set that can be changed before it is written.

  Attributes:
    folder: of the set.
    train: content of train.json.
    val: content of val.json.
  """

  folder: pathlib.Path
  train: dict[str, Any]
  val: dict[str, Any]

  def write(self) -> None:
    """Writes both json files."""
    for name in ('train', 'val'):
      content = json.dumps(getattr(self, name))
      (self.folder / f'{name}.json').write_text(content)

  def paths(self, name: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Folder of the images and json of a split."""
    return self.folder / name, self.folder / f'{name}.json'

  @property
  def victim(self) -> dict:
    """The annotation of train to break: large, far from the corner."""
    fits = [
      each
      for each in self.train['annotations']
      if len(each['segmentation']) == 1 and each['area'] > 1000
    ]
    return max(fits, key=lambda each: each['bbox'][0] * each['bbox'][1])

  @property
  def shared_class(self) -> int:
    """A class with objects in both splits."""
    classes = [
      {each['category_id'] for each in content['annotations']}
      for content in (self.train, self.val)
    ]
    return min(set.intersection(*classes))

  @property
  def image(self) -> dict:
    """The image of the victim."""
    wanted = self.victim['image_id']
    return next(x for x in self.train['images'] if x['id'] == wanted)

  @property
  def image_path(self) -> pathlib.Path:
    """Its file."""
    return self.folder / 'train' / self.image['file_name']

  def copy_to(self, folder: pathlib.Path) -> 'DataSet':
    """The same set elsewhere; image files are links until they are replaced."""
    for name in ('train', 'val'):
      (folder / name).mkdir(parents=True)
      for path in (self.folder / name).iterdir():
        os.link(path, folder / name / path.name)
    return DataSet(folder, copy.deepcopy(self.train), copy.deepcopy(self.val))


def draw_set(folder: pathlib.Path) -> DataSet:
  """A valid set of drawn rectangles."""
  contents = {}
  for name, first in (('train', 1), ('val', 101)):
    (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(first)
    images, objects = [], []
    for image_id in range(first, first + 3):
      pixels = rng.integers(0, 255, (150, 200, 3)).astype(np.uint8)
      file_name = f'{image_id}.jpg'
      Image.fromarray(pixels).save(folder / name / file_name)
      images.append(
        {'id': image_id, 'file_name': file_name, 'height': 150, 'width': 200}
      )
      for number, side in enumerate((10, 40, 140)):
        x, y = 40 + 3 * number, 30 + 2 * number
        objects.append(
          rectangle(
            10 * image_id + number, image_id, number % 2 + 1, x, y, side
          )
        )
    crowd = rectangle(10 * first + 9, first, 1, 0, 0, 20) | {'iscrowd': 1}
    # Down the columns: 10 rows of each of 20 columns.
    runs = [0, *[10, 140] * 19, 10, 140 + 150 * 180]
    crowd['segmentation'] = {'size': [150, 200], 'counts': runs}
    contents[name] = {
      'images': images,
      'annotations': [*objects, crowd],
      'categories': [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}],
    }
  return DataSet(folder, **contents)


def rectangle(annotation_id, image_id, class_id, x, y, side) -> dict:
  """An annotation half as high as wide."""
  right, bottom = x + side, y + side // 2
  return {
    'id': annotation_id,
    'image_id': image_id,
    'category_id': class_id,
    'bbox': [x, y, side, side // 2],
    'segmentation': [[x, y, right, y, right, bottom, x, bottom]],
    'area': side * (side // 2),
    'iscrowd': 0,
  }


def real(name: str) -> pathlib.Path:
  """The folder of a real set in `MASKRCNN_TEST_DATA`; skips without it."""
  if not os.environ.get('MASKRCNN_TEST_DATA'):
    pytest.skip('MASKRCNN_TEST_DATA names no folder.')
  return pathlib.Path(os.environ['MASKRCNN_TEST_DATA']) / name


def link_coco(folder: pathlib.Path) -> DataSet:
  """A few images of coco-mini, crowds among them, as links."""
  root, contents = real('coco-mini'), {}
  for name in ('train', 'val'):
    file = root / 'annotations' / f'instances_{name}2017.json'
    content = json.loads(file.read_text())
    crowded = {x['image_id'] for x in content['annotations'] if x['iscrowd']}
    plain = {x['image_id'] for x in content['annotations']} - crowded
    images = sorted(
      content['images'],
      key=lambda x: (x['id'] not in plain, x['height'] * x['width'], x['id']),
    )[: _COCO_IMAGES - 1]
    images += [x for x in content['images'] if x['id'] in crowded][:1]
    wanted = {image['id'] for image in images}
    objects = [x for x in content['annotations'] if x['image_id'] in wanted]
    contents[name] = content | {'images': images, 'annotations': objects}
    (folder / name).mkdir(parents=True)
    for image in images:
      source = root / f'{name}2017' / image['file_name']
      os.link(source, folder / name / image['file_name'])
  return DataSet(folder, **contents)
