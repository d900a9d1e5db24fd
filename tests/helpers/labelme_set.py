"""A small data set as LabelMe writes it: drawn rectangles of two classes."""

import json
import pathlib

import numpy as np
from PIL import Image, ImageDraw

NAMES = ('cat', 'dog')


def write(folder, count=10, seed=0, names=NAMES, size=(64, 48)):
  """Writes images and labels; image i has objects of class i and of the first.

  Args:
    folder: to be made, with `photos` and `labels`.
    count: number of images.
    seed: of the places.
    names: of the classes.
    size: (width, height).

  Returns:
    The folders of the images and of the labels.
  """
  photos, labels = (
    pathlib.Path(folder, 'photos'),
    pathlib.Path(folder, 'labels'),
  )
  photos.mkdir(parents=True)
  labels.mkdir()
  rng = np.random.default_rng(seed)
  for number in range(count):
    image, shapes = Image.new('RGB', size, (90, 90, 90)), []
    for label in {names[number % len(names)]: 1, names[0]: 1}:
      x1, y1 = rng.integers(1, 20, 2).tolist()
      x2, y2 = x1 + 24, y1 + 20
      colour = (200, 30, 30) if label == names[0] else (30, 30, 200)
      ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), colour)
      points = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
      shapes.append({'label': label, 'points': points, 'shape_type': 'polygon'})
    image.save(photos / f'{number:02d}.png')
    content = {'shapes': shapes, 'imagePath': f'../photos/{number:02d}.png'}
    content |= {'imageHeight': size[1], 'imageWidth': size[0]}
    (labels / f'{number:02d}.json').write_text(json.dumps(content))
  return photos, labels
