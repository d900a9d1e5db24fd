"""Why AP would come out as 0 or -1, whatever the model finds."""

import collections
import os
from collections.abc import Iterator

from maskrcnn_jax.datasets.doctor.survey import Split
from maskrcnn_jax.datasets.findings import Finding

# COCO's ranges of area, their ends included; `COCOeval.params.areaRng`.
AREA_RANGES = {
  'small': (0.0, 32.0**2),
  'medium': (32.0**2, 96.0**2),
  'large': (96.0**2, 1e5**2),
}
SIZE_WORDS = {
  'small': 'small (area up to 32 x 32)',
  'medium': 'medium (up to 96 x 96)',
  'large': 'large (more than 96 x 96)',
}
# The best detections of a class in an image that COCO's AP counts.
COUNTED_DETECTIONS = 100


def size_name(area: float) -> str:
  """Name of COCO's range that an area falls into, the smaller of two."""
  for name, (_, most) in AREA_RANGES.items():
    if area <= most:
      return name
  return 'large'


def check_scores(
  split: Split, max_detections: int = COUNTED_DETECTIONS
) -> Iterator[Finding]:
  """Yields what COCO's numbers of a split will lack.

  That there is no object at all, or crowds only, `splits.check_split` says.

  Args:
    split: that is evaluated.
    max_detections: of a class in an image that count.
  """
  objects = [each for each in split.objects if not each.is_crowd]
  if not objects:
    return
  for name, (least, most) in AREA_RANGES.items():
    if not any(least <= each.area <= most for each in objects):
      message = (
        f'no object is {SIZE_WORDS[name]}: AP{name[0]} and AR{name[0]} are -1, '
        'shown as n/a. That is no fault of the model.'
      )
      yield Finding('empty_area_range', split.file, None, None, message, 'note')
  counts = collections.Counter((x.image_id, x.class_id) for x in objects)
  crowded = {k: n for k, n in counts.items() if n > max_detections}
  most = max(counts.values())
  names = {image.image_id: image.file_name for image in split.dataset.images}
  for (image_id, class_id), count in crowded.items():
    path = os.path.join(split.images_dir, names[image_id])
    class_name = split.dataset.class_names[class_id]
    message = (
      f'has {count} objects of class {class_id} ({class_name!r}), but only the '
      f'best {max_detections} detections of a class in an image count: no '
      f'model can find all. Set --config.evaluation.max_detections={most}, or '
      'cut the image into parts.'
    )
    yield Finding('more_objects_than_counted', path, image_id, None, message)
