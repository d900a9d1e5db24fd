"""What a value of a json is, whatever a user wrote there."""

import math
from typing import Any


def is_number(value: Any) -> bool:
  """Whether a value is a number that a float can hold, and finite."""
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return False
  try:
    return math.isfinite(value)
  except OverflowError:  # A json may have whole numbers of any length.
    return False


def is_box(value: Any) -> bool:
  """Whether a value is a list of four finite numbers."""
  return (
    isinstance(value, list) and len(value) == 4 and all(map(is_number, value))
  )
