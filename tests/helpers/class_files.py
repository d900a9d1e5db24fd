"""Annotations and records that differ in their classes."""

import json

import numpy as np

from maskrcnn_jax.datasets import examples, records


def write_annotations(path, names, image_ids=(7,)):
  """A COCO json without objects: its categories are `names` by id."""
  truth = {
    'images': [{'id': i, 'height': 48, 'width': 64} for i in image_ids],
    'annotations': [],
    'categories': [{'id': i, 'name': name} for i, name in names.items()],
  }
  path.write_text(json.dumps(truth))
  return str(path)


def write_records(path, classes, names, category_ids=None, crowds=None):
  """One image whose objects have these classes."""
  count = len(classes)
  example = examples.ImageExample(
    encoded=b'image',
    filename='a.jpg',
    image_id=7,
    height=48,
    width=64,
    boxes=np.tile([[1.0, 2.0, 9.0, 8.0]], (count, 1)),
    classes=np.array(classes),
    class_names=names,
    is_crowd=np.array(crowds or [False] * count),
    areas=np.ones(count),
    masks=[b'mask'] * count,
    category_ids=category_ids and np.array(category_ids),
  )
  records.write_records(path, [records.encode_record(example)])
  return str(path)
