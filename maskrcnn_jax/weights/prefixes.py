"""Prefixes that programs put before the names of a whole network.

PyTorch's wrappers (`_orig_mod.`, `module.`), Lightning (`model.`) and programs
of one's own (`detector.net.`) save the same tensors under longer names, beside
counters and weights of losses.
"""

import dataclasses
import re

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights.tensor_files import Tensors

# Wrappers of PyTorch, which may be around any part of a network.
_WRAPPERS = re.compile(
  r'(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.'
)
# The first layers, by which a network is found; those of whole models first.
_FIRST = {
  'model': (
    'backbone.body.conv1.weight',
    'backbone.bottom_up.stem.conv1.weight',
  ),
  'backbone': ('layer1.0.conv1.weight', 'res2.0.conv1.weight'),
}
_NUM_MENTIONED = 3


def without_wrappers(file: Tensors) -> Tensors:
  """Tensors under their names without `_orig_mod.` and the like.

  If all layers have one, vectors and scalars beside them become others.
  """
  wrapped = {k for k in file.arrays if _WRAPPERS.search(k)}
  if not wrapped:
    return file
  layers = {k for k, x in file.arrays.items() if len(x.shape) > 1}
  if layers <= wrapped:
    beside = [k for k in file.arrays if k not in wrapped]
    file = _skip(file, beside)
  taken = dict.fromkeys(x[0] for k in wrapped for x in _WRAPPERS.finditer(k))
  return _renamed(file, lambda name: _WRAPPERS.sub('', name), sorted(taken))


def without_prefix(file: Tensors) -> Tensors:
  """Tensors without the prefix before the names of a network, if there is one.

  Beside the network, vectors and scalars become others, such as counters and
  weights of losses; layers keep their names.

  Raises:
    UserError: there are several networks, or a ResNet beside convolutions, of
      which it may be a part.
  """
  for kind, first in _FIRST.items():
    found = {
      name.removesuffix(end): None
      for end in first
      for name in file.arrays
      if name.endswith(f'.{end}')
    }
    if len(found) > 1:
      listed = ', '.join([*found][:_NUM_MENTIONED])
      raise UserError(
        f'it has {len(found)} networks, whose names begin with {listed}: save '
        'one of them alone, without its prefix',
        item=tuple(found),
      )
    for prefix in found:
      return _without(file, prefix, kind)
  return file


def _without(file, prefix, kind) -> Tensors:
  beside = [k for k in file.arrays if not k.startswith(prefix)]
  layers = [k for k in beside if len(file.arrays[k].shape) > 2]
  if kind == 'backbone' and layers:
    listed = ', '.join(layers[:_NUM_MENTIONED])
    raise UserError(
      'it is neither a ResNet nor a Mask R-CNN, but it has a ResNet under the '
      f'prefix {prefix} beside {len(layers)} other layers ({listed}, ...): to '
      'start from the ResNet, save its tensors alone, without the prefix',
      item=tuple(layers),
      given=prefix,
    )
  file = _skip(file, [k for k in beside if len(file.arrays[k].shape) < 2])
  return _renamed(file, lambda name: name.removeprefix(prefix), [prefix])


def _skip(file, names) -> Tensors:
  """A file in which these tensors are others."""
  skipped = {*names}
  arrays = {k: x for k, x in file.arrays.items() if k not in skipped}
  return dataclasses.replace(file, arrays=arrays, others=[*file.others, *names])


def _renamed(file, rename, taken) -> Tensors:
  arrays = {rename(k): x for k, x in file.arrays.items()}
  if len(arrays) < len(file.arrays):
    raise UserError(
      f'without {", ".join(taken)} some of its tensors have the same name',
      item=tuple(taken),
    )
  prefix = (*file.prefix, *taken)
  return dataclasses.replace(file, arrays=arrays, prefix=prefix)
