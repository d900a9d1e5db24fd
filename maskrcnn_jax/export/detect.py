"""Detects objects in image files with the exported model beside this file.

  python detect.py photo.jpg folder/ ... [--output=found]

It needs numpy and Pillow, and for StableHLO jax and flatbuffers, for ONNX
onnxruntime; but not the package that trained the model. It prints one line of
JSON per image; with `--output` it writes `detections.json` (COCO's form, with
scores) and a picture of every image. In Python: `Detector('folder')(image)`.
Change it as you like.
"""

import argparse
import hashlib
import importlib.util
import io
import json
import os
import pathlib
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

# Formats of Pillow that start no other program.
FORMATS = ('JPEG', 'PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'AVIF', 'PPM')
ENDINGS = ('.jpg', '.jpeg', '.png', '.gif', '.bmp', '.tif', '.tiff', '.webp')


class Detector:
  """Detects objects in images of any size.

  Attributes:
    about: content of `export.json`.
  """

  def __init__(self, folder=None, threads=0, providers=None):
    """Reads the description; programs are read and compiled on first use.

    Args:
      folder: of the export; None: that of this file. Its StableHLO is taken
        where it has one and jax is installed, else its ONNX.
      threads: of an ONNX program; 0: as many as there are cores.
      providers: of ONNX Runtime; None: the CPU.
    """
    self._folder = pathlib.Path(folder or pathlib.Path(__file__).parent)
    text = (self._folder / 'export.json').read_text(encoding='utf-8')
    self.about = json.loads(text)
    kinds = self.about['canvases'][0]
    has_jax = importlib.util.find_spec('jax') or 'onnx' not in kinds
    self._kind = 'program' if 'program' in kinds and has_jax else 'onnx'
    self._options = threads, providers or ['CPUExecutionProvider']
    self._weights, self._programs = None, {}

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
    found = self._program(name)(images, image_sizes)
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
    return canvas, size, np.array(scales, np.float32), chosen[self._kind]

  def _read(self, name):
    """Content of a file; ValueError if it is not that of the export."""
    data = (self._folder / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != self.about['sha256'][name]:
      raise ValueError(f'{self._folder / name} is corrupt: wrong SHA-256.')
    return data

  def _program(self, name):
    """The function of images and image_sizes."""
    if name not in self._programs:
      load = self._load_onnx if self._kind == 'onnx' else self._load_stablehlo
      self._programs[name] = load(self._read(name))
    return self._programs[name]

  def _load_onnx(self, data):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, providers = self._options
    model = onnxruntime.InferenceSession(data, options, providers=providers)
    names = [output.name for output in model.get_outputs()]

    def run(images, image_sizes):
      inputs = {'images': images, 'image_sizes': image_sizes}
      return dict(zip(names, model.run(names, inputs)))

    return run

  def _load_stablehlo(self, data):
    import jax
    from jax import export

    if self._weights is None:
      with np.load(io.BytesIO(self._read('weights.npz'))) as weights:
        self._weights = jax.device_put(dict(weights))
    call = jax.jit(export.deserialize(bytearray(data)).call)
    return lambda *batch: call(self._weights, *batch)


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


def encode(mask):
  """COCO's compressed RLE of a `[height, width]` bool mask."""
  flat = np.concatenate([[False], mask.T.reshape(-1)])  # Zeros come first.
  changes = np.flatnonzero(flat[1:] != flat[:-1])
  counts = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
  text = ''
  for index, count in enumerate(counts):
    left = count - counts[index - 2] if index > 2 else count
    more = True
    while more:  # Five bits a character, the sign in the last.
      bits, left = left & 31, left >> 5
      more = left != (-1 if bits & 16 else 0)
      text += chr(48 + (bits | 32 if more else bits))
  return {'size': list(mask.shape), 'counts': text}


def coco_annotations(found, image_id, first_id):
  """Detections in COCO's form: boxes are [x, y, width, height]."""
  rows = zip(found['boxes'].tolist(), found['scores'].tolist())
  return [
    {
      'id': first_id + row,
      'image_id': image_id,
      'category_id': int(found['classes'][row]),
      'bbox': [x1, y1, x2 - x1, y2 - y1],
      'score': score,
      'area': int(found['masks'][row].sum()),
      'iscrowd': 0,
      'segmentation': encode(found['masks'][row]),
    }
    for row, ((y1, x1, y2, x2), score) in enumerate(rows)
  ]


def draw(image, found, names):
  """A picture of the image with its objects."""
  pixels = image.astype(np.float32)
  colors = np.random.default_rng(0).integers(64, 256, (len(found['boxes']), 3))
  for mask, color in zip(found['masks'], colors):
    pixels[mask] = pixels[mask] / 2 + color / 2
  picture = Image.fromarray(pixels.astype(np.uint8))
  pen, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
  for row in reversed(range(len(colors))):  # The best on top.
    (y1, x1, y2, x2), color = found['boxes'][row].tolist(), tuple(colors[row])
    corners = [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]
    pen.rectangle(corners, outline=color, width=2)
    name = names.get(str(found['classes'][row]), '')
    text = f'{name} {found["scores"][row]:.2f}'
    place = (corners[0] + 3, max(corners[1] - 14, 0))
    pen.text(place, text, fill=color, font=font)
  return picture


def read(path):
  """RGB pixels of an image file, turned as its EXIF data say."""
  with Image.open(path, formats=FORMATS) as image:
    if image.mode[0] in 'IF':  # Pillow would make nearly all of it white.
      raise ValueError(f'{path} has more than 8 bits a value: scale it first.')
    return np.asarray(ImageOps.exif_transpose(image).convert('RGB'))


def image_files(paths):
  """The files, and those of folders, in the order of their names."""
  for path in map(pathlib.Path, paths):
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    yield from (x for x in inside if x == path or x.suffix.lower() in ENDINGS)


def main(words=None):
  """Prints the objects in image files; writes them with --output."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('paths', nargs='+', help='image files or folders')
  parser.add_argument('--output', help='folder for json and pictures')
  text = 'of all classes (default: by class, as the evaluation recommends)'
  parser.add_argument('--min_score', type=float, help=text)
  text = 'of an ONNX program (default: 0, all cores)'
  parser.add_argument('--threads', type=int, default=0, help=text)
  args = parser.parse_args(words)
  output = args.output and pathlib.Path(args.output)
  if output:
    output.mkdir(parents=True)  # Nothing is overwritten.
  detector = Detector(threads=args.threads)
  names = detector.about['class_names']
  least = {'others': 0.5} | detector.about['min_scores']
  if args.min_score is not None:
    least = {'others': args.min_score}
  images, annotations = [], []
  for path in image_files(args.paths):
    image = read(path)
    found = detector(image)
    keep = [
      score >= least.get(str(number), least['others'])
      for number, score in zip(found['classes'], found['scores'])
    ]
    found = {key: value[keep] for key, value in found.items()}
    row = {'id': len(images) + 1, 'file_name': os.fspath(path)}
    images.append(row | dict(zip(('height', 'width'), image.shape)))
    objects = coco_annotations(found, row['id'], len(annotations) + 1)
    annotations += objects
    shown = [
      {
        'class': names.get(str(x['category_id']), ''),
        'score': round(x['score'], 4),
        'bbox': [round(y, 2) for y in x['bbox']],
        'area': x['area'],
      }
      for x in objects
    ]
    print(json.dumps({'file': os.fspath(path), 'objects': shown}), flush=True)
    if output:
      picture = draw(image, found, names)
      picture.save(output / f'{row["id"]:06}_{path.stem}.png')
  if output:
    categories = [{'id': int(k), 'name': v} for k, v in names.items()]
    content = {'images': images, 'annotations': annotations}
    content['categories'] = categories
    (output / 'detections.json').write_text(json.dumps(content))


if __name__ == '__main__':
  try:
    main()
  except (OSError, KeyError, TypeError, ValueError) as error:
    sys.exit(f'{type(error).__name__}: {error}')
