"""Checks of whole splits: files, classes, COCO's metrics, train against val."""

import collections
import os
from collections.abc import Iterator, Sequence

from maskrcnn_jax.datasets import categories, coco_files
from maskrcnn_jax.datasets.doctor.split import Split
from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.datasets.formats import convert

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
# Detections per class and image that COCO's AP counts.
COUNTED_DETECTIONS = 100
# Too few objects to learn a class.
FEW_OBJECTS = 10
# COCO has 1 crowd in 100 objects.
_MOST_CROWDS = 0.5
# Findings that leave some file names of a json unknown.
_NAMELESS = {'entry', 'image_entry', 'image_id', 'duplicate_image_id'}


def check_split(
  split: Split, allow_empty_classes: bool = False
) -> Iterator[Finding]:
  """Yields findings on a split as a whole; see `check.check`."""
  if not split.dataset.images:
    message = 'the json lists no usable image.'
    yield split.finding('no_images', message, 'error')
  ids = collections.defaultdict(list)
  for class_id, name in split.dataset.class_names.items():
    ids[name].append(class_id)
  for name, same in ids.items():
    if len(same) > 1:
      message = f'the classes {same} are all called {name!r}. Rename or join.'
      yield split.finding('duplicate_class_name', message)
  yield from _check_files(split)
  yield from _check_amounts(split)
  yield from _check_classes(split, allow_empty_classes)


def _check_classes(split: Split, allow_empty) -> Iterator[Finding]:
  """Yields classes of a split that have no objects, or few."""
  counts, is_train = split.count_classes(), split.name == 'train'
  crowds = {each.class_id for each in split.objects if each.is_crowd}
  names = split.dataset.class_names
  # As in `prepare`, which also refuses a set without any object.
  is_error = is_train and split.data_format == convert.COCO and bool(counts)
  yield from categories.find_empty(
    names if is_train else {k: names[k] for k in crowds},
    *(counts, crowds, split.dataset.ignored_classes(), split.file),
    'error' if is_error and not allow_empty else 'warning',
  )
  for class_id, count in counts.items() if is_train else ():
    if count < FEW_OBJECTS:
      message = (
        f'class {class_id} ({names[class_id]!r}) has fewer than {FEW_OBJECTS} '
        f'objects ({count}), hardly enough to train it.'
      )
      yield split.finding('few_objects', message, 'note')


def compare(train: Split, val: Split) -> Iterator[Finding]:
  """Yields differences between training and validation."""
  trained, evaluated = train.dataset.class_names, val.dataset.class_names
  train_ids = {name: class_id for class_id, name in trained.items()}
  train_counts, val_counts = train.count_classes(), val.count_classes()
  for class_id, name in evaluated.items():
    what = f'class {class_id} ({name!r})'
    hint = 'Give a class the same id and name in both.'
    if train_ids.get(name, class_id) != class_id:
      hint = f'In {train.file} {name!r} has the id {train_ids[name]}. {hint}'
    if class_id in trained and trained[class_id] != name:
      message = f'{what} is {trained[class_id]!r} in {train.file}. {hint}'
      yield val.finding('class_name_differs', message, 'error')
    elif class_id not in trained:
      severity = 'error' if val_counts[class_id] else 'warning'
      message = f'{what} is not in {train.file}: its AP will be 0. {hint}'
      yield val.finding('class_not_in_train', message, severity)
    elif val_counts[class_id] and not train_counts[class_id]:
      message = f'{what} has no object in {train.file}: its AP will be 0.'
      yield val.finding('class_only_in_val', message)
  for class_id, name in trained.items():
    if train_counts[class_id] and not val_counts[class_id]:
      message = (
        f'class {class_id} ({name!r}) has objects in {train.file} '
        f'({train_counts[class_id]}) and none here: it is trained but never '
        'evaluated. Move some of its images.'
      )
      yield val.finding('class_not_in_val', message)
  names = {image.image_id: image.file_name for image in train.dataset.images}
  seen = {digest: image_id for image_id, digest in train.digests.items()}
  for image in val.dataset.images:
    other = seen.get(val.digests.get(image.image_id))
    if other is not None:
      message = (
        f'is also image {other} of {train.file} ({names[other]}): the model is '
        'evaluated on an image it was trained on. Remove it from one of them.'
      )
      yield val.finding('image_in_both', message, image=image)


