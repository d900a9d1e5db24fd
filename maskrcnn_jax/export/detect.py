"""Detects objects in image files with the exported model beside this file.

  python detect.py photo.jpg ...

It needs jax, numpy and flatbuffers, and Pillow to read the files, but not the
package that trained the model. It prints one line of JSON per image. In Python:
`Detector('folder')(image)`. Change it as you like.
"""

import hashlib
import io
import json
import pathlib
import sys

import jax
import numpy as np
from jax import export

# Formats of Pillow that start no other program.
FORMATS = ('JPEG', 'PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'AVIF', 'PPM')


class Detector:
  """Detects objects in images of any size.

  Attributes:
    about: content of `export.json`.
  """

  def __init__(self, folder=None):
    """Reads the weights; programs are read and compiled on first use.

    Args:
      folder: of the export; None: that of this file.
    """
    self._folder = pathlib.Path(folder or pathlib.Path(__file__).parent)
    text = (self._folder / 'export.json').read_text(encoding='utf-8')
    self.about = json.loads(text)
    with np.load(io.BytesIO(self._read('weights.npz'))) as weights:
      self._weights = jax.device_put(dict(weights))
    self._programs = {}

  def __call__(self, image):
    """Detections in an image, best first.

    Args:
      image: `[height, width, 3]` uint8, RGB.

    Returns:
      A dict of `boxes` [n, 4], (y1, x1, y2, x2) in pixels of the image,
      `scores` [n], `classes` [n] and `masks` [n, height, width], bool.
    """
    pixels, size, scales, name = self.fit(image)
    # A program with a fixed batch size takes no other.
    batch = self.about['batch_size'] or 1
    images = np.zeros((batch, *pixels.shape), pixels.dtype)
    image_sizes = np.zeros((batch, 2), np.float32)
    images[0], image_sizes[0] = pixels, size
    found = self._program(name)(self._weights, images, image_sizes)
    found = {key: np.asarray(value[0]) for key, value in found.items()}
    keep = found.pop('valid')
    found = {key: value[keep] for key, value in found.items()}
    found['boxes'] = found['boxes'] / np.tile(scales, 2)
    found['masks'] = np.array(
      [
        paste(mask, box, image.shape[:2], self.about['mask_pasting'])
        for mask, box in zip(found['masks'], found['boxes'])
      ]
    ).reshape(-1, *image.shape[:2])
    return found

  def fit(self, image):
    """Returns the padded image, image_size, scales and name of the program."""
    original = np.array(image.shape[:2])
    canvases = self.about['canvases']
    exact = self.about['resize']['exact_sizes']
    real = np.float64 if exact else np.float32
    shares = [np.min(np.array(x['fit']) / original) for x in canvases]
    chosen = canvases[int(np.argmax(shares))]
    scale = np.min(np.array(chosen['fit'], real) / original.astype(real))
    size = np.maximum((scale * original.astype(real)).astype(np.int32), 1)
    scales = size / original if exact else [scale, scale]
    pixels = resize(image, size)
    if self.about['inputs']['images']['dtype'] == 'uint8':
      pixels = (pixels + np.float32(0.5)).astype(np.uint8)
    canvas = np.zeros((*chosen['canvas'], 3), pixels.dtype)
    canvas[: size[0], : size[1]] = pixels
    return canvas, size, np.array(scales, np.float32), chosen['program']

  def _read(self, name):
    """Content of a file; ValueError if it is not that of the export."""
    data = (self._folder / name).read_bytes()
    wanted = self.about['sha256'][name]
    if hashlib.sha256(data).hexdigest() != wanted:
      raise ValueError(f'{self._folder / name} is corrupt: wrong SHA-256.')
    return data

  def _program(self, name):
    if name not in self._programs:
      serialized = bytearray(self._read(name))
      self._programs[name] = jax.jit(export.deserialize(serialized).call)
    return self._programs[name]


def resize(image, size):
  """`[*size, 3]` float32: bilinear, half-pixel centers, no antialiasing."""
  image = image.astype(np.float32)
  # In this order the bits are those of training.
  for axis, length in (1, size[1]), (0, size[0]):
    step = np.float32(image.shape[axis]) / np.float32(length)
    positions = (np.arange(length, dtype=np.float32) + 0.5) * step - 0.5
    lower = np.floor(positions)
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    weight = (positions - lower).reshape(shape)
    last = image.shape[axis] - 1
    before = np.take(image, np.maximum(lower, 0).astype(int), axis)
    after = np.take(image, np.minimum(lower + 1, last).astype(int), axis)
    image = before + (after - before) * weight
  return image


def paste(mask, box, image_size, rule='whole_pixels'):
  """Pastes the mask `[size, size]` of a box into `[height, width]` bool.

  The mask is padded with zeros, resized to its box, which is enlarged as much,
  and thresholded at one half. The rule 'whole_pixels' truncates the box to
  whole pixels; 'continuous' does not, and counts a half as inside.
  """
  cells = len(mask) + 2
  half = (box[2:] - box[:2]) / 2
  center, half = box[:2] + half, half * np.float32(cells / len(mask))
  low, high = np.trunc(center - half), np.trunc(center + half) + 1
  if rule == 'continuous':
    cell = (box[2:].astype(float) - box[:2]) / len(mask)
    low, high = box[:2] - cell, box[2:] + cell
  padded, inside = np.pad(mask, 1), np.zeros(image_size, bool)
  start = np.maximum(np.floor(low), 0).astype(int)
  stop = np.minimum(np.ceil(high), image_size).astype(int)
  if np.any(start >= stop) or np.any(low >= high):
    return inside
  for axis in range(2):
    pixels = np.arange(start[axis], stop[axis]) - float(low[axis])
    length = float(high[axis]) - float(low[axis])
    positions = (pixels + 0.5) * (cells / length) - 0.5
    lower = np.clip(np.floor(positions), 0, cells - 1).astype(int)
    weight = np.clip(positions - lower, 0, 1).astype(np.float32)
    weight = weight[:, None] if axis == 0 else weight
    upper = np.minimum(lower + 1, cells - 1)
    before, after = np.take(padded, lower, axis), np.take(padded, upper, axis)
    padded = before * (1 - weight) + after * weight
  found = padded >= 0.5 if rule == 'continuous' else padded > 0.5
  inside[start[0] : stop[0], start[1] : stop[1]] = found
  return inside


def main(paths, min_score=None):
  """Prints the objects in image files with at least a score.

  Args:
    paths: of the files.
    min_score: of all classes; None: by class, as the evaluation of the model
      recommends, or 0.5 if there was none.
  """
  from PIL import Image, ImageOps

  detector = Detector()
  names = detector.about['class_names']
  least = {'others': 0.5} | detector.about['min_scores']
  if min_score is not None:
    least = {'others': min_score}
  for path in paths:
    image = Image.open(path, formats=FORMATS)
    # Cameras store the orientation in EXIF.
    image = ImageOps.exif_transpose(image).convert('RGB')
    found = detector(np.asarray(image))
    objects = [
      {
        'class': names.get(str(found['classes'][row]), ''),
        'score': round(float(found['scores'][row]), 4),
        'box': [round(float(x), 2) for x in found['boxes'][row]],
        'pixels': int(found['masks'][row].sum()),
      }
      for row, number in enumerate(found['classes'])
      if found['scores'][row] >= least.get(str(number), least['others'])
    ]
    print(json.dumps({'file': path, 'objects': objects}))


if __name__ == '__main__':
  try:
    main(sys.argv[1:])
  except (OSError, KeyError, TypeError, ValueError) as error:
    sys.exit(f'{type(error).__name__}: {error}')
