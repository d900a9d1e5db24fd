"""COCO: one JSON with lists of images, annotations and categories, as it is."""

from maskrcnn_jax.datasets import coco_json
from maskrcnn_jax.datasets.formats.source import Content, Source
from maskrcnn_jax.errors import UserError

LOOKS_LIKE = 'a JSON with "images", "annotations" and "categories"'


def matches(source: Source) -> bool:
  """Whether a JSON has any of COCO's lists."""
  content = source.first_json
  return isinstance(content, dict) and any(
    isinstance(content.get(key), list) for key in coco_json.LISTS
  )


def read(source: Source) -> Content:
  """Reads a JSON file, or the only one of a folder."""
  if source.classes is not None:
    raise UserError(
      '--classes does not apply to COCO, whose JSON names the classes.',
      argument='classes',
    )
  path = source.one_file('.json')
  return coco_json.pick_lists(source.first_json, path), []
