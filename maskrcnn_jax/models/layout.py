"""Sharding hooks of the model: arrays that may be split, arrays kept whole.

The model marks them; `distributed.mesh` maps the marks to a mesh of devices.
"""

import dataclasses
from collections.abc import Callable
from typing import Any


def _as_it_is(tree: Any) -> Any:
  return tree


@dataclasses.dataclass(frozen=True)
class Layout:
  """Functions that reshard a tree of arrays; the identity by default.

  Attributes:
    split: for maps `[batch, height, ...]` whose rows may be on several devices:
      every operation on them needs only neighbouring rows.
    whole: for arrays `[batch, ...]` of which any part may be needed anywhere.
    parameters: for the parameters, as layers need them.
  """

  split: Callable[[Any], Any] = _as_it_is
  whole: Callable[[Any], Any] = _as_it_is
  parameters: Callable[[Any], Any] = _as_it_is
