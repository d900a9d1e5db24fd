"""What is wrong with a split as a whole, and between train and val."""

import collections
import os
from collections.abc import Iterator

from maskrcnn_jax.datasets.doctor.survey import Split
from maskrcnn_jax.datasets.findings import Finding

# A class with fewer objects is hardly learnt.
FEW_OBJECTS = 10
# COCO has 1 crowd in 100 objects.
_MOST_CROWDS = 0.5


def count_classes(split: Split) -> collections.Counter:
  """Number of objects of every class, without crowds."""
  return collections.Counter(
    each.class_id for each in split.objects if not each.is_crowd
  )


def check_split(split: Split) -> Iterator[Finding]:
  """Yields what is wrong with a split as a whole."""
  if not split.dataset.images:
    message = 'the json lists no image that can be used.'
    yield _finding('no_images', split, message, 'error')
  yield from _check_names(split)
  yield from _check_files(split)
  yield from _check_amounts(split)
  counts = count_classes(split)
  crowds = {each.class_id for each in split.objects if each.is_crowd}
  for class_id, name in split.dataset.class_names.items():
    count, what = counts[class_id], f'class {class_id} ({name!r})'
    if not count and class_id in crowds:
      message = (
        f'all objects of {what} are crowds: nothing is learnt of it, and its '
        'AP is left out. Set iscrowd to 0 where there is one object.'
      )
      yield _finding('class_of_crowds', split, message)
    elif split.name == 'train' and not count:
      message = (
        f'{what} has no object. Add some, or take it out of the categories.'
      )
      yield _finding('class_without_objects', split, message)
    elif split.name == 'train' and count < FEW_OBJECTS:
      message = (
        f'{what} has fewer than {FEW_OBJECTS} objects ({count}), hardly enough '
        'to learn it.'
      )
      yield _finding('few_objects', split, message, 'note')


def compare(train: Split, val: Split) -> Iterator[Finding]:
  """Yields what does not fit between training and validation."""
  learnt, scored = train.dataset.class_names, val.dataset.class_names
  train_ids = {name: class_id for class_id, name in learnt.items()}
  train_counts, val_counts = count_classes(train), count_classes(val)
  for class_id, name in scored.items():
    what = f'class {class_id} ({name!r})'
    hint = 'Give a class the same id and name in both.'
    if train_ids.get(name, class_id) != class_id:
      hint = f'In {train.file} {name!r} has the id {train_ids[name]}. {hint}'
    if class_id in learnt and learnt[class_id] != name:
      message = f'{what} is {learnt[class_id]!r} in {train.file}. {hint}'
      yield _finding('class_name_differs', val, message, 'error')
    elif class_id not in learnt:
      severity = 'error' if val_counts[class_id] else 'warning'
      message = f'{what} is not in {train.file}: its AP will be 0. {hint}'
      yield _finding('class_not_in_train', val, message, severity)
    elif val_counts[class_id] and not train_counts[class_id]:
      message = f'{what} has no object in {train.file}: its AP will be 0.'
      yield _finding('class_only_in_val', val, message)
  for class_id, name in learnt.items():
    if train_counts[class_id] and not val_counts[class_id]:
      message = (
        f'class {class_id} ({name!r}) has objects in {train.file} '
        f'({train_counts[class_id]}) and none here: it is learnt and never '
        'measured. Move some of its images.'
      )
      yield _finding('class_not_in_val', val, message)
  yield from _check_leaks(train, val)


def _finding(kind, split, message, severity='warning'):
  return Finding(kind, split.file, None, None, message, severity)


def _check_names(split: Split) -> Iterator[Finding]:
  ids = collections.defaultdict(list)
  for class_id, name in split.dataset.class_names.items():
    ids[name].append(class_id)
  for name, same in ids.items():
    if len(same) > 1:
      message = f'the classes {same} are all called {name!r}. Rename or join.'
      yield _finding('duplicate_class_name', split, message)


def _check_files(split: Split) -> Iterator[Finding]:
  """Of images that are there twice."""
  by_name, by_digest = {}, {}
  for image in split.dataset.images:
    path = os.path.join(split.images_dir, image.file_name)
    other = by_name.setdefault(image.file_name, image)
    kind = 'duplicate_file' if other is not image else None
    if kind is None and image.image_id in split.digests:
      digest = split.digests[image.image_id]
      other = by_digest.setdefault(digest, image)
      kind = 'same_picture' if other is not image else None
    if kind:
      message = (
        f'is the same picture as image {other.image_id} ({other.file_name}), '
        'so what is annotated in one is background in the other. Keep one of '
        'them, with all objects.'
      )
      yield Finding(kind, path, image.image_id, None, message)


def _check_leaks(train: Split, val: Split) -> Iterator[Finding]:
  names = {image.image_id: image.file_name for image in train.dataset.images}
  seen = {digest: image_id for image_id, digest in train.digests.items()}
  for image in val.dataset.images:
    other = seen.get(val.digests.get(image.image_id))
    if other is not None:
      message = (
        f'is image {other} of {train.file} too ({names[other]}): what is '
        'measured on it was learnt by heart. Take it out of one of them.'
      )
      path = os.path.join(val.images_dir, image.file_name)
      yield Finding('image_in_both', path, image.image_id, None, message)


def _check_amounts(split: Split) -> Iterator[Finding]:
  """Of objects and crowds."""
  with_objects = {each.image_id for each in split.objects if not each.is_crowd}
  num_crowds = sum(each.is_crowd for each in split.objects)
  if not split.objects:
    message = (
      'there is no object that can be used: nothing can be learnt, and every '
      'AP is -1.'
    )
    yield _finding('no_objects', split, message, 'error')
    return
  if not with_objects:
    message = (
      'all objects are crowds, which nothing is learnt from and which are not '
      'scored: every AP is -1. Set iscrowd to 0 where there is one object.'
    )
    yield _finding('all_crowd', split, message, 'error')
    return
  if num_crowds > _MOST_CROWDS * len(split.objects):
    message = (
      f'{num_crowds} of {len(split.objects)} objects are crowds, which nothing '
      'is learnt from. Set iscrowd to 0 where there is one object.'
    )
    yield _finding('crowd_share', split, message)
  for image in split.dataset.images:
    if image.image_id not in with_objects:
      path = os.path.join(split.images_dir, image.file_name)
      message = (
        'has no object to learn from: all of it counts as background. Take it '
        'out if it is only not annotated yet.'
      )
      yield Finding(
        'image_without_objects', path, image.image_id, None, message, 'note'
      )
