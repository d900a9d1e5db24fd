"""Time of an evaluation after the device is done: masks, file and scores.

The cost depends on the sizes, shapes and classes of the detections, so they are
made from annotated objects. Most objects are found once, with a high score, a
box that is a little off and a mask that is a little rough; the other detections
lie around objects, or anywhere, with low scores.
"""

import collections
import contextlib
import json
import os
import pathlib
import resource
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import tqdm
from PIL import Image

from maskrcnn_jax.benchmarks import measure
from maskrcnn_jax.datasets import coco_json
from maskrcnn_jax.datasets import masks as dataset_masks
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import coco_metrics, coco_results
from maskrcnn_jax.evaluation.workers import Workers, default_count
from maskrcnn_jax.structures import Detections

# Images whose detections are made before the clock goes on.
_IMAGES_AT_ONCE = 320
# Objects whose masks are used: more would only take memory.
_MAX_SHAPES = 2000
# Standard deviation of the noise on the logits of a mask, which are -6 to 6
# without it, of a detection with score 0.
_ROUGHNESS = 3.2
# Share of the objects that are found, and of the detections that have the class
# of their object, so that AP is near that of a trained Mask R-CNN.
_FOUND = 0.7
_RIGHT_CLASS = 0.8
# Standard deviations of the corners of boxes, in sides.
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
) -> list[measure.Row]:
  """Encodes, writes and scores synthetic detections.

  Args:
    annotations_file: COCO json that the images and objects are taken from,
      repeated as needed.
    num_images: of them.
    num_detections: in every image.
    batch_size: images that are encoded together.
    num_processes: as in the section `evaluation` of a config, as is `scorer`.
    scorer: of the results.

  Returns:
    Rows `encode`, `write`, `score` and their `total`, which also has the
    `cpu_seconds` of this process and its workers in all of these, the 24
    `metrics` and the arguments but the file.

  Raises:
    UserError: the file has no object or cannot be read, or the scorer is
      unknown or not installed.
  """
  workload = Workload(annotations_file, num_images, num_detections)
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
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  with tempfile.TemporaryDirectory() as folder:
    truth_file = pathlib.Path(folder, 'truth.json')
    truth_file.write_text(json.dumps(workload.truth), encoding='utf-8')
    with Workers(num_processes) as workers:
      encoder = coco_results.ResultEncoder(workers)
      # The clock stands still while detections are made.
      for start in tqdm.trange(0, num_images, _IMAGES_AT_ONCE, disable=None):
        made = [*workload.batches(batch_size, start, start + _IMAGES_AT_ONCE)]
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
  ended = resource.getrusage(resource.RUSAGE_CHILDREN)
  seconds['total'] = sum(seconds.values())
  *rows, total = (
    {'name': part, **measure.timing([value], num_images)}
    for part, value in seconds.items()
  )
  total |= {
    'cpu_seconds': cpu_seconds + sum(ended[:2]) - sum(before[:2]),
    'metrics': metrics,
    'num_images': num_images,
    'num_detections': num_detections,
    'batch_size': batch_size,
    'num_processes': num_processes,
    'scorer': scorer,
  }
  return [*rows, total]


