"""Which classes the objects of records have.

TensorFlow is not needed here.
"""

import dataclasses
import os
from collections.abc import Sequence

from maskrcnn_jax.datasets import record_file, record_index


@dataclasses.dataclass(frozen=True)
class RecordedClass:
  """A class as records name it.

  Attributes:
    name: '' if the records have none.
    category_id: in the annotations that the records were made of.
  """

  name: str
  category_id: int


def read_classes(
  file_pattern: str | os.PathLike | Sequence[str], split: str | None = None
) -> dict[int, RecordedClass]:
  """The classes of all objects, crowds among them, by class id in order.

  Every record is looked at; images and masks are not read.

  Args:
    file_pattern: see `record_index.index_records`.
    split: see there.

  Raises:
    ValueError: nothing fits the pattern, or a file is torn; names it.
  """
  found = {}
  for path in record_index.find_files(file_pattern, split):
    for labels, names, categories in record_file.scan_objects(path):
      for index, class_id in enumerate(labels):
        if class_id not in found:
          found[class_id] = RecordedClass(
            names[index] if index < len(names) else '',
            categories[index] if index < len(categories) else class_id,
          )
  return dict(sorted(found.items()))
