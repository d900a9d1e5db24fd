"""What of a foreign weight file went where; nothing is left out silently.

A variable is named by its path without the collection, such as
`backbone/stem/conv/kernel`: no two collections share a path.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

# As many tensors as an error and a line of an account name.
_NUM_LISTED = 10
_NUM_MENTIONED = 3
# Its length is the number of classes.
_CLASSES = 'box_head/class_logits/bias'


@dataclasses.dataclass(frozen=True)
class Account:
  """What of a weight file went where.

  Attributes:
    source: name of the file.
    kind: what the file is of: `backbone` or `model`.
    loaded: our name -> name in the file.
    surplus: tensors that belong to no part of the model, such as the classifier
      behind a backbone.
    bookkeeping: tensors of the training that wrote the file, such as momentum.
    implied: our names of means and variances that the file has in scales and
      biases; they are 0 and 1.
    initial: our names of variables that the file is not about.
  """

  source: str
  kind: str
  loaded: Mapping[str, str]
  surplus: Sequence[str] = ()
  bookkeeping: Sequence[str] = ()
  implied: Sequence[str] = ()
  initial: Sequence[str] = ()

  def __str__(self):
    lines = [f'{len(self.loaded)} tensors of {self.source} -> {self.kind}']
    for names, what in (
      (self.surplus, 'of no part of the model'),
      (self.bookkeeping, 'of its training'),
    ):
      if names:
        lines.append(f'left out: {len(names)} {what} ({_mention(names)})')
    if self.implied:
      lines.append(
        f'{len(self.implied)} means and variances are part of scales and '
        f'biases there, so they are 0 and 1 ({_mention(self.implied)})'
      )
    if self.initial:
      parts = dict.fromkeys(name.partition('/')[0] for name in self.initial)
      lines.append(
        f'{len(self.initial)} variables outside of the {self.kind} keep their '
        f'initial values ({", ".join(parts)})'
      )
    return '\n'.join(lines)


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Arrays by name.

  Args:
    variables: nested dicts of arrays by collection.
  """
  return {
    '/'.join(path): leaf
    for tree in variables.values()
    for path, leaf in _leaves(tree)
  }


def fill(
  variables: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
  names: Mapping[str, str],
  source: str,
  excess: Sequence[str] = (),
) -> dict[str, Any]:
  """Variables with the arrays of a weight file in their places.

  Args:
    variables: nested dicts of arrays, or `jax.ShapeDtypeStruct`s, by
      collection.
    arrays: our name -> array of the file, in our layout, of any float type.
    names: our name -> name in the file, of all that the file must have.
    source: the file, for errors.
    excess: tensors of the file which belong to a layer that the model lacks.

  Returns:
    The structure of `variables`, with float32 arrays of NumPy where `names` has
    a name, and the given arrays elsewhere.

  Raises:
    ValueError: an array is missing, has another shape or is not of a float
      type; or there is an excess.
  """
  wanted = flatten(variables)
  problems = [
    f'{name} <- {theirs}: {problem}'
    for name, theirs in names.items()
    if (problem := _problem(arrays.get(name), wanted[name].shape))
  ]
  problems += [f'{name}: the model has no such layer' for name in excess]
  if problems:
    raise ValueError(
      f'{source} does not fit the model, {len(problems)} tensors are wrong:\n'
      + '\n'.join(f'  {line}' for line in _listed(problems))
      + _hint(arrays.get(_CLASSES), wanted.get(_CLASSES), excess)
    )
  return {
    collection: _replace(tree, (), {name: arrays[name] for name in names})
    for collection, tree in variables.items()
  }


def _problem(array, shape):
  """What is wrong with an array, if anything."""
  if array is None:
    return f'is missing, wanted {tuple(shape)}'
  # NumPy knows bfloat16 by name only.
  if array.dtype.kind != 'f' and array.dtype.name != 'bfloat16':
    return f'is {array.dtype.name}, wanted float'
  if array.shape != tuple(shape):
    return f'is {array.shape}, wanted {tuple(shape)}'
  return None


def _hint(classes, wanted, excess):
  """The field of the config that is most likely wrong, or nothing."""
  if classes is not None and classes.shape != wanted.shape:
    return (
      f'\nIt was trained for {classes.size} classes with background, the model '
      f'is for {wanted.shape[0]}: set model.num_classes.'
    )
  if excess:
    return (
      '\nIt is of a larger network: see model.backbone.depth, '
      'model.rpn_convs, model.box_convs and model.mask_convs.'
    )
  return ''


def _leaves(tree, path=()) -> Iterator[tuple[tuple[str, ...], Any]]:
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, (*path, key))
    else:
      yield (*path, key), value


def _replace(tree, path, arrays):
  result = {}
  for key, value in tree.items():
    inner = (*path, key)
    if isinstance(value, Mapping):
      result[key] = _replace(value, inner, arrays)
    elif '/'.join(inner) in arrays:
      result[key] = np.array(arrays['/'.join(inner)], np.float32, order='C')
    else:
      result[key] = value
  return result


def _listed(lines):
  if len(lines) > _NUM_LISTED:
    more = f'... and {len(lines) - _NUM_LISTED} more'
    return [*lines[:_NUM_LISTED], more]
  return lines


def _mention(names):
  more = ', ...' if len(names) > _NUM_MENTIONED else ''
  return ', '.join(names[:_NUM_MENTIONED]) + more
