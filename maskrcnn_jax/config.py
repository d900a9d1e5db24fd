"""Configs: found by name, loaded from Python files, changed by overrides.

A config file defines `get_config(variant)`, which returns a ConfigDict with the
sections `model, input, optimizer, training, evaluation, runtime`. Its name is a
path, or `shapes` and `coco` for the shipped ones, with an optional `:variant`.
A config may start from a shipped one, as `configs/shapes.py` does.
"""

import ast
import contextlib
import importlib.util
import logging
import pathlib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from maskrcnn_jax.errors import UserError, did_you_mean
from maskrcnn_jax.override import unknown_field

# Names of the types in error messages.
_WANTED = {
  bool: 'true or false',
  int: 'a whole number',
  float: 'a number',
  str: 'a text',
  tuple: 'a tuple',
  list: 'a list',
}

# Former -> present path of a field, for saved configs and for hints. The value
# 'ties' is now 'all'.
RENAMED_FIELDS = {
  'model.anchors.octaves': 'model.anchors.scales_per_octave',
  'model.anchors.aspects': 'model.anchors.aspect_ratios',
  'model.rpn_targets.matching.forced': (
    'model.rpn_targets.matching.low_quality_matches'
  ),
  'model.sampling.matching.forced': (
    'model.sampling.matching.low_quality_matches'
  ),
  # A number for `mask_pool_group` images, see `with_new_names`.
  'model.sampling.mask_pool_size': 'model.sampling.num_mask_rois',
  'model.sampling.mask_pool_group': 'model.sampling.num_mask_rois',
}

# Field in epochs -> field in steps that it replaces.
EPOCH_FIELDS = {
  'training.num_epochs': 'training.num_steps',
  'evaluation.every_epochs': 'evaluation.every_steps',
}


def load_config(name: str, overrides: Sequence[str] = ()):
  """The locked config of that name, with overrides.

  The learning rate follows the batch size, see `apply_linear_rule`. An override
  in steps outranks a file's number of epochs, and the other way round.

  Args:
    name: see `find_config`.
    overrides: see `apply_overrides`.

  Returns:
    A locked `ml_collections.ConfigDict`.

  Raises:
    FileNotFoundError: there is no such config.
    UserError: the file fails, there is no such variant, field or value, or
      overrides give a length both in epochs and in steps.
  """
  path, variant = find_config(name)
  with _errors_of_file(path):
    config = _get_config(path, variant)
  config.lock()
  apply_overrides(config, overrides)
  given = {override.partition('=')[0] for override in overrides}
  _choose_lengths(config, given)
  apply_linear_rule(config, 'optimizer.learning_rate' in given)
  return config


def _choose_lengths(config, given) -> None:
  """Lets the overrides among the fields in steps replace those in epochs."""
  for epochs, steps in EPOCH_FIELDS.items():
    section, _, name = epochs.partition('.')
    number = config.get(section, {}).get(name)
    if steps not in given or number is None:
      continue
    if epochs in given:
      raise UserError(
        f'{epochs}={number:g} and {steps} both give a length: leave out one of '
        'them.',
        argument=epochs,
        given=number,
        wanted=f'None with {steps}',
      )
    config[section][name] = None


def _get_config(path: pathlib.Path, variant: str) -> ml_collections.ConfigDict:
  spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  variants = getattr(module, 'VARIANTS', {})
  if variant and variant not in variants:
    raise UserError(
      f'{path} has no variant {variant!r}{did_you_mean(variant, variants)} '
      f'It has: {", ".join(variants) or "none"}.',
      path=path,
      given=variant,
      wanted=tuple(variants),
    )
  config = module.get_config(variant) if variant else module.get_config()
  if not isinstance(config, ml_collections.ConfigDict):
    given = type(config).__name__
    raise TypeError(f'get_config must return a ConfigDict, got {given}.')
  return config


@contextlib.contextmanager
def _errors_of_file(path: pathlib.Path) -> Iterator[None]:
  """Turns errors of a config file into a `UserError` with its line."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    lines = [
      frame.lineno
      for frame in traceback.extract_tb(error.__traceback__)
      if frame.filename == str(path)
    ]
    if isinstance(error, SyntaxError):
      lines.append(error.lineno)
    where = f'{path}, line {lines[-1]}' if lines else path
    raise UserError(
      f'{where}: {type(error).__name__}: {error}', path=path
    ) from error


def apply_linear_rule(config, rate_is_given: bool = False) -> None:
  """Scales both learning rates with the batch size, and logs it.

  The linear rule of Goyal et al. 2017; the number of steps does not change.

  Args:
    config: changed in place; `optimizer.tuned_batch_size` becomes the batch.
    rate_is_given: the rate was chosen for this batch and stays.
  """
  optimizer = config.get('optimizer', {})
  tuned = optimizer.get('tuned_batch_size')
  batch_size = config.get('input', {}).get('batch_size')
  if not tuned or not batch_size or tuned == batch_size:
    return
  optimizer.tuned_batch_size = batch_size
  if rate_is_given:
    return
  ratio, rate = batch_size / tuned, optimizer.learning_rate
  for name in ('learning_rate', 'warmup_learning_rate'):
    if name in optimizer:
      optimizer[name] *= ratio
  logging.info(
    f'The learning rate {rate:g} is for batches of {tuned}; for {batch_size} '
    f'it is {optimizer.learning_rate:g} (linear rule). The same number of '
    f'epochs is {1 / ratio:g} times the steps: training.num_steps, '
    'optimizer.decay_steps and evaluation.every_steps are not changed; '
    'training.num_epochs and evaluation.every_epochs would follow.'
  )


def linear_ratio(config, batch_size: int) -> float:
  """Factor of the config's learning rate for a batch; 1 without the rule."""
  tuned = config.get('optimizer', {}).get('tuned_batch_size')
  return batch_size / tuned if tuned else 1.0


