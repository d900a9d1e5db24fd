"""Load report: which tensors of a weight file were loaded, skipped or missing.

A variable is named by its path without the collection, such as
`backbone/stem/conv/kernel`; no two collections share a path.
"""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.terminal import escaped
from maskrcnn_jax.weights import state_dicts
from maskrcnn_jax.weights.state_dicts import Format
from maskrcnn_jax.weights.tensor_files import Tensors

# Names listed in an error, and in a line of a report.
_NUM_LISTED = 10
_NUM_MENTIONED = 3
# Its length is the number of classes.
_CLASS_BIAS = 'box_head/class_logits/bias'
_BACKBONE = 'backbone/'
# The layers with outputs for each class.
PREDICTORS = (
  'box_head/class_logits',
  'box_head/box_deltas',
  'mask_head/mask_logits',
)
# Our own checkpoints.
OURS = Format(
  kind='model',
  config='',
  name=lambda name: name,
  layout=lambda name, array, channels: array,
)


@dataclasses.dataclass(frozen=True)
class LoadOptions:
  """How much of a model a weight file must cover.

  Attributes:
    strict: every variable must be loaded and every layer of the file used.
      Otherwise this holds for the backbone only; elsewhere, variables without a
      fitting tensor keep their initial values.
    reset_predictors: `PREDICTORS` keep their initial values even where the
      shapes fit; needs `strict=False`.
  """

  strict: bool = True
  reset_predictors: bool = False


STRICT = LoadOptions()


