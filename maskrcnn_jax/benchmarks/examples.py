"""Example batches and weights: of records, or random where there are none.

Random images are noise; random objects are as many and as large as COCO's, for
work depends on them. COCO's images have 7 objects each; a tenth has none or
one, a tenth more than 17. Weights come from formulas: those that layers start
with score all classes alike, so that detection finds nothing to do. These keep
activations of order one, spread scores and boxes, and are the same on every
machine.
"""

import itertools
import re
import zlib
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw

from maskrcnn_jax.errors import UserError, invalid

_MEAN_OBJECTS = 7.3
# Sides of objects, as shares of the canvas, log-uniform: with 640 pixels some
# two fifths are below COCO's 32 pixels, a quarter above its 96.
_SIDES = (0.02, 0.7)
# Batches to skip for one whose images all have objects.
_MAX_SKIPPED = 50
# Kernels by the end of their path, and the gain of their deviation over
# sqrt(2 / fan in); others have 1.
_GAINS = (
  (r'block\d+/conv3/kernel', 0.35),
  (r'shortcut_conv/kernel', 0.7),
  (r'fpn/lateral\d/kernel', 0.5),
  (r'fpn/output\d/kernel', 0.7),
  (r'rpn_head/box_deltas/kernel', 0.3),
  (r'class_logits/kernel', 1.6),
  (r'box_head/box_deltas/kernel', 0.6),
  (r'mask_logits/kernel', 0.8),
)
# After ReLU all inputs are positive: an output would be that of its mean
# weight if this were not 0.
_CENTRED = r'(fc6|fc7|class_logits|box_deltas|objectness|mask_logits)/kernel$'
# Logit of background. Of 1000 RoIs, 100 are then objects at least.
DETECTION_BACKGROUND = 8.0
TRAINING_BACKGROUND = 11.9


def synthetic_batches(
  canvas: tuple[int, int],
  batch_size: int,
  num_batches: int,
  num_classes: int = 91,
  max_instances: int = 100,
  mask_size: int = 112,
  num_objects: int | None = None,
) -> list[dict[str, Any]]:
  """Random images with polygons for objects; needs no data and no TensorFlow.

  Args:
    canvas: (height, width) of the images.
    batch_size: images in a batch.
    num_batches: different ones.
    num_classes: with background.
    max_instances: rows of `instances`.
    mask_size: side of the masks.
    num_objects: of every image; None: as many as in COCO, at least 1.

  Returns:
    Batches as the input pipeline makes them, without what is only for results.
  """
  if num_objects is not None and not 1 <= num_objects <= max_instances:
    wanted = f'from 1 to max_instances, {max_instances}'
    raise invalid('num_objects', num_objects, wanted)

  def one_image(random):
    # Geometric: COCO's mean, and its long tail.
    count = num_objects or random.poisson(random.exponential(_MEAN_OBJECTS))
    count = min(max(count, 1), max_instances)
    image = random.integers(0, 256, (*canvas, 3), np.uint8)
    boxes = np.zeros((max_instances, 4), np.float32)
    classes = np.zeros(max_instances, np.int32)
    masks = np.zeros((max_instances, mask_size, mask_size), np.uint8)
    classes[:count] = random.integers(1, num_classes, count)
    for row in range(count):
      shares = np.exp(random.uniform(*np.log(_SIDES), 2))
      sides = np.maximum(shares * min(canvas), 2)
      starts = random.uniform(0, np.array(canvas) - sides)
      boxes[row] = [*starts, *(starts + sides)]
      masks[row] = _polygon(random, mask_size)
    valid = np.arange(max_instances) < count
    instances = {'boxes': boxes, 'classes': classes, 'masks': masks}
    return {
      'images': image,
      'image_sizes': np.float32(canvas),
      'instances': instances | {'valid': valid},
      'valid': np.bool_(True),
    }

  randoms = [
    np.random.default_rng([0, number]) for number in range(num_batches)
  ]
  return [
    jax.tree.map(
      lambda *x: np.stack(x), *(one_image(random) for _ in range(batch_size))
    )
    for random in randoms
  ]


def _polygon(random, size) -> np.ndarray:
  """A star-shaped polygon that fills its box, 0 or 255."""
  angles = np.sort(random.uniform(0, 2 * np.pi, random.integers(5, 30)))
  radii = random.uniform(0.5, 1.0, len(angles))
  points = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
  lowest, highest = points.min(axis=0), points.max(axis=0)
  points = (points - lowest) / (highest - lowest) * (size - 1)
  picture = Image.new('L', (size, size))
  ImageDraw.Draw(picture).polygon([tuple(p) for p in points], fill=255)
  return np.asarray(picture)


def real_batches(inputs: Any, num_batches: int) -> list[dict[str, Any]]:
  """Batches of records whose images all have objects, on the first canvas.

  Raises:
    UserError: nearly all batches have images without objects.
  """
  # TensorFlow reads records: only those who have records need it.
  from maskrcnn_jax.input_pipeline import batches as input_batches

  options = {**inputs, 'canvases': tuple(inputs['canvases'])[:1]}
  batches = input_batches.train_batches(**options)
  tried = itertools.islice(batches, num_batches + _MAX_SKIPPED)
  usable = (x for x in tried if x['instances']['valid'].any(axis=1).all())
  found = list(itertools.islice(usable, num_batches))
  if len(found) < num_batches:
    raise UserError(
      f'Of {num_batches + _MAX_SKIPPED} batches of {options["file_pattern"]} '
      f'only {len(found)} have objects in every image; {num_batches} are '
      'needed.',
      argument='input.file_pattern',
      path=options['file_pattern'],
      given=len(found),
      wanted=num_batches,
    )
  return found


def example_variables(variables: Any, background: float) -> Any:
  """Weights of the structure and shapes of `variables`, from formulas.

  `background` is added to the logit of class 0; the larger, the fewer objects.
  """

  def make(path, array):
    name = '/'.join(key.key for key in path)
    return _values(name, array.shape, background)

  return jax.tree_util.tree_map_with_path(make, variables)


def _values(name, shape, background) -> np.ndarray:
  random = np.random.default_rng(zlib.crc32(name.encode()))
  values = random.standard_normal(shape, np.float32)
  leaf = name.rpartition('/')[2]
  if leaf == 'kernel':
    if re.search(_CENTRED, name):
      values -= values.mean(axis=tuple(range(len(shape) - 1)), keepdims=True)
    # A transposed convolution adds nothing up over its window.
    window = 1 if name.endswith('deconv/kernel') else np.prod(shape[:-2])
    gains = [gain for end, gain in _GAINS if re.search(f'{end}$', name)]
    values *= (gains or [1.0])[0] * np.sqrt(2.0 / (window * shape[-2]))
  elif leaf == 'scale':
    values = 1 + 0.05 * values
  elif leaf == 'variance':
    values = 1 + 0.1 * np.abs(values)
  else:
    values *= 0.05 if leaf == 'mean' or 'norm' in name else 0.01
    if name.endswith('class_logits/bias'):
      values[0] += background
  return values.astype(np.float32)
