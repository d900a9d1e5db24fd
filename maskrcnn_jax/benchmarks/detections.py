"""Synthetic detections of the images and objects of a COCO json.

The cost of an evaluation depends on the sizes, shapes and classes of the
detections, so all of them are those of annotated objects. Most objects are
found once, with a high score, a box that is a little off and a mask that is a
little rough; the other detections lie around objects, or anywhere, with low
scores.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Iterator

import numpy as np

from maskrcnn_jax.datasets import masks as dataset_masks
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.structures import Detections

_MASK_SIZE = 28
# Objects whose masks are used: more would only take memory.
_MAX_SHAPES = 2000
# Standard deviations of the noise on the logits of a mask, which are -6 to 6
# without it; a detection takes a rougher mask the lower its score is.
_ROUGHNESS = (1.0, 2.0, 3.0, 4.0)
# Share of the objects that are found, and of them that get their own class, so
# that AP is near that of a trained Mask R-CNN.
_FOUND = 0.7
_RIGHT_CLASS = 0.8
# Standard deviations of the sides of boxes, in sides.
_ERROR = 0.05
_LOOSE_ERROR = 0.25
# Images are scaled to fit, as they are for the network.
_CANVAS = (832, 1344)


@dataclasses.dataclass(frozen=True)
class Workload:
  """Images with annotations, and the objects that detections are made from.

  Attributes:
    truth: a COCO dataset; `shape` of an annotation is the index of its object
      in the arrays below, or -1.
    num_detections: in every image.
    seed: of the detections.
    sides: `[num_shapes, 2]` height and width of objects.
    classes: `[num_shapes]` of the objects.
    masks: `[len(_ROUGHNESS), num_shapes, 28, 28]` float32 probabilities.
  """

  truth: dict
  num_detections: int
  seed: int
  sides: np.ndarray
  classes: np.ndarray
  masks: np.ndarray

  def batches(self, batch_size: int) -> Iterator[tuple[Detections, dict]]:
    """Yields detections and batches of all images, the same in each call.

    The detections do not depend on the size of the batches.
    """
    images = self.truth['images']
    for start in range(0, len(images), batch_size):
      batch = images[start : start + batch_size]
      sizes = np.array([(i['height'], i['width']) for i in batch], np.int32)
      scales = (np.array(_CANVAS) / sizes).min(axis=1, keepdims=True)
      scales = scales.repeat(2, axis=1).astype(np.float32)
      rows = [self._detect(image) for image in batch]
      fields = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
      fields['boxes'] *= np.tile(scales, 2)[:, None]
      yield (
        Detections(**fields),
        {
          'image_ids': np.array([image['id'] for image in batch]),
          'original_sizes': sizes,
          'scales': scales,
          'valid': np.ones(len(batch), bool),
        },
      )

  @functools.cached_property
  def _objects(self):
    """Annotations by image, without crowds."""
    objects = {}
    for annotation in self.truth['annotations']:
      if not annotation.get('iscrowd'):
        objects.setdefault(annotation['image_id'], []).append(annotation)
    return objects

  def _detect(self, image):
    """The fields of the detections of one image, in its pixels."""
    rng = np.random.default_rng((self.seed, image['id']))
    count = self.num_detections
    size = np.array([image['height'], image['width']], float)
    objects = self._objects.get(image['id'], [])
    found = [each for each in objects if rng.random() < _FOUND][:count]
    # Of the rest one half lies around objects.
    loose = (objects * count)[: (count - len(found)) // 2]
    targets, num_found = found + loose, len(found)
    shapes = rng.integers(len(self.sides), size=count)
    shapes[: len(targets)] = [
      each['shape'] if each['shape'] >= 0 else shape
      for each, shape in zip(targets, shapes)
    ]
    classes = self.classes[rng.integers(len(self.sides), size=count)]
    is_right = rng.random(len(targets)) < _RIGHT_CLASS
    own_classes = [each['category_id'] for each in targets]
    classes[: len(targets)][is_right] = np.array(own_classes, int)[is_right]
    sides = np.minimum(self.sides[shapes], size)
    corners = rng.random((count, 2)) * (size - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1)
    near = np.array([_box(each) for each in targets]).reshape(-1, 4)
    errors = np.full(len(targets), _LOOSE_ERROR)
    errors[:num_found] = _ERROR
    errors = rng.normal(size=near.shape) * errors[:, None]
    boxes[: len(targets)] = near + errors * np.tile(
      near[:, 2:] - near[:, :2], 2
    )
    boxes = np.clip(np.sort(boxes.reshape(-1, 2, 2), axis=1), 0, size)
    scores = rng.beta(0.4, 8.0, count)
    scores[:num_found] = rng.beta(3.0, 1.5, num_found)
    # A detection has some score.
    scores = np.maximum(scores, 1e-4)
    order = np.argsort(-scores, kind='stable')
    rough = ((1 - scores) * len(_ROUGHNESS)).astype(int)
    return {
      'boxes': boxes.reshape(-1, 4)[order].astype(np.float32),
      'scores': scores[order].astype(np.float32),
      'classes': classes[order].astype(np.int32),
      'masks': self.masks[rough[order], shapes[order]],
      'valid': np.ones(count, bool),
    }


def make_workload(
  annotations_file: str | os.PathLike,
  num_images: int = 5000,
  num_detections: int = 100,
  seed: int = 0,
) -> Workload:
  """The images of a COCO json, repeated if there are too few.

  Args:
    annotations_file: COCO json with masks.
    num_images: how many.
    num_detections: in every image.
    seed: of all that is random.

  Raises:
    FileNotFoundError: there is no such file.
    UserError: it has no image, or no object that is not a crowd.
  """
  with open(annotations_file, encoding='utf-8') as file:
    source = json.load(file)
  sizes = {i['id']: (i['height'], i['width']) for i in source['images']}
  objects = [a for a in source['annotations'] if not a.get('iscrowd')]
  objects = objects[:_MAX_SHAPES]
  if not objects:
    raise UserError(
      f'{annotations_file} has no object that is not a crowd.',
      path=annotations_file,
    )
  cuts = [
    _cut(
      dataset_masks.decode_segmentation(
        each['segmentation'], *sizes[each['image_id']]
      ),
      _box(each),
    )
    for each in objects
  ]
  rng = np.random.default_rng(seed)
  boxes = np.array([_box(each) for each in objects])
  shapes = {each['id']: shape for shape, each in enumerate(objects)}
  return Workload(
    truth=_repeat(source, num_images, shapes),
    num_detections=num_detections,
    seed=seed,
    sides=boxes[:, 2:] - boxes[:, :2],
    classes=np.array([each['category_id'] for each in objects], np.int32),
    masks=np.stack(
      [_roughen(np.stack(cuts), each, rng) for each in _ROUGHNESS]
    ),
  )


def _repeat(source, num_images, shapes):
  """The dataset with `num_images` images and new ids."""
  objects = {}
  for annotation in source['annotations']:
    objects.setdefault(annotation['image_id'], []).append(annotation)
  images, annotations = [], []
  for image_id in range(1, num_images + 1):
    image = source['images'][(image_id - 1) % len(source['images'])]
    images.append({**image, 'id': image_id})
    for each in objects.get(image['id'], ()):
      shape = shapes.get(each['id'], -1)
      own = {'id': len(annotations) + 1, 'image_id': image_id, 'shape': shape}
      annotations.append({**each, **own})
  return {**source, 'images': images, 'annotations': annotations}


def _box(annotation):
  """The box `(y1, x1, y2, x2)` of an annotation."""
  x, y, width, height = annotation['bbox']
  return [float(y), float(x), float(y + height), float(x + width)]


def _cut(mask, box):
  """Coverage of the 28x28 cells of its box by a mask, 0..1."""
  samples = 4  # Along a side of a cell.
  steps = (np.arange(_MASK_SIZE * samples) + 0.5) / (_MASK_SIZE * samples)
  samples_at = [
    np.clip(start + steps * (stop - start), 0, length - 1).astype(int)
    for start, stop, length in zip(box[:2], box[2:], mask.shape)
  ]
  cells = (_MASK_SIZE, samples) * 2
  return mask[np.ix_(*samples_at)].reshape(cells).mean(axis=(1, 3))


def _roughen(cuts, roughness, rng):
  """Probabilities `[n, 28, 28]` of a head that predicts the cuts roughly."""
  blocks = rng.normal(
    0, roughness, (len(cuts), _MASK_SIZE // 4, _MASK_SIZE // 4)
  )
  bumps = _smooth(blocks.repeat(4, axis=1).repeat(4, axis=2), times=3)
  logits = 12 * (_smooth(cuts, times=1) - 0.5) + bumps
  return (1 / (1 + np.exp(-logits))).astype(np.float32)


def _smooth(planes, times):
  """Means over 3x3 cells, taken several times."""
  for _ in range(times):
    padded = np.pad(planes, ((0, 0), (1, 1), (1, 1)), mode='edge')
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    planes = windows.mean(axis=(-1, -2))
  return planes
