"""Batches to measure with: of records, or drawn where there are none.

Drawn images are noise; what is drawn with care is what work depends on, how
many objects there are and how large. COCO's images have 7 objects each; a
tenth has none or one, a tenth more than 17.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from maskrcnn_jax.errors import UserError

# Objects of an image: gamma-Poisson with COCO's mean, and its long tail.
_MEAN_OBJECTS, _SHAPE = 7.3, 1.0
# Sides of objects, as shares of the canvas, log-uniform: with 640 pixels some
# two fifths are below COCO's 32 pixels, a quarter above its 96.
_SIDES = (0.02, 0.7)
# Batches to skip for one whose images all have objects.
_MOST_SKIPPED = 50


def synthetic_batches(
  canvas: tuple[int, int],
  batch_size: int,
  num_batches: int,
  num_classes: int = 91,
  max_instances: int = 100,
  mask_size: int = 112,
  num_objects: int | None = None,
  seed: int = 0,
) -> list[dict[str, Any]]:
  """Random images with polygons for objects; needs no data and no TensorFlow.

  Args:
    canvas: (height, width) of the images.
    batch_size: images in a batch.
    num_batches: how many.
    num_classes: with background.
    max_instances: rows of `instances`.
    mask_size: side of the masks.
    num_objects: of every image; None: as many as in COCO, at least 1.
    seed: of all that is random.

  Returns:
    Batches as the input pipeline makes them, without what is only for results.

  Raises:
    ValueError: there are more objects than rows.
  """
  if num_objects is not None and not 1 <= num_objects <= max_instances:
    raise UserError(
      f'num_objects must be 1 to max_instances, {max_instances}, got '
      f'{num_objects}.'
    )
  batches = []
  for number in range(num_batches):
    random = np.random.default_rng([seed, number])
    rows = [
      _draw_image(
        random, canvas, num_classes, max_instances, mask_size, num_objects
      )
      for _ in range(batch_size)
    ]
    images, instances = zip(*rows)
    batches.append(
      {
        'images': np.stack(images),
        'image_sizes': np.tile(np.float32(canvas), (batch_size, 1)),
        'instances': {
          name: np.stack([x[name] for x in instances]) for name in instances[0]
        },
        'valid': np.ones(batch_size, bool),
      }
    )
  return batches


def _draw_image(
  random, canvas, num_classes, max_instances, mask_size, num_objects
):
  """An image, and its instances."""
  count = num_objects
  if count is None:
    mean = random.gamma(_SHAPE, _MEAN_OBJECTS / _SHAPE)
    count = int(np.clip(random.poisson(mean), 1, max_instances))
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
  return image, {
    'boxes': boxes,
    'classes': classes,
    'masks': masks,
    'valid': valid,
  }


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
  """Batches of records, of images that all have objects.

  Args:
    inputs: the section `input` of a config; its first canvas counts.
    num_batches: how many.

  Raises:
    ValueError: nearly all batches have images without objects.
  """
  # TensorFlow reads records: only who has records needs it.
  from maskrcnn_jax.input_pipeline import batches as input_batches

  options = {**inputs, 'canvases': tuple(inputs['canvases'])[:1]}
  found = []
  for number, batch in enumerate(input_batches.train_batches(**options)):
    if batch['instances']['valid'].any(axis=1).all():
      found.append(batch)
    if len(found) == num_batches:
      return found
    if number >= num_batches + _MOST_SKIPPED:
      break
  raise UserError(
    f'Of {number + 1} batches of {options["file_pattern"]} only {len(found)} '
    f'have objects in every image; {num_batches} are wanted.'
  )


def full_masks(
  masks: np.ndarray, boxes: np.ndarray, canvas: Sequence[int]
) -> np.ndarray:
  """Masks of whole images, from masks of boxes.

  Args:
    masks: `[n, size, size]` uint8, each of its box.
    boxes: `[n, 4]` in pixels.
    canvas: (height, width).

  Returns:
    `[n, height, width]` bool: where the cell under the middle of a pixel is
    more than half full; the pixel in the middle of the box at least.
  """
  size = masks.shape[-1]
  result = np.zeros((len(masks), *canvas), bool)
  for whole, mask, box in zip(result, masks, boxes):
    cells, inside = [], []
    for axis in range(2):
      start, end = box[axis], box[axis + 2]
      pixels = np.arange(canvas[axis]) + 0.5
      position = (pixels - start) / max(end - start, 1e-6) * size
      inside.append((pixels >= start) & (pixels < end))
      cells.append(np.clip(position, 0, size - 1).astype(int))
    filled = mask[np.ix_(*cells)] >= 128
    whole[:] = filled & inside[0][:, None] & inside[1]
    middle = ((box[:2] + box[2:]) / 2).astype(int)
    whole[tuple(np.minimum(middle, np.array(canvas) - 1))] = True
  return result
