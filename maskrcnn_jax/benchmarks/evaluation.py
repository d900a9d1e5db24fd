"""Time of an evaluation after the device is done: masks, file and scores.

The cost depends on the sizes, shapes and classes of the detections, so they are
made from annotated objects. Most objects are found once, with a high score, a
box that is a little off and a mask that is a little rough; the other detections
lie around objects, or anywhere, with low scores.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import resource
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import tqdm
from PIL import Image

from maskrcnn_jax.datasets import masks as dataset_masks
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import coco_metrics, coco_results
from maskrcnn_jax.evaluation.workers import Workers, default_count
from maskrcnn_jax.structures import Detections

# Batches of detections that are made before the clock goes on.
_BATCHES_AT_ONCE = 40
_MASK_SIZE = 28
# Objects whose masks are used: more would only take memory.
_MAX_SHAPES = 2000
# Standard deviations of the noise on the logits of a mask, which are -6 to 6
# without it; a detection takes a rougher mask the lower its score is.
_ROUGHNESS = (0.8, 1.6, 2.4, 3.2)
# Share of the objects that are found, and of the detections that have the class
# of their object, so that AP is near that of a trained Mask R-CNN.
_FOUND = 0.7
_RIGHT_CLASS = 0.8
# Standard deviations of the sides of boxes, in sides.
_ERROR = 0.05
_LOOSE_ERROR = 0.25
# Images are scaled to fit, as they are for the network.
_CANVAS = (832, 1344)


def run(
  annotations_file: str | os.PathLike,
  num_images: int = 5000,
  num_detections: int = 100,
  batch_size: int = 8,
  num_processes: int | None = None,
  scorer: str = 'pycocotools',
) -> dict[str, Any]:
  """Encodes, writes and scores synthetic detections.

  Args:
    annotations_file: COCO json that the images and objects are taken from,
      repeated as needed.
    num_images: how many.
    num_detections: in every image.
    batch_size: images that are encoded together.
    num_processes: as in the section `evaluation` of a config.
    scorer: likewise.

  Returns:
    seconds: of `encode`, `write`, `score` and their `total`.
    milliseconds_per_image: of the same.
    cpu_seconds: of this process and of its helpers, in all of these.
    metrics: the 24 numbers.
    And the arguments but the file.

  Raises:
    FileNotFoundError: there is no annotations file.
    UserError: it has no object, or the scorer is unknown or not installed.
  """
  workload = make_workload(annotations_file, num_images, num_detections)
  if num_processes is None:
    num_processes = default_count(num_images)
  seconds, cpu_seconds = collections.defaultdict(float), 0.0

  @contextlib.contextmanager
  def clock(part):
    nonlocal cpu_seconds
    start, cpu_start = time.perf_counter(), time.process_time()
    yield
    seconds[part] += time.perf_counter() - start
    cpu_seconds += time.process_time() - cpu_start

  image_ids = [image['id'] for image in workload.truth['images']]
  num_batches = -(-num_images // batch_size)
  helpers = resource.getrusage(resource.RUSAGE_CHILDREN)
  with tempfile.TemporaryDirectory() as folder:
    truth_file = pathlib.Path(folder, 'truth.json')
    truth_file.write_text(json.dumps(workload.truth), encoding='utf-8')
    with Workers(num_processes) as workers:
      encoder = coco_results.ResultEncoder(workers)
      batches = iter(
        tqdm.tqdm(workload.batches(batch_size), total=num_batches, disable=None)
      )
      # The clock stands still while detections are made.
      while made := list(itertools.islice(batches, _BATCHES_AT_ONCE)):
        with clock('encode'):
          for found, batch in made:
            encoder.add(found, batch)
          results = encoder.collect()
      with clock('write'):
        coco_results.write_results(results, pathlib.Path(folder, 'found.json'))
      with clock('score'):
        metrics = coco_metrics.evaluate(
          results, truth_file, image_ids, scorer=scorer, workers=workers
        )
  seconds['total'] = sum(seconds.values())
  ended = resource.getrusage(resource.RUSAGE_CHILDREN)
  return {
    'seconds': dict(seconds),
    'milliseconds_per_image': {
      part: value / num_images * 1e3 for part, value in seconds.items()
    },
    'cpu_seconds': cpu_seconds + sum(ended[:2]) - sum(helpers[:2]),
    'metrics': metrics,
    'num_images': num_images,
    'num_detections': num_detections,
    'batch_size': batch_size,
    'num_processes': num_processes,
    'scorer': scorer,
  }


@dataclasses.dataclass(frozen=True)
class Workload:
  """Images with annotations, and the objects that detections are made from.

  Attributes:
    truth: a COCO dataset; `shape` of an annotation is the index of its mask.
    num_detections: of every image.
    sides: `[num_shapes, 2]` height and width of objects.
    classes: `[num_shapes]` of the objects.
    masks: `[len(_ROUGHNESS), num_shapes, 28, 28]` float32 probabilities.
  """

  truth: dict
  num_detections: int
  sides: np.ndarray
  classes: np.ndarray
  masks: np.ndarray

  def batches(self, batch_size: int) -> Iterator[tuple[Detections, dict]]:
    """Yields detections and batches of all images, the same in each call.

    The detections do not depend on the size of the batches.
    """
    objects = collections.defaultdict(list)
    for annotation in self.truth['annotations']:
      if not annotation.get('iscrowd'):
        objects[annotation['image_id']].append(annotation)
    images = self.truth['images']
    for start in range(0, len(images), batch_size):
      batch = images[start : start + batch_size]
      sizes = np.array([(i['height'], i['width']) for i in batch], np.int32)
      scales = (np.array(_CANVAS) / sizes).min(axis=1, keepdims=True)
      scales = scales.repeat(2, axis=1).astype(np.float32)
      rows = [self._detect(image, objects[image['id']]) for image in batch]
      fields = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
      fields['boxes'] *= np.tile(scales, 2)[:, None]
      facts = {
        'image_ids': np.array([image['id'] for image in batch]),
        'original_sizes': sizes,
        'scales': scales,
        'valid': np.ones(len(batch), bool),
      }
      yield Detections(**fields), facts

  def _detect(self, image, objects):
    """The fields of the detections of one image, in its pixels."""
    rng = np.random.default_rng((0, image['id']))
    count = self.num_detections
    size = np.array([image['height'], image['width']], float)
    found = [each for each in objects if rng.random() < _FOUND][:count]
    # Of the rest one half lies around objects.
    loose = (objects * count)[: (count - len(found)) // 2]
    targets, num_found = found + loose, len(found)
    near = slice(len(targets))
    shapes = rng.integers(len(self.sides), size=count)
    classes = self.classes[shapes]
    shapes[near] = [each['shape'] for each in targets]
    classes[near] = np.where(
      rng.random(len(targets)) < _RIGHT_CLASS,
      np.array([each['category_id'] for each in targets], int),
      classes[near],
    )
    sides = np.minimum(self.sides[shapes], size)
    corners = rng.random((count, 2)) * (size - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1)
    errors = np.full((len(targets), 1), _LOOSE_ERROR)
    errors[:num_found] = _ERROR
    errors = errors * rng.normal(size=(len(targets), 4))
    centers = np.array([_box(each) for each in targets]).reshape(-1, 4)
    extents = np.tile(centers[:, 2:] - centers[:, :2], 2)
    boxes[near] = centers + errors * extents
    boxes = np.clip(np.sort(boxes.reshape(-1, 2, 2), axis=1), 0, size)
    scores = rng.beta(0.4, 8.0, count)
    scores[:num_found] = rng.beta(3.0, 1.5, num_found)
    # A detection has some score.
    scores = np.maximum(scores, 1e-4)
    best = np.argsort(-scores, kind='stable')
    rough = ((1 - scores) * len(_ROUGHNESS)).astype(int)
    return {
      'boxes': boxes.reshape(-1, 4)[best].astype(np.float32),
      'scores': scores[best].astype(np.float32),
      'classes': classes[best].astype(np.int32),
      'masks': self.masks[rough[best], shapes[best]],
      'valid': np.ones(count, bool),
    }


def make_workload(
  annotations_file: str | os.PathLike, num_images: int, num_detections: int
) -> Workload:
  """The images of a COCO json with new ids, repeated if there are too few.

  Raises:
    FileNotFoundError: there is no such file.
    UserError: it has no object that is not a crowd.
  """
  source = json.loads(pathlib.Path(annotations_file).read_text('utf-8'))
  sizes = {i['id']: (i['height'], i['width']) for i in source['images']}
  shaped = [a for a in source['annotations'] if not a.get('iscrowd')]
  shaped = shaped[:_MAX_SHAPES]
  if not shaped:
    raise UserError(
      f'{annotations_file} has no object that is not a crowd.',
      path=annotations_file,
    )
  shapes = {each['id']: shape for shape, each in enumerate(shaped)}
  objects = collections.defaultdict(list)
  for each in source['annotations']:
    objects[each['image_id']].append(each)
  images, annotations = [], []
  for image_id in range(1, num_images + 1):
    image = source['images'][(image_id - 1) % len(source['images'])]
    images.append({**image, 'id': image_id})
    for each in objects[image['id']]:
      new_id = len(annotations) + 1
      shape = shapes.get(each['id'], new_id % len(shaped))
      own = {'id': new_id, 'image_id': image_id, 'shape': shape}
      annotations.append({**each, **own})
  boxes = np.array([_box(each) for each in shaped])
  return Workload(
    truth={**source, 'images': images, 'annotations': annotations},
    num_detections=num_detections,
    sides=boxes[:, 2:] - boxes[:, :2],
    classes=np.array([each['category_id'] for each in shaped], np.int32),
    masks=_predicted_masks(
      [_cut(each, *sizes[each['image_id']]) for each in shaped]
    ),
  )


def _box(annotation):
  """The box `(y1, x1, y2, x2)` of an annotation."""
  x, y, width, height = annotation['bbox']
  return [float(y), float(x), float(y + height), float(x + width)]


def _cut(annotation, height, width):
  """Coverage of the 28x28 cells of its box by a mask, 0..1."""
  mask = dataset_masks.decode_segmentation(
    annotation['segmentation'], height, width
  )
  y1, x1, y2, x2 = _box(annotation)
  # At least one pixel.
  y1, x1 = min(max(y1, 0), height - 1), min(max(x1, 0), width - 1)
  y2, x2 = max(min(y2, height), y1 + 1), max(min(x2, width), x1 + 1)
  # Antialiased, so that the coverage changes over several cells.
  return _resize(mask.astype(np.float32), (x1, y1, x2, y2))


def _predicted_masks(cuts):
  """Probabilities of a head that predicts the cuts with each `_ROUGHNESS`."""
  rng = np.random.default_rng(0)
  logits = []
  for roughness in _ROUGHNESS:
    blocks = rng.normal(0, roughness, (len(cuts), 7, 7)).astype(np.float32)
    bumps = np.stack([_resize(each) for each in blocks])
    logits.append(12 * (np.stack(cuts) - 0.5) + bumps)
  return 1 / (1 + np.exp(-np.stack(logits)))


def _resize(array, box=None):
  """A float32 array, or a box of it, as 28x28 cells."""
  size = _MASK_SIZE, _MASK_SIZE
  image = Image.fromarray(array)
  return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box))
