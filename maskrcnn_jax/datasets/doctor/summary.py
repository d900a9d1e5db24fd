"""The numbers of a split: what there is of each class and size."""

import collections
from typing import Any

from maskrcnn_jax.datasets.doctor import scores
from maskrcnn_jax.datasets.doctor.survey import Split

# Sides in pixels where the bins of the histogram begin.
_BINS = (0, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def summarize(split: Split) -> dict[str, Any]:
  """The numbers of a split, ready for JSON.

  Returns:
    `name`, `annotations` (the json), `images`, `images_without_objects`,
    `objects`, `crowds`; `classes`, a list of `id`, `name`, `objects`, `images`,
    `crowds`; `areas`, objects by COCO's size; `box_sides`, objects by the
    square root of the box's area, in bins `16-32`. Objects are those that can
    be used and are no crowds.
  """
  objects = [each for each in split.objects if not each.is_crowd]
  crowds = collections.Counter(
    each.class_id for each in split.objects if each.is_crowd
  )
  counts = collections.Counter(each.class_id for each in objects)
  images = collections.Counter(
    class_id for class_id, _ in {(x.class_id, x.image_id) for x in objects}
  )
  areas = collections.Counter(scores.size_name(each.area) for each in objects)
  sides = collections.Counter(_bin(each.side) for each in objects)
  num_images = len(split.dataset.images)
  return {
    'name': split.name,
    'annotations': split.file,
    'images': num_images,
    'images_without_objects': num_images - len({x.image_id for x in objects}),
    'objects': len(objects),
    'crowds': crowds.total(),
    'classes': [
      {
        'id': class_id,
        'name': name,
        'objects': counts[class_id],
        'images': images[class_id],
        'crowds': crowds[class_id],
      }
      for class_id, name in sorted(split.dataset.class_names.items())
    ],
    'areas': {name: areas[name] for name in scores.AREA_RANGES},
    'box_sides': {name: sides[name] for name in map(_bin, _BINS)},
  }


def _bin(side: float) -> str:
  """Name of the bin that a side falls into."""
  index = sum(side >= start for start in _BINS[1:])
  if index + 1 == len(_BINS):
    return f'{_BINS[index]}-'
  return f'{_BINS[index]}-{_BINS[index + 1]}'