def _check_files(split: Split) -> Iterator[Finding]:
  """Yields images that are listed twice."""
  by_name, by_digest = {}, {}
  for image in split.dataset.images:
    kind, other = 'duplicate_file', by_name.setdefault(image.file_name, image)
    if other is image and image.image_id in split.digests:
      digest = split.digests[image.image_id]
      kind, other = 'same_picture', by_digest.setdefault(digest, image)
    if other is not image:
      message = (
        f'is the same picture as image {other.image_id} ({other.file_name}), '
        'so objects annotated in one are background in the other. Keep one of '
        'them, with all objects.'
      )
      yield split.finding(kind, message, image=image)


def _check_amounts(split: Split) -> Iterator[Finding]:
  """Yields findings on the numbers of objects and crowds."""
  with_objects = {each.image_id for each in split.objects if not each.is_crowd}
  num_crowds = sum(each.is_crowd for each in split.objects)
  if not split.objects:
    message = (
      'there is no usable object: nothing can be trained, and every AP is -1.'
    )
    yield split.finding('no_objects', message, 'error')
    return
  if not with_objects:
    message = (
      'all objects are crowds, which are neither trained on nor evaluated: '
      'every AP is -1. Set iscrowd to 0 for single objects.'
    )
    yield split.finding('all_crowd', message, 'error')
    return
  if num_crowds > _MOST_CROWDS * len(split.objects):
    message = (
      f'{num_crowds} of {len(split.objects)} objects are crowds, which are not '
      'trained on. Set iscrowd to 0 for single objects.'
    )
    yield split.finding('crowd_share', message)
  for image in split.dataset.images:
    if image.image_id not in with_objects:
      message = (
        'has no object to train on: all of it counts as background. Remove it '
        'if it is not annotated yet.'
      )
      yield split.finding('image_without_objects', message, 'note', image)


def size_name(area: float) -> str:
  """COCO's range of an area; at a border the smaller one."""
  for name, (_, most) in AREA_RANGES.items():
    if area <= most:
      return name
  return 'large'


def check_scores(
  split: Split, max_detections: int = COUNTED_DETECTIONS
) -> Iterator[Finding]:
  """Yields reasons why COCO's metrics are -1 or cannot reach 1.

  `check_split` reports splits without objects, or with crowds only.
  """
  objects = [each for each in split.objects if not each.is_crowd]
  if not objects:
    return
  for name, (least, most) in AREA_RANGES.items():
    if not any(least <= each.area <= most for each in objects):
      message = (
        f'no object is {SIZE_WORDS[name]}: AP{name[0]} and AR{name[0]} are -1, '
        'shown as n/a, whatever the model.'
      )
      yield split.finding('empty_area_range', message, 'note')
  counts = collections.Counter((x.image_id, x.class_id) for x in objects)
  crowded = {k: n for k, n in counts.items() if n > max_detections}
  most = max(counts.values())
  images = {image.image_id: image for image in split.dataset.images}
  for (image_id, class_id), count in crowded.items():
    class_name = split.dataset.class_names[class_id]
    message = (
      f'has {count} objects of class {class_id} ({class_name!r}), but only the '
      f'best {max_detections} detections of a class in an image count: no '
      f'model can find all. Set --config.evaluation.max_detections={most}, or '
      'cut the image into parts.'
    )
    yield split.finding(
      'more_objects_than_counted', message, image=images[image_id]
    )


def check_listing(splits: Sequence[Split]) -> Iterator[Finding]:
  """Yields image files in the folders of a data set that no json lists.

  Splits that share a folder share its files. Other formats than COCO's name
  images without a label.
  """
  folders = {}
  for split in splits:
    if split.data_format in convert.OF_COCO:
      folders.setdefault(os.path.realpath(split.images_dir), []).append(split)
  for same in folders.values():
    if any(each.kind in _NAMELESS for split in same for each in split.findings):
      continue
    listed = [x.file_name for split in same for x in split.dataset.images]
    jsons = ' or '.join(split.file for split in same)
    yield from coco_files.find_unlisted(same[0].images_dir, listed, jsons)
