"""Pictures of a data set: samples, what was found, and what a step is fed."""

import base64
import dataclasses
import io
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from maskrcnn_jax import visualize
from maskrcnn_jax.datasets import coco_json, examples, images
from maskrcnn_jax.datasets.coco_json import CocoImage
from maskrcnn_jax.datasets.doctor.check import Report
from maskrcnn_jax.datasets.doctor.survey import Split
from maskrcnn_jax.datasets.findings import InvalidEntryError
from maskrcnn_jax.structures import Instances

_SIDE = 640  # Longer side of a picture; larger images are reduced.
_SAMPLES = 12  # Of every split.
_PER_KIND = 2  # Pictures of findings of one kind,
_PROBLEMS = 40  # and of all.
_FED = 12  # Images of training batches.
_JPEG_QUALITY = 85


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture of the page.

  Attributes:
    caption: what it shows.
    jpeg: the file in base64.
  """

  caption: str
  jpeg: str


def draw_samples(split: Split) -> Iterator[Picture]:
  """Pictures of images all over the split, with all of their objects."""
  with_objects = {each.image_id for each in split.objects}
  chosen = [
    image
    for image in split.dataset.images
    if image.image_id in split.digests and image.image_id in with_objects
  ]
  count = min(_SAMPLES, len(chosen))
  for place in range(count):
    image = chosen[place * len(chosen) // count]
    entries = split.dataset.annotations.get(image.image_id, ())
    labels = [_class_name(split, entry) for entry in entries]
    picture = draw_entries(split, image, entries, labels)
    caption = f'{image.file_name}, image {image.image_id}, objects: '
    yield _picture(f'{caption}{len(entries)}', picture)


def draw_findings(report: Report) -> Iterator[Picture]:
  """Pictures of the first findings of every kind, with their objects only."""
  drawn = 0
  for kind, found in report.by_kind().items():
    places = dict.fromkeys((each.file, each.image_id) for each in found)
    for file, image_id in list(places)[:_PER_KIND]:
      place = _find(report, file, image_id)
      if place is None or drawn == _PROBLEMS:
        continue
      split, image = place
      wanted = {
        each.annotation_id
        for each in found
        if (each.file, each.image_id) == (file, image_id)
      }
      entries = [
        entry
        for entry in split.dataset.annotations.get(image_id, ())
        if entry.get('id') in wanted or wanted == {None}
      ]
      labels = [
        f'{_class_name(split, entry)} {entry.get("id")}' for entry in entries
      ]
      drawn += 1
      named = ', '.join(str(each) for each in wanted if each is not None)
      what = f', annotation {named}' if named else ''
      yield _picture(
        f'{kind}: {image.file_name}, image {image_id}{what}',
        draw_entries(split, image, entries, labels),
      )


def draw_fed(config: Mapping, class_names: Mapping[int, str]):
  """Yields pictures of the first images that a run of the config trains on.

  They are what the training step gets: resized, augmented, on their canvas, the
  masks as they are cut for it.

  Args:
    config: its section `input` are the arguments of `train_batches`.
    class_names: by class id.
  """
  from maskrcnn_jax import input_pipeline

  options = dict(config['input']) | {'cache': 'nothing'}
  drawn = 0
  for batch in input_pipeline.train_batches(**options):
    for row in np.flatnonzero(batch['valid']):
      instances = Instances(
        **{name: x[row] for name, x in batch['instances'].items()}
      )
      image = batch['images'][row]
      size = batch['image_sizes'][row].astype(int).tolist()
      original = batch['original_sizes'][row].tolist()
      caption = (
        f'image {batch["image_ids"][row]}, {_times(original)} resized to '
        f'{_times(size)} on a canvas of {_times(image.shape[:2])}, objects: '
        f'{int(np.sum(instances.valid))}'
      )
      enlarge = visualize.enlargement(image.shape[:2])
      yield _picture(
        caption,
        visualize.draw_instances(image, instances, class_names, enlarge),
      )
      drawn += 1
      if drawn == _FED:
        return


def draw_entries(
  split: Split,
  image: CocoImage,
  entries: Sequence[dict],
  labels: Sequence[str],
) -> np.ndarray:
  """A picture of an image with annotations; what cannot be drawn is left out.

  Args:
    split: of the image, whose file can be read.
    image: its entry.
    entries: annotations of it.
    labels: a text for each.

  Returns:
    `[height, width, 3]` uint8, reduced if it is large, enlarged if small.
  """
  path = os.path.join(split.images_dir, image.file_name)
  encoded, _ = images.read_image(path, image.height, image.width)
  with Image.open(io.BytesIO(encoded)) as opened:
    pixels = images.to_rgb(opened)
  scale = min(_SIDE / max(image.height, image.width), 1.0)
  size = [max(round(side * scale), 1) for side in (image.height, image.width)]
  pixels = np.asarray(pixels.resize(size[::-1]))
  kept = [
    (entry, label)
    for entry, label in zip(entries, labels)
    if coco_json.is_box(entry.get('bbox'))
  ]
  corners = [
    (y, x, y + height, x + width)
    for x, y, width, height in (entry['bbox'] for entry, _ in kept)
  ]
  boxes = np.array(corners, np.float64).reshape(-1, 4)
  boxes = np.clip(boxes, -(2.0**20), 2.0**20)
  order = np.argsort(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))

  def mask_of(index):
    try:
      mask = examples.read_mask(kept[order[index]][0], image)
    except InvalidEntryError:
      return np.zeros(size, bool)
    rows = np.arange(size[0]) * image.height // size[0]
    columns = np.arange(size[1]) * image.width // size[1]
    return mask[rows[:, None], columns]

  return visualize.draw_objects(
    pixels,
    boxes[order] * scale,
    mask_of,
    [kept[index][1] for index in order],
    visualize.enlargement(size),
  )


def _find(report, file, image_id):
  """Split and entry of an image that can be drawn, or None."""
  if image_id is None:
    return None
  for split in report.splits:
    for image in split.dataset.images:
      path = os.path.join(split.images_dir, image.file_name)
      if image.image_id == image_id and file in (path, split.file):
        return (split, image) if image_id in split.digests else None
  return None


def _class_name(split, entry) -> str:
  class_id = entry.get('class_id', entry['category_id'])
  return split.dataset.class_names[class_id]


def _times(size) -> str:
  return ' x '.join(map(str, size))


def _picture(caption: str, pixels: np.ndarray) -> Picture:
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, 'JPEG', quality=_JPEG_QUALITY)
  return Picture(caption, base64.b64encode(stream.getvalue()).decode('ascii'))
