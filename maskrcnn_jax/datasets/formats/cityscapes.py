"""Cityscapes: `*_gtFine_instanceIds.png` for `*_leftImg8bit.png`.

The eight classes of its instance benchmark, numbered from 1. Groups are crowds;
numbers of other classes are not read.
"""

import functools

from maskrcnn_jax.datasets.formats import instance_png
from maskrcnn_jax.datasets.formats.collect import collect
from maskrcnn_jax.datasets.formats.source import Content, Source

LOOKS_LIKE = '*_instanceIds.png files'
_ENDINGS = ('_gtfine_instanceids.png', '_gtcoarse_instanceids.png')
_COMPANION = '_gt'  # Each image has several files of labels.
_NAMES = {
  24: 'person',
  25: 'rider',
  26: 'car',
  27: 'truck',
  28: 'bus',
  31: 'train',
  32: 'motorcycle',
  33: 'bicycle',
}


def matches(source: Source) -> bool:
  """Whether a file has the ending of Cityscapes."""
  return any(name.lower().endswith(_ENDINGS) for name in source.files)


def read(source: Source) -> Content:
  """Reads the PNGs of a split."""
  labels = source.match_files(_ENDINGS, '_leftImg8bit')
  others = (x for x in source.files.values() if _COMPANION in x.name.lower())
  source.used.update(map(str, others))
  read_file = functools.partial(
    instance_png.read_instances, names=_NAMES, unknown='warning'
  )
  content, findings = collect(source, labels, read_file, _NAMES)
  numbers = {old: new for new, old in enumerate(_NAMES, start=1)}
  for each in content['annotations']:
    each['category_id'] = numbers[each['category_id']]
  for each in content['categories']:
    each['id'] = numbers[each['id']]
  return content, findings
