"""Small data sets of label formats: made in a folder and read."""

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_jax.datasets.formats import convert
from maskrcnn_jax.datasets.formats.source import Source


def make_image(path, size=(6, 4), **options):
  """Writes a black image of a size (width, height)."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', size).save(path, **options)


def save_mask(path, array, palette=None):
  """Writes an array as an image, with a palette if one is given."""
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(array)
  if palette:
    image = image.convert('L')
    image.putpalette(palette)
  image.save(path)


def read(data_format, folder, classes=None, labels='labels', images='images'):
  """COCO's lists of a data set in a folder, and the findings."""
  source = Source(str(folder / images), str(folder / labels), classes, 1)
  return convert.to_coco(data_format, source)


def areas(content):
  """Category and area of every object."""
  return [(x['category_id'], x['area']) for x in content['annotations']]


def decode(entry):
  """The mask of an annotation with run lengths."""
  return coco_mask.decode(entry['segmentation']).astype(bool)


def kinds(findings):
  """Kind, file name and severity of every finding."""
  return [(x.kind, x.file.rsplit('/', 1)[-1], x.severity) for x in findings]


# Two objects, 5 and 9, of 2 x 3 and 2 x 1 pixels.
NUMBERS = np.array(
  [
    [0, 5, 5, 5, 0, 0],
    [0, 5, 5, 5, 0, 9],
    [0, 0, 0, 0, 0, 9],
    [0, 0, 0, 0, 0, 0],
  ]
)
