"""What of a foreign weight file went where; nothing is left out silently.

A variable is named by its path without the collection, such as
`backbone/stem/conv/kernel`: no two collections share a path.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maskrcnn_jax.errors import UserError

# As many tensors as an error and a line of an account name.
_NUM_LISTED = 10
_NUM_MENTIONED = 3
# Its length is the number of classes.
_CLASSES = 'box_head/class_logits/bias'
_BACKBONE = 'backbone/'
# The layers that have a row for every class.
PREDICTORS = (
  'box_head/class_logits',
  'box_head/box_deltas',
  'mask_head/mask_logits',
)


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
    misfits: our name -> why the file's tensor was not taken; the variable keeps
      its initial values.
    left_over: tensors of layers that the model does not have.
  """

  source: str
  kind: str
  loaded: Mapping[str, str]
  surplus: Sequence[str] = ()
  bookkeeping: Sequence[str] = ()
  implied: Sequence[str] = ()
  initial: Sequence[str] = ()
  misfits: Mapping[str, str] = dataclasses.field(default_factory=dict)
  left_over: Sequence[str] = ()

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
    if self.misfits:
      lines.append(
        f'{len(self.misfits)} variables do not fit and start from initial '
        'values:'
      )
      lines += [f'  {name}: {why}' for name, why in self.misfits.items()]
    if self.left_over:
      lines.append(
        f'left out: {len(self.left_over)} of layers that the model does not '
        f'have ({_mention(self.left_over)})'
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


@dataclasses.dataclass(frozen=True)
class Fit:
  """How much of a model weights must cover.

  Attributes:
    partial: the backbone only; elsewhere what is missing or has another shape
      keeps its initial values.
    renewed: layers that keep them even where they would fit, by their names.
    why_renewed: the reason, for the account.
  """

  partial: bool = False
  renewed: Sequence[str] = ()
  why_renewed: str = ''


WHOLE = Fit()


def fill(
  variables: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
  names: Mapping[str, str],
  source: str,
  excess: Sequence[str] = (),
  fit: Fit = WHOLE,
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
  """Variables with the arrays of a weight file in their places.

  Args:
    variables: nested dicts of arrays, or `jax.ShapeDtypeStruct`s, by
      collection.
    arrays: our name -> array of the file, in our layout, of any float type.
    names: our name -> name in the file, of all that the file must have.
    source: the file, for errors.
    excess: tensors of the file which belong to a layer that the model lacks.
    fit: which of them may be missing.

  Returns:
    variables: in the same structure, with float32 arrays of NumPy where `names`
      has a name and the array fits, and the given arrays elsewhere.
    misfits: our name -> what is wrong with its array; {} unless `fit` bears it.
    left_over: what of the excess `fit` bears.

  Raises:
    ValueError: an array is missing, has another shape or is not of a float
      type; or there is an excess.
  """
  wanted = flatten(variables)
  misfits, left_over = {}, []
  if fit.partial:
    misfits = _misfits(arrays, names, wanted, fit)
    scope = _shared_start(
      [x for name, x in names.items() if name.startswith(_BACKBONE)]
    )
    left_over = [x for x in excess if scope and not x.startswith(scope)]
  problems = [
    f'{name} <- {theirs}: {problem}'
    for name, theirs in names.items()
    if name not in misfits
    and (problem := _problem(arrays.get(name), wanted[name].shape))
  ]
  problems += [
    f'{name}: the model has no such layer'
    for name in excess
    if name not in left_over
  ]
  if problems:
    raise UserError(
      f'{source} does not fit the model, {len(problems)} tensors are wrong:\n'
      + '\n'.join(f'  {line}' for line in _listed(problems))
      + _hint(arrays.get(_CLASSES), wanted.get(_CLASSES), excess)
    )
  taken = {name: arrays[name] for name in names if name not in misfits}
  filled = {
    collection: _replace(tree, (), taken)
    for collection, tree in variables.items()
  }
  return filled, misfits, left_over


def _shared_start(names: Sequence[str]) -> str:
  """What all names begin with, such as `backbone.body.`; maybe nothing."""
  first, last = min(names, default=''), max(names, default='')
  same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last))
  return ''.join(letter for letter, _ in same)


def _misfits(arrays, names, wanted, fit) -> dict[str, str]:
  """Our names outside of the backbone, and why their arrays are not taken."""
  misfits = {}
  for name in names:
    if name.startswith(_BACKBONE):
      continue
    problem = _problem(arrays.get(name), wanted[name].shape)
    if not problem and name.rpartition('/')[0] in fit.renewed:
      problem = fit.why_renewed
    if problem:
      misfits[name] = problem
  return misfits


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
      f'is for {wanted.shape[0]}: set model.num_classes={classes.size}, or '
      'training.finetune=true to train the predictors anew.'
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