def find_config(name: str) -> tuple[pathlib.Path, str]:
  """Path of a config file, and the variant, '' if none is named.

  Args:
    name: a path or the name of a shipped config, with an optional `:variant`,
      such as `shapes` or `coco:habana_1x`.

  Raises:
    FileNotFoundError: there is no such config.
  """
  shipped = _shipped_configs()
  for stem, variant in ((name, ''), name.rpartition(':')[::2]):
    if pathlib.Path(stem).is_file():
      return pathlib.Path(stem), variant
    if stem in shipped:
      return shipped[stem], variant
  stem = name.partition(':')[0]
  raise FileNotFoundError(
    f'There is no config {stem!r}{did_you_mean(stem, shipped)} It is neither a '
    f'file nor a shipped config: {", ".join(shipped)}.'
  )


def apply_overrides(config: ml_collections.ConfigDict, overrides) -> None:
  """Sets fields of a config from texts `section.field=value`.

  A value is read with the type of the field: `true` or `false`, a number, a
  tuple such as `128,128` or `((128,128),)`, a text, or `None`. A field of no
  known type takes any Python literal, or a text.

  Args:
    config: changed in place; may be locked.
    overrides: such as `training.num_steps=100`.

  Raises:
    UserError: there is no such field, or the value is of another type.
  """
  for override in overrides:
    field, equals, text = override.partition('=')
    if not equals:
      raise UserError(
        f'{override!r} must be section.field=value.', argument=field
      )
    current = config
    for depth, name in enumerate(field.split('.')):
      section = current
      _check_field(section, name, field, depth)
      current = section[name]
    if isinstance(current, Mapping | ml_collections.ConfigDict):
      names = tuple(f'{field}.{name}' for name in sorted(current))
      raise UserError(
        f'{field} is a section; set one of its fields: {", ".join(names)}.',
        argument=field,
        wanted=names,
      )
    section[name] = _parse(text, current, section.get_type(name), field)


def _shipped_configs() -> dict[str, pathlib.Path]:
  """Shipped files by name: inside the wheel, or beside it in a checkout."""
  package = pathlib.Path(__file__).resolve().parent
  for folder in (package / 'configs', package.parent / 'configs'):
    paths = sorted(folder.glob('[!_]*.py'))
    if paths:
      return {path.stem: path for path in paths}
  return {}


def _check_field(section, name: str, field: str, depth: int) -> None:
  """Raises if part `depth` of a field's path is not in its section."""
  where = '.'.join(field.split('.')[:depth])
  if not isinstance(section, ml_collections.ConfigDict):
    raise UserError(
      f'{where} is a value, so it has no field {name!r}.', argument=field
    )
  if name in section:
    return
  if field in RENAMED_FIELDS:
    wanted = RENAMED_FIELDS[field]
    message = f'{field} is now {wanted}.'
    raise UserError(message, argument=field, wanted=wanted)
  raise unknown_field(where, name, section)


def _parse(text: str, current: Any, kind: type, field: str):
  """The value of a text for a field that holds `current`."""
  if text == 'None':
    return None
  if kind is str:
    return text
  try:
    value = ast.literal_eval({'true': 'True', 'false': 'False'}.get(text, text))
  except (ValueError, SyntaxError):
    value = text
  return _convert(value, kind, current, field)


def _convert(value: Any, kind: type, like: Any, field: str, of: str = ''):
  """The value in that type, with items like those of `like`."""
  if kind in (type(value), type(None)) and kind not in (tuple, list):
    return value
  if kind is float and type(value) is int:
    return float(value)
  if kind is int and type(value) is float and value.is_integer():
    return int(value)
  if kind in (tuple, list) and isinstance(value, tuple | list):
    item = like[0] if like else None
    return kind(
      x
      if _is_share(x)
      else _convert(x, type(item), item, field, f'every item of {of}')
      for x in value
    )
  example = '' if like is None else f' like {like!r}'
  raise UserError(
    f'{of}{field} must be {_WANTED.get(kind, kind.__name__)}{example}, '
    f'got {value!r}.',
    argument=field,
    given=value,
    wanted=kind,
  )


def _is_share(value: Any) -> bool:
  """Whether a step is given as a share of the training."""
  return type(value) is float and 0.0 < value < 1.0