@dataclasses.dataclass(frozen=True)
class LoadReport:
  """What was loaded from a weight file, and what was not.

  Attributes:
    source: name of the file.
    kind: what the file holds: a `backbone` or a whole `model`.
    loaded: our name -> name in the file.
    missing: our names of variables that the file does not cover, such as the
      heads for a backbone; they keep their initial values.
    mismatched: our name -> why its tensor was not loaded; the variable keeps
      its initial values.
    unexpected: tensors of the file that the model has no variable for.
    training_state: skipped tensors of the run that wrote the file.
    folded: our names of norm statistics that are 0 and 1, since the file folds
      them into scales and biases.
    prefix: parts that were taken off the names in the file.
    assumed: fields of the config that the file does not tell.
  """

  source: str
  kind: str
  loaded: Mapping[str, str]
  missing: Sequence[str] = ()
  mismatched: Mapping[str, str] = dataclasses.field(default_factory=dict)
  unexpected: Sequence[str] = ()
  training_state: Sequence[str] = ()
  folded: Sequence[str] = ()
  prefix: Sequence[str] = ()
  assumed: Sequence[str] = ()

  def __str__(self):
    lines = [
      f'Load report of {self.source} ({self.kind}):',
      f'  loaded: {len(self.loaded)} tensors',
    ]
    if self.prefix:
      lines.append(f'  prefix: {", ".join(self.prefix)} taken off the names')
    if self.assumed:
      lines.append(
        f'  assumed: {", ".join(self.assumed)}; the file does not tell'
      )
    for label, names, meaning in (
      ('unexpected', self.unexpected, 'tensors are not in the model'),
      ('training state', self.training_state, 'tensors are skipped'),
      ('folded', self.folded, 'norm statistics are 0 or 1'),
    ):
      if names:
        more = ', ...' if len(names) > _NUM_MENTIONED else ''
        mentioned = ', '.join(names[:_NUM_MENTIONED]) + more
        lines.append(f'  {label}: {len(names)} {meaning} ({mentioned})')
    for label, names in (
      ('missing', self.missing),
      ('mismatched', self.mismatched),
    ):
      if names:
        parts = dict.fromkeys(name.partition('/')[0] for name in names)
        lines.append(
          f'  {label}: {len(names)} variables keep their initial values '
          f'({", ".join(parts)})'
        )
    lines += [f'    {name}: {why}' for name, why in self.mismatched.items()]
    return '\n'.join(map(escaped, lines))


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Arrays by name, of nested dicts of arrays by collection."""
  return {
    name: leaf for tree in variables.values() for name, leaf in _leaves(tree)
  }


def load(
  file: Tensors,
  form: Format,
  variables: Mapping[str, Any],
  options: LoadOptions = STRICT,
) -> tuple[dict[str, Any], LoadReport]:
  """Variables with the tensors of a file; see `external.load`.

  Raises:
    UserError: an array is missing, has another shape, is not of a float type or
      not finite; or the model lacks a layer of the file. `item` holds the
      names.
  """
  ours = flatten(variables)
  is_model = form.kind == 'model'
  covered = [
    x
    for x in ours
    if (is_model or x.startswith(_BACKBONE)) and not form.lacks(x)
  ]
  folded = [
    x
    for x in covered
    if x.endswith(('/mean', '/variance')) and not form.has_statistics
  ]
  names = {x: _name(form, x) for x in covered if x not in {*folded}}
  arrays = _arranged(file, form, names, ours) | {
    x: np.full(ours[x].shape, float(x.endswith('variance'))) for x in folded
  }
  problems = {
    name: problem
    for name in covered
    if (problem := _problem(name, arrays.get(name), ours, options))
  }
  is_kept = {
    x: not options.strict and not x.startswith(_BACKBONE) for x in problems
  }
  errors = {x: problems[x] for x in problems if not is_kept[x]}
  others = sorted(file.arrays.keys() - {*names.values()})
  # Layers have no scalars; counters, such as `n_averaged`, are some.
  unexpected = [
    x
    for x in others
    if not form.training_state.fullmatch(x) and file.arrays[x].shape != ()
  ]
  layers = [x for x in unexpected if form.is_layer(x)]
  if not options.strict:
    scope = _common_prefix(
      [x for name, x in names.items() if name.startswith(_BACKBONE)]
    )
    layers = [x for x in layers if x.startswith(scope)]
  if errors or layers:
    raise _misfit(file.path, names, arrays, ours, errors, layers)
  filled = {
    collection: _replace(
      tree, '', {x: arrays[x] for x in covered if x not in problems}
    )
    for collection, tree in variables.items()
  }
  return filled, LoadReport(
    source=pathlib.Path(file.path).name,
    kind=form.kind,
    loaded={k: v for k, v in names.items() if k not in problems},
    missing=[x for x in ours if x not in {*covered}],
    mismatched=problems,
    unexpected=unexpected,
    training_state=[
      *(x for x in others if x not in {*unexpected}),
      *file.others,
    ],
    folded=folded,
    prefix=file.prefix,
    assumed=form.assumed,
  )


def _name(form, path) -> str:
  """Name of a variable in a file; '' if its system has no such layer."""
  try:
    return form.name(path)
  except UserError:
    return ''


def _arranged(file, form, names, ours) -> dict[str, np.ndarray]:
  """Arrays of a file by our names, in our layout and order."""
  arrays, channels = {}, state_dicts.roi_channels(ours)
  for name, theirs in names.items():
    if theirs in file.arrays:
      array = np.asarray(file.arrays[theirs])
      if array.ndim and array.size:  # Others fit no variable.
        if form.arrange:
          array = form.arrange(name, array, ours[name].shape)
        array = form.layout(name, array, channels)
      arrays[name] = array
  return arrays


def _problem(name, array, ours, options) -> str | None:
  """What is wrong with the array of a variable, if anything."""
  shape = tuple(ours[name].shape)
  if array is None:
    return f'is missing, wanted {shape}'
  # NumPy knows bfloat16 by name only.
  if array.dtype.kind != 'f' and array.dtype.name != 'bfloat16':
    return f'is {array.dtype.name}, wanted float'
  if array.shape != shape:
    return f'is {array.shape}, wanted {shape}'
  if not np.isfinite(array).all():
    return 'has values that are NaN or infinite'
  if options.reset_predictors and name.rpartition('/')[0] in PREDICTORS:
    return 'is for other classes'
  return None


def _misfit(path, names, arrays, ours, problems, layers) -> UserError:
  """The error for weights that do not fit the model."""
  lines = [
    f'{name} <- {names[name]}: {problem}' for name, problem in problems.items()
  ]
  lines += [f'{name}: the model has no such layer' for name in layers]
  if len(lines) > _NUM_LISTED:
    more = f'... and {len(lines) - _NUM_LISTED} more'
    lines = [*lines[:_NUM_LISTED], more]
  hint, fields = '', {}
  classes, wanted = arrays.get(_CLASS_BIAS), ours.get(_CLASS_BIAS)
  is_group = any(
    re.sub('scale$', 'mean', x) not in ours
    for x in ours
    if x.startswith(_BACKBONE)
  )
  if classes is not None and classes.shape != wanted.shape:
    given, wanted = wanted.shape[0], classes.size
    hint = (
      f'\nThe weights have {wanted} classes with background, the model has '
      f'{given}: set model.num_classes={wanted}, or training.finetune=true to '
      'train new predictors.'
    )
    fields = {
      'argument': 'model.num_classes',
      'given': given,
      'wanted': wanted,
    }
  elif is_group and any(name.endswith('_mean') for name in layers):
    hint = (
      "\nThe weights have batch norm: set model.backbone.norm to 'frozen' or "
      "'batch'."
    )
    fields = {
      'argument': 'model.backbone.norm',
      'given': 'group',
      'wanted': ('frozen', 'batch'),
    }
  elif layers:
    hint = (
      '\nThe weights are of a larger network: see model.backbone.depth, '
      'model.rpn_convs, model.box_convs and model.mask_convs.'
    )
  return UserError(
    f'{path} does not fit the model; wrong tensors: '
    f'{len(problems) + len(layers)}\n'
    + '\n'.join(f'  {line}' for line in lines)
    + hint,
    path=path,
    item=(*problems, *layers),
    **fields,
  )


def _common_prefix(names: Sequence[str]) -> str:
  """The longest common prefix, such as `backbone.body.`; may be empty."""
  first, last = min(names, default=''), max(names, default='')
  same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last))
  return ''.join(letter for letter, _ in same)


def _leaves(tree, prefix='') -> Iterator[tuple[str, Any]]:
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, f'{prefix}{key}/')
    else:
      yield prefix + key, value


def _replace(tree, prefix, arrays):
  result = dict(tree)
  for key, value in tree.items():
    if isinstance(value, Mapping):
      result[key] = _replace(value, f'{prefix}{key}/', arrays)
    elif (array := arrays.get(prefix + key)) is not None:
      result[key] = np.array(array, np.float32, order='C')
  return result