class Workload:
  """Detections of the images of a COCO json, which are repeated as needed.

  Attributes:
    truth: a COCO dataset of images with new ids; `shape` of an annotation is
      the index of the object whose mask it has.
  """

  def __init__(self, annotations_file, num_images: int, num_detections: int):
    """Reads the images and objects; see `run` for the arguments and errors."""
    source = coco_json.read_lists(annotations_file)
    by_image, shaped = collections.defaultdict(list), []
    for each in source['annotations']:
      by_image[each['image_id']].append(each)
      each['shape'] = len(shaped) % _MAX_SHAPES
      if not each.get('iscrowd'):
        shaped.append(each)
    if not shaped:
      raise UserError(
        f'{annotations_file} has no object that is not a crowd.',
        path=annotations_file,
      )
    self._shaped = shaped[:_MAX_SHAPES]
    self._num_detections = num_detections
    self._objects, images, annotations = {}, [], []
    for new in range(1, num_images + 1):
      image = source['images'][(new - 1) % len(source['images'])]
      images.append({**image, 'id': new})
      own = [{**each, 'image_id': new} for each in by_image[image['id']]]
      self._objects[new] = [x for x in own if not x.get('iscrowd')]
      annotations += own
    for new, each in enumerate(annotations, 1):
      each['id'] = new
    self.truth = {**source, 'images': images, 'annotations': annotations}
    sizes = {i['id']: (i['height'], i['width']) for i in source['images']}
    cuts = [_cut(each, *sizes[each['image_id']]) for each in self._shaped]
    # Logits of a head that predicts the masks, and bumps of deviation 1.
    self._logits = 12 * (np.stack(cuts) - 0.5)
    noise = np.random.default_rng(0).normal(size=(len(cuts), 7, 7))
    self._bumps = np.stack([_resize(each) for each in noise])

  def batches(
    self, batch_size: int, start: int = 0, stop: int | None = None
  ) -> Iterator[tuple[Detections, dict]]:
    """Yields detections and batches of some images, the same in each call.

    The detections do not depend on the size of the batches.
    """
    images = self.truth['images'][start:stop]
    for first in range(0, len(images), batch_size):
      batch = images[first : first + batch_size]
      sizes = np.array([(i['height'], i['width']) for i in batch], np.int32)
      scales = (np.array(_CANVAS) / sizes).min(axis=1, keepdims=True)
      scales = scales.repeat(2, axis=1).astype(np.float32)
      rows = [
        self._detect(image, self._objects[image['id']]) for image in batch
      ]
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
    count = self._num_detections
    others = rng.integers(len(self._shaped), size=count)
    targets = [each for each in objects if rng.random() < _FOUND][:count]
    is_found = np.arange(count) < len(targets)
    # Of the rest one half lies around objects, one around those of others.
    targets += (objects * count)[: (count - len(targets)) // 2]
    targets += [self._shaped[x] for x in others[len(targets) :]]
    scores = np.where(
      is_found, rng.beta(3.0, 1.5, count), rng.beta(0.4, 8.0, count)
    )
    # A detection has some score; the rougher it is, the lower.
    scores = np.maximum(scores, 1e-4)
    boxes = np.array([_box(each) for each in targets])
    errors = np.where(is_found, _ERROR, _LOOSE_ERROR)[:, None]
    errors = errors * rng.normal(size=boxes.shape)
    boxes += errors * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    corners = np.sort(boxes.reshape(-1, 2, 2), axis=1)
    size = np.array([image['height'], image['width']], float)
    # Another image may be larger.
    corners = np.clip(corners - np.maximum(corners[:, 1:] - size, 0), 0, size)
    bumps = self._bumps[others] * _ROUGHNESS * (1 - scores)[:, None, None]
    logits = self._logits[[each['shape'] for each in targets]] + bumps
    classes = np.where(
      rng.random(count) < _RIGHT_CLASS,
      [each['category_id'] for each in targets],
      [self._shaped[x]['category_id'] for x in others],
    )
    fields = {
      'boxes': corners.reshape(-1, 4).astype(np.float32),
      'scores': scores.astype(np.float32),
      'classes': classes.astype(np.int32),
      'masks': 1 / (1 + np.exp(-logits.astype(np.float32))),
      'valid': np.ones(count, bool),
    }
    best = np.argsort(-scores, kind='stable')
    return {name: values[best] for name, values in fields.items()}


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
  return _resize(mask, (x1, y1, x2, y2))


def _resize(array, box=None):
  """An array, or a box of it, as float32 28x28 cells, antialiased."""
  image = Image.fromarray(np.asarray(array, np.float32))
  return np.asarray(image.resize((28, 28), Image.Resampling.BILINEAR, box))
