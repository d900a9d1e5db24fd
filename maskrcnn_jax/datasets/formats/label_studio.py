"""Label Studio: one JSON of tasks, polygons in percent and brush strokes.

Of several annotations of a task the first that was not cancelled counts, ground
truth before others.
"""

import json
import re
import urllib.parse
from collections.abc import Iterator

import numpy as np

from maskrcnn_jax import files
from maskrcnn_jax.datasets import coco_values, masks
from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.datasets.formats import shapes
from maskrcnn_jax.datasets.formats.collect import (
  Image,
  ImageLabels,
  collect,
  read_entries,
)
from maskrcnn_jax.datasets.formats.source import Content, Source

LOOKS_LIKE = 'a JSON list of tasks with "annotations"'
_LABELS = re.compile('(polygon|brush|ellipse|rectangle|keypoint|)labels')
_SHAPE_KEYS = ('points', 'rle', 'x', 'y', 'radiusX', 'radiusY', 'rotation')
_UPLOAD_PREFIX = re.compile('^[0-9a-f]{8}-')


def matches(source: Source) -> bool:
  """Whether there is a JSON file of Label Studio."""
  content = source.first_json
  return (
    isinstance(content, list)
    and bool(content)
    and isinstance(content[0], dict)
    and (
      {'data', 'annotations'} <= content[0].keys() or 'annotator' in content[0]
    )
  )


def read(source: Source) -> Content:
  """Reads a JSON or JSON-MIN file, or the only one of a folder."""
  path = source.one_file('.json')
  unused = []
  labels, findings = source.match(_tasks(source, path, unused))
  return collect(source, (labels, findings + unused), read_results)


def _tasks(source, path, unused) -> Iterator[tuple]:
  """Image, results and file of every task that was not cancelled."""
  for task in files.read_json(path):
    name = _image_name(source, task)
    usable = [task]  # JSON-MIN.
    if 'annotations' in task:
      usable = [x for x in task['annotations'] if not x.get('was_cancelled')]
      usable.sort(key=lambda x: not x.get('ground_truth'))
    if len(usable) > 1:
      message = f'{name}: {len(usable) - 1} more annotations are not used.'
      unused.append(Finding('unused_annotation', str(path), message))
    if usable:
      yield name, _results(usable[0]), path


def _results(annotation) -> list:
  if 'result' in annotation:
    return annotation['result']
  lists = [x for x in annotation.values() if isinstance(x, list)]
  return [each for found in lists for each in found]


def _image_name(source, task) -> str:
  """Path of a task's image, without its address and the prefix of uploads."""
  values = task.get('data', task)
  names = [values.get('image'), task.get('file_upload'), *values.values()]
  names = [each for each in names if isinstance(each, str)]
  for name in names:
    address = urllib.parse.urlsplit(name)
    query = urllib.parse.parse_qs(address.query)
    path = query.get('d', [urllib.parse.unquote(address.path)])[0]
    base = path.rpartition('/')[2]
    for each in (path, base, _UPLOAD_PREFIX.sub('', base)):
      if source.find_image(each):
        return each
  return names[0] if names else f'task {task.get("id")}'


def read_results(results: list, image: Image) -> ImageLabels:
  """Reads the results of an image."""
  size = image.size()
  results = _without_repeats(results)
  for each in results:
    if 'original_height' in each:  # Relations have none.
      size = image.size(each['original_height'], each.get('original_width'))
  return read_entries(results, _read_result, size, image.path)


def _without_repeats(results) -> list:
  """Results without repetitions of a shape that have no label.

  A region is a result of its label, one of every choice or text that belongs to
  it, and, if shapes and labels are two tags, one of the shape. All hold it.
  """
  shapes_of = [_shape_of(each) for each in results]
  named = [bool(_label_names(each)) for each in results]
  seen = {shape for shape, is_named in zip(shapes_of, named) if is_named}
  kept = []
  for each, shape, is_named in zip(results, shapes_of, named):
    if is_named or shape is None or shape not in seen:
      kept.append(each)
      seen.add(shape)
  return kept


def _shape_of(result) -> str | None:
  """The numbers of a shape as one text; None: the result has none."""
  value = _value(result)
  found = {key: value[key] for key in _SHAPE_KEYS if key in value}
  return json.dumps(found, sort_keys=True) if found else None


def _value(result) -> dict:
  value = result.get('value', result) if isinstance(result, dict) else None
  return value if isinstance(value, dict) else {}


def _label_names(result) -> list:
  items = _value(result).items()
  return [y for key, x in items if _LABELS.fullmatch(key) for y in x]


def _read_result(result, size):
  value, names = result.get('value', result), _label_names(result)
  if coco_values.read_number(result.get('image_rotation')):
    raise shapes.skip('unusable_mask', 'the image was turned in the tool.')
  percent = np.divide(size[::-1], 100)
  if 'points' in value:
    found = shapes.polygon(value['points'], percent)
  elif 'rle' in value:
    found = masks.encode_run_lengths(decode_brush(value['rle'], size))
  elif 'radiusX' in value:
    centre = np.multiply((value['x'], value['y']), percent)
    radii = np.multiply((value['radiusX'], value['radiusY']), percent)
    turned = value.get('rotation', 0)
    found = shapes.ellipse(centre.tolist(), radii.tolist(), turned)
  elif not names:
    return []  # Of the whole image, such as a choice or a text.
  else:
    raise shapes.no_mask('rectangle' if 'height' in value else 'keypoint')
  return [{'label': name, 'segmentation': found} for name in names or [None]]


def decode_brush(values: list[int], size: tuple[int, int]) -> np.ndarray:
  """Mask of Label Studio's run lengths: the alpha of packed RGBA values.

  A header (32 bits: number of values; 5: bits of a value less 1; 4 times 4:
  bits of lengths less 1) precedes runs: 1 bit (repeat), 2 (which length), the
  length less 1, and one value or as many.
  """
  bits = np.unpackbits(np.array(values, np.uint8))
  position = 0

  def take(count):
    nonlocal position
    position += count
    if position > len(bits):
      raise shapes.skip('unusable_mask', 'brush strokes are truncated.')
    return bits[position - count : position]

  def number(count):
    return int(take(count) @ (1 << np.arange(count)[::-1]))

  total, depth = number(32), number(5) + 1
  lengths = [number(4) + 1 for _ in range(4)]
  if total != 4 * size[0] * size[1] or depth != 8:
    message = f'brush strokes are of {total} values, the image of {size}.'
    raise shapes.skip('unusable_mask', message)
  parts, done = [], 0
  while done < total:
    is_run = number(1)
    count = number(lengths[number(2)]) + 1
    part = np.packbits(take(depth if is_run else depth * count))
    parts.append(np.repeat(part, count) if is_run else part)
    done += count
  pixels = np.concatenate(parts)[:total].reshape(*size, 4)
  return pixels[..., 3] > 0
