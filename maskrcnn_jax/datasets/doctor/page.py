"""The report as a self-contained HTML page with pictures; no requests."""

import base64
import collections
import html
import io
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from maskrcnn_jax import fonts, visualize
from maskrcnn_jax.datasets import images, masks, stored_images, value_range
from maskrcnn_jax.datasets.coco_json import CocoImage
from maskrcnn_jax.datasets.doctor import report as report_lib
from maskrcnn_jax.datasets.doctor.check import Report
from maskrcnn_jax.datasets.doctor.split import Split
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.structures import Instances

# Findings of a kind in the page; the JSON has all.
_WRITTEN = 2000
_SIDE = 640  # Longer side of a picture; larger images are reduced.
_SAMPLES = 12  # Of every split.
_PER_KIND = 2  # Pictures of findings of one kind,
_PROBLEMS = 40  # and of all.
_BATCH_IMAGES = 12  # Images of training batches.
_JPEG_QUALITY = 85


Picture = tuple[str, str]  # Caption, and a JPEG file in base64.


def make_page(report: Report, pictures: Mapping[str, Sequence[Picture]]) -> str:
  """The text of the page.

  Args:
    report: its findings and splits are shown.
    pictures: by heading.
  """
  numbers = [report_lib.summarize(split) for split in report.splits]
  parts = [
    f'<p class="verdict">{_text(report_lib.verdict(report))}</p>',
    *(f'<p>{_text(report_lib.describe(each))}</p>' for each in numbers),
    '<h2>Findings</h2>',
    *_findings(report),
    *_galleries(pictures),
    '<h2>Sizes</h2>',
    _table(report_lib.area_rows(numbers)),
    '<p>Sides of boxes in pixels (square root of the area):</p>',
    *(_bars(split) for split in numbers),
    '<h2>Classes</h2>',
    _table(report_lib.class_rows(numbers)),
  ]
  template = pathlib.Path(__file__).with_name('page.html')
  head, tail = template.read_text(encoding='utf-8').split('<!-- content -->\n')
  return head + '\n'.join(parts) + '\n' + tail


def _text(value: object) -> str:
  return html.escape(str(value))


def _findings(report: Report):
  kinds = report.by_kind()
  if not kinds:
    yield '<p>No findings.</p>'
  for kind, found in kinds.items():
    severity = found[0].severity
    yield (
      f'<details class="{severity}"{" open" if severity == "error" else ""}>'
      f'<summary><b>{severity}</b> {_text(kind)} '
      f'<i>{len(found)}</i></summary><ul>'
    )
    yield from (f'<li>{_text(each)}</li>' for each in found[:_WRITTEN])
    if len(found) > _WRITTEN:
      yield f'<li>and {len(found) - _WRITTEN} more: see --json FILE</li>'
    yield '</ul></details>'


def _galleries(pictures: Mapping[str, Sequence[Picture]]):
  for heading, group in pictures.items():
    if not group:
      continue
    yield f'<h2>{_text(heading)}</h2><div class="pictures">'
    for caption, jpeg in group:
      # A hidden checkbox enlarges a picture without a script.
      yield (
        '<label><input type="checkbox"><img loading="lazy" '
        f'alt="{_text(caption)}" src="data:image/jpeg;base64,{jpeg}">'
        f'<span>{_text(caption)}</span></label>'
      )
    yield '</div>'


def _table(rows: Sequence[Mapping[str, str]]) -> str:
  if not rows:
    return ''
  head = ''.join(f'<th>{_text(name)}</th>' for name in rows[0])
  body = ''.join(
    '<tr>' + ''.join(f'<td>{_text(x)}</td>' for x in row.values()) + '</tr>'
    for row in rows
  )
  return f'<table><tr>{head}</tr>{body}</table>'


def _bars(split: Mapping) -> str:
  most = max(1, *split['box_sides'].values())
  rows = ''.join(
    f'<tr><td>{_text(name)}</td><td>{count}</td><td class="bar"><div '
    f'style="width:{100 * count / most:.1f}%"></div></td></tr>'
    for name, count in split['box_sides'].items()
  )
  return f'<table class="bars"><caption>{split["name"]}</caption>{rows}</table>'


def draw_samples(split: Split) -> Iterator[Picture]:
  """Yields evenly spaced images of the split, with all of their objects."""
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
  """Yields the first findings of every kind, with their objects only."""
  drawn = 0
  for kind, found in report.by_kind().items():
    places = collections.defaultdict(dict)
    for each in found:
      places[each.file, each.image_id][each.annotation_id] = None
    for (file, image_id), wanted in list(places.items())[:_PER_KIND]:
      place = _find(report, file, image_id)
      if place is None or drawn == _PROBLEMS:
        continue
      split, image = place
      entries = [
        entry
        for entry in split.dataset.annotations.get(image_id, ())
        if entry.get('id') in wanted or [*wanted] == [None]
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


def draw_batches(config: Mapping, class_names: Mapping[int, str]):
  """Yields the first images of the training batches of a config.

  They are the inputs of the training step: resized, augmented and padded, with
  cropped masks. The section `input` has the arguments of `train_batches`.
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
      if drawn == _BATCH_IMAGES:
        return


def draw_entries(
  split: Split,
  image: CocoImage,
  entries: Sequence[dict],
  labels: Sequence[str],
) -> np.ndarray:
  """Draws annotations of an image, with labels; invalid ones are skipped.

  Returns:
    `[height, width, 3]` uint8, reduced if it is large, enlarged if small.
  """
  encoded, _ = stored_images.read(
    split.image_path(image),
    image.height,
    image.width,
    image.upright,
    split.ranges,
  )
  pixels = value_range.to_rgb(images.decode(encoded))
  scale = min(_SIDE / max(image.height, image.width), 1.0)
  size = [max(round(side * scale), 1) for side in (image.height, image.width)]
  pixels = np.asarray(pixels.resize(size[::-1]))
  pairs = zip(entries, labels)
  kept = [pair for pair in pairs if masks.is_box(pair[0].get('bbox'))]
  boxes = np.array([entry['bbox'] for entry, _ in kept], np.float64)
  boxes = boxes.reshape(-1, 4)[:, [1, 0, 3, 2]]  # As y, x, height, width.
  order = np.argsort(boxes[:, 2] * boxes[:, 3])
  boxes[:, 2:] += boxes[:, :2]

  def mask_of(index):
    shape = kept[order[index]][0].get('segmentation')
    try:
      mask = masks.decode_segmentation(shape, image.height, image.width)
    except UserError:
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
  """Split and entry of an image, None if its file is unusable."""
  for split in report.splits:
    for image in split.dataset.images if image_id in split.digests else ():
      files = split.image_path(image), split.file
      if image.image_id == image_id and file in files:
        return split, image
  return None


def _class_name(split, entry) -> str:
  class_id = entry.get('class_id', entry['category_id'])
  return fonts.readable(split.dataset.class_names[class_id], class_id)


def _times(size) -> str:
  return ' x '.join(map(str, size))


def _picture(caption: str, pixels: np.ndarray) -> Picture:
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, 'JPEG', quality=_JPEG_QUALITY)
  return caption, base64.b64encode(stream.getvalue()).decode('ascii')
