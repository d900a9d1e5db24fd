"""Categories: the classes of a data set, their names and ids.

The model's class 0 is the background. A class id is therefore the category id
of the annotations, or one more where those count from 0.
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence

from maskrcnn_jax.datasets import record_file, record_index


@dataclasses.dataclass(frozen=True)
class Category:
  """A class of a data set.

  Attributes:
    name: '' where records store no names.
    category_id: the id in the annotations, which results carry.
  """

  name: str
  category_id: int


def class_offset(category_ids: Iterable[int]) -> int:
  """Class id minus category id: 1 if there is a category 0, else 0."""
  return int(0 in category_ids)


def read_from_records(
  file_pattern: str | os.PathLike | Sequence[str], split: str | None = None
) -> dict[int, Category]:
  """Categories of all objects in records, crowds included, by class id.

  Reads every record, but neither images nor masks; needs no TensorFlow.

  Args:
    file_pattern: see `record_index.index_records`.
    split: see `record_index.index_records`.

  Raises:
    UserError: no file matches the pattern, or one is truncated or corrupt.
  """
  found = {}
  for path in record_index.find_files(file_pattern, split):
    for labels, names, category_ids in record_file.scan_objects(path):
      for index, class_id in enumerate(labels):
        if class_id not in found:
          found[class_id] = Category(
            names[index] if index < len(names) else '',
            category_ids[index] if index < len(category_ids) else class_id,
          )
  return dict(sorted(found.items()))
