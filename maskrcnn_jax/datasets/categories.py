"""Categories: the classes of a data set, their names and ids.

The model's class 0 is the background. A class id is therefore the category id
of the annotations, or one more where those count from 0.
"""

import collections
import dataclasses
import logging
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

from maskrcnn_jax.datasets import record_file, record_index
from maskrcnn_jax.datasets.findings import Finding
from maskrcnn_jax.errors import UserError

_LARGEST_CLASS_ID = 10_000


@dataclasses.dataclass(frozen=True)
class Category:
  """A class of a data set."""

  name: str  # '' where records store no names.
  category_id: int  # In the annotations, which results carry.
  is_learnt: bool = True  # False: all of its objects in records are crowds.


Classes = Mapping[int, Category]  # By class id.


def class_offset(category_ids: Iterable[int]) -> int:
  """Class id minus category id: 1 if there is a category 0, else 0."""
  return int(0 in category_ids)


def ids_far_beyond(ids: Iterable[int]) -> list[int]:
  """The ids, in order, that are too large for a model with so few classes.

  A model has outputs for all numbers up to the largest id: 10,000 of them are
  the most that fewer classes may need.
  """
  ids = sorted(ids)
  limit = max(_LARGEST_CLASS_ID, 10 * len(ids))
  return [each for each in ids if each > limit]


def find_empty(
  names: Mapping[int, str],
  counts: Mapping[int, int],
  crowds: Container[int],
  ignored: Container[int],
  file: str,
  severity: str = 'warning',
) -> Iterator[Finding]:
  """Yields the classes of a data set without an object to learn from.

  Args:
    names: of all classes, by class id.
    counts: number of objects that are no crowds, by class id.
    crowds: classes that have crowds.
    ignored: classes whose crowds are objects that are to be ignored: as the
      labels say so, such a class is no error.
    file: the annotations.
    severity: of other classes.
  """
  way = '.'
  if severity == 'error':
    way = (
      ', or give --allow_empty_classes, if the others are to be learnt. (An '
      '--output of prepare that is called val or test needs no such flag.)'
    )
  for class_id, name in names.items():
    if counts.get(class_id):
      continue
    what = f'class {class_id} ({name!r})'
    if class_id in crowds and class_id in ignored:
      message = (
        f'all objects of {what} are to be ignored: it is not trained, and has '
        'no AP.'
      )
      yield Finding('class_of_crowds', file, message)
    elif class_id in crowds:
      message = (
        f'all objects of {what} are crowds: it is not trained, and has no AP. '
        f'Set iscrowd to 0 for single objects{way}'
      )
      yield Finding('class_of_crowds', file, message, severity)
    else:
      message = (
        f'{what} has no usable object. Add some, or take it out of the '
        f'categories{way}'
      )
      yield Finding('class_without_objects', file, message, severity)


def read_from_records(
  file_pattern: str | os.PathLike | Sequence[str],
  split: str | None = None,
  to_train: bool = False,
) -> dict[int, Category]:
  """Categories of all objects in records, crowds included, by class id.

  Reads every record, but neither images nor masks; needs no TensorFlow.

  Args:
    file_pattern, split: see `record_index.index_records`.
    to_train: one object at least must not be a crowd.

  Raises:
    UserError: no file matches the pattern, one is truncated or corrupt, or
      there is nothing to train on.
  """
  found, learnt = {}, collections.Counter()
  for path in record_index.find_files(file_pattern, split):
    for labels, names, category_ids, crowds in record_file.scan_objects(path):
      for index, class_id in enumerate(labels):
        learnt[class_id] += not any(crowds[index : index + 1])
        if class_id not in found:
          found[class_id] = Category(
            names[index] if index < len(names) else '',
            category_ids[index] if index < len(category_ids) else class_id,
          )
  if to_train and not learnt.total():
    raise UserError(
      f'{file_pattern} has no object that is not a crowd: there is nothing to '
      'learn. maskrcnn-jax check of the annotations says why.',
      argument='input.file_pattern',
      path=file_pattern,
    )
  for class_id, each in found.items():
    if not learnt[class_id]:
      found[class_id] = dataclasses.replace(each, is_learnt=False)
  crowds = sorted(k for k, each in found.items() if not each.is_learnt)
  if to_train and crowds:
    message = (
      '%s has nothing but crowds of the classes %s: they are not learnt.'
    )
    logging.warning(message, file_pattern, crowds)
  return dict(sorted(found.items()))


def entries(names: Mapping[int, str], ids: Mapping[int, int]) -> list[dict]:
  """Categories of a COCO JSON, in the order of the class ids.

  Args:
    names: by class id.
    ids: category ids of the classes that have another one.
  """
  return [{'id': ids.get(k, k), 'name': names[k]} for k in sorted(names)]


def names_of(classes: Classes) -> dict[int, str]:
  """Names by class id; the id as a text where a class has no name."""
  return {k: v.name or str(k) for k, v in classes.items()}


def category_ids(classes: Classes) -> dict[int, int]:
  """Category id by class id, of classes whose category id differs."""
  return {k: v.category_id for k, v in classes.items() if v.category_id != k}


def saved_classes(classes: Classes) -> dict[int, str | dict]:
  """Classes in the form that `CheckpointWriter.save` takes."""
  different = category_ids(classes)
  return {
    class_id: {'name': name, 'category_id': different[class_id]}
    if class_id in different
    else name
    for class_id, name in names_of(classes).items()
  }


def check_same_classes(
  wanted: Classes, given: Classes, source, argument: str, path
) -> None:
  """Raises if two sets of classes contradict each other.

  Names are compared without case; a class without a name contradicts nothing,
  nor does one that the other side does not have.

  Args:
    wanted: classes of the training set, or of a checkpoint.
    given: classes of another set.
    source: what `wanted` was read from.
    argument: config field of that set.
    path: of that set.

  Raises:
    UserError: an id has two names, or a name has two ids; `item` is the id in
      `given`, `given` its name there, `wanted` the name in `wanted`, or None
      where the training set does not have the id.
  """
  named = [(known_name(k, wanted), k) for k in reversed(wanted)]
  ids = {name.casefold(): k for name, k in named if name}
  for class_id in given:
    name, expected = known_name(class_id, given), known_name(class_id, wanted)
    if not name:
      continue
    same_name = ids.get(name.casefold(), class_id)
    if expected and expected.casefold() != name.casefold():
      trained = f'{source} has it as {expected!r}'
    elif not expected and same_name != class_id:
      trained = f'{source} has {name!r} as class {same_name}'
    else:
      continue
    raise UserError(
      f'{argument}: {path} has class {class_id} as {name!r}, and {trained}. '
      'Number its categories in the same way, and prepare it again.',
      argument=argument,
      path=path,
      item=class_id,
      given=name,
      wanted=expected or None,
    )


def known_name(class_id: int, classes: Classes) -> str:
  """Name of a class; '' where it is not known or is only its number."""
  each = classes.get(class_id)
  if each is None or each.name in (str(class_id), str(each.category_id)):
    return ''
  return each.name.strip()
