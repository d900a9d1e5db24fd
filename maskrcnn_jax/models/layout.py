"""Sharding hooks of the model: arrays that may be split, arrays kept whole.

The model marks them; `distributed.mesh` maps the marks to a mesh of devices.
"""

import dataclasses
from collections.abc import Callable
from typing import Any


def _as_it_is(value: Any) -> Any:
  return value


def _call(module: Callable, *arrays: Any) -> Any:
  return module(*arrays)


@dataclasses.dataclass(frozen=True)
class Layout:
  """Functions that reshard a tree of arrays; the identity by default.

  Attributes:
    split: for maps `[batch, height, ...]` whose rows may be on several devices:
      every operation on them needs only neighbouring rows.
    whole: for arrays `[batch, ...]` of which any part may be needed anywhere.
    parameters: for the parameters, as layers need them.
    per_device: for functions of trees of arrays `[batch, ...]` that look at
      each image alone; a device then runs them on its images, and neither their
      sorts nor their loops ask other devices.
    share: calls a module with a tree of maps `[batch, ...]` that share its
      parameters. A device then sums their gradients over the maps first, so
      that the sum over devices is one.
    mask_head: calls the mask head with its arguments in training; results of
      RoIs that are not valid are of no account.
  """

  split: Callable[[Any], Any] = _as_it_is
  whole: Callable[[Any], Any] = _as_it_is
  parameters: Callable[[Any], Any] = _as_it_is
  per_device: Callable[[Callable], Callable] = _as_it_is
  share: Callable[[Callable, Any], Any] = _call
  mask_head: Callable[..., Any] = _call
