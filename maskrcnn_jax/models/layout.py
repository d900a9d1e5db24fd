"""Where arrays of the model may be split among devices, and where not.

The model says it; what it means for the devices at hand is not known here.
"""

import dataclasses
from collections.abc import Callable
from typing import Any


def _as_it_is(tree: Any) -> Any:
  return tree


@dataclasses.dataclass(frozen=True)
class Layout:
  """Functions that place a tree of arrays and return it; by default nothing.

  Attributes:
    split: of maps `[batch, height, ...]`, whose rows may lie apart: all that is
      computed with them needs the same row and its neighbours only.
    whole: of arrays `[batch, ...]` of which any part may be needed anywhere.
    parameters: of those of the model, as layers need them.
  """

  split: Callable[[Any], Any] = _as_it_is
  whole: Callable[[Any], Any] = _as_it_is
  parameters: Callable[[Any], Any] = _as_it_is
