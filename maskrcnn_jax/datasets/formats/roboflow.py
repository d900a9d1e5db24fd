"""COCO as Roboflow writes it: `_annotations.coco.json` among a split's images.

Category 0 is often the parent of the others and has no objects: it is dropped,
so that classes are numbered from 1 in every split.
"""

from maskrcnn_jax.datasets import coco_json
from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.datasets.formats.source import Content, Source
from maskrcnn_jax.errors import UserError, brief

LOOKS_LIKE = '_annotations.coco.json'


def matches(source: Source) -> bool:
  """Whether a file has Roboflow's name."""
  return bool(_paths(source))


def _paths(source) -> list:
  return [x for x in source.files.values() if x.name == LOOKS_LIKE]


def read(source: Source) -> Content:
  """Reads the JSON of a split."""
  paths = _paths(source)
  if len(paths) != 1:
    raise UserError(
      f'{source.labels} has {len(paths)} files {LOOKS_LIKE}: name one split.',
      argument='annotations',
      path=source.labels,
      given=len(paths),
    )
  content = coco_json.pick_lists(source.first_json, paths[0])
  findings = []
  categories = content['categories']
  entries = [*categories, *content['annotations']]
  if not all(isinstance(x, dict) for x in entries):
    return content, findings  # Named by the checks of any COCO JSON.
  parents = [x.get('supercategory') for x in categories if x.get('id') != 0]
  is_used = any(x.get('category_id') == 0 for x in content['annotations'])
  for each in categories[:]:
    if each.get('id') == 0 and each.get('name') in parents and not is_used:
      categories.remove(each)
      message = f'category 0 {brief(each["name"])} is a parent class: dropped.'
      what = 'parent_category', str(paths[0]), message, 'note'
      findings.append(Finding(*what))
  return content, findings
