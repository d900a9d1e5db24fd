"""COCO as CVAT writes it: brush masks carry `iscrowd` 1 and are objects."""

from maskrcnn_jax.datasets import coco_values
from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.datasets.formats import coco
from maskrcnn_jax.datasets.formats.source import Content, Source

LOOKS_LIKE = 'a COCO JSON whose annotations have "attributes" with "occluded"'


def matches(source: Source) -> bool:
  """Whether an annotation has the attributes that CVAT adds to each."""
  if not coco.matches(source):
    return False
  annotations = source.first_json.get('annotations')
  return isinstance(annotations, list) and any(map(_is_of_cvat, annotations))


def _is_of_cvat(entry) -> bool:
  attributes = isinstance(entry, dict) and entry.get('attributes')
  return isinstance(attributes, dict) and 'occluded' in attributes


def read(source: Source) -> Content:
  """Reads a JSON file; crowds of run lengths that are lists are objects."""
  content, findings = coco.read(source)
  count = 0
  for entry in filter(_is_of_cvat, content['annotations']):
    segmentation = entry.get('segmentation')
    is_brush = isinstance(segmentation, dict) and isinstance(
      segmentation.get('counts'), list
    )
    if is_brush and coco_values.read_integer(entry.get('iscrowd')) == 1:
      entry['iscrowd'] = 0
      count += 1
  if count:
    message = (
      f'{count} masks with iscrowd 1 are brush masks of CVAT, so objects; '
      '--format coco keeps them as crowds.'
    )
    findings.append(Finding('brush_masks', str(source.labels), message, 'note'))
  return content, findings
