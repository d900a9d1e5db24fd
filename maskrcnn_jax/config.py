"""Finds, loads and changes configs.

A config is a Python file with `get_config(variant)` that returns a ConfigDict
of the sections `model, input, optimizer, training, evaluation, runtime`. It is
named by its path, or by its bare name if it is one of the shipped ones, with an
optional `:variant` behind it.
"""

import ast
import copy
import functools
import importlib.util
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from maskrcnn_jax.errors import UserError, did_you_mean

# How a value may be spelt besides Python's way.
_BOOLS = {'true': 'True', 'false': 'False'}
# What a field wants, in the words of an error.
_WANTED = {
  bool: 'true or false',
  int: 'a whole number',
  float: 'a number',
  str: 'a text',
  tuple: 'a tuple',
  list: 'a list',
}


# Fields of before 2026-12 -> what they are called now, as paths in a config.
RENAMED_FIELDS = {
  'model.anchors.octaves': 'model.anchors.scales_per_octave',
  'model.anchors.aspects': 'model.anchors.aspect_ratios',
  'model.rpn_targets.matching.forced': (
    'model.rpn_targets.matching.low_quality_matches'
  ),
  'model.sampling.matching.forced': (
    'model.sampling.matching.low_quality_matches'
  ),
  # Of a group of `mask_pool_group` images, see below.
  'model.sampling.mask_pool_size': 'model.sampling.num_mask_rois',
}
# Values that changed with them.
_RENAMED_VALUES = {'ties': 'all'}


def with_new_names(config: Mapping[str, Any]) -> dict[str, Any]:
  """A saved config whose fields have their names of now; logs what it renamed.

  Args:
    config: nested dicts, in the types of JSON; not changed.
  """
  config = copy.deepcopy(dict(config))
  sampling = (config.get('model') or {}).get('sampling') or {}
  group = sampling.pop('mask_pool_group', 1)
  if sampling.get('mask_pool_size'):
    sampling['mask_pool_size'] = max(1, sampling['mask_pool_size'] // group)
  for before, now in RENAMED_FIELDS.items():
    *parents, leaf = before.split('.')
    section = config
    for name in parents:
      section = section.get(name) or {}
    if leaf in section:
      value = section.pop(leaf)
      if isinstance(value, str):
        value = _RENAMED_VALUES.get(value, value)
      section[now.rpartition('.')[2]] = value
      _say_once(f'The saved config has {before}, which is {now} now.')
  return config


@functools.cache
def _say_once(message: str) -> None:
  logging.info(message)


def load_config(name: str, overrides: Sequence[str] = ()):
  """The locked config of that name, changed by overrides.

  The learning rate follows the batch, see `apply_linear_rule`.

  Args:
    name: `shapes`, `coco:habana_1x`, or the path of a config file, also with
      `:variant`.
    overrides: see `apply_overrides`.

  Returns:
    A locked `ml_collections.ConfigDict`.

  Raises:
    FileNotFoundError: there is no such config.
    ValueError: there is no such variant, field or value.
  """
  path, variant = find_config(name)
  spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise UserError(f'{path} must define get_config(variant).')
  variants = getattr(module, 'VARIANTS', {})
  if variant and variant not in variants:
    raise UserError(
      f'{path} has no variant {variant!r}{did_you_mean(variant, variants)} '
      f'It has: {", ".join(variants) or "none"}.'
    )
  config = module.get_config(variant) if variant else module.get_config()
  config.lock()
  apply_overrides(config, overrides)
  given = {override.partition('=')[0] for override in overrides}
  apply_linear_rule(config, 'optimizer.learning_rate' in given)
  return config


def apply_linear_rule(config, rate_is_given: bool = False) -> None:
  """Makes the learning rate fit the batch, and says so.

  It grows in proportion to the batch, as does the rate that the warm-up starts
  with (Goyal et al. 2017). The lengths of the schedule stay.

  Args:
    config: changed in place; `optimizer.tuned_batch_size` becomes the batch.
    rate_is_given: the rate was chosen for this batch and stays.
  """
  optimizer = config.get('optimizer', {})
  tuned = optimizer.get('tuned_batch_size')
  batch_size = config.get('input', {}).get('batch_size')
  if not tuned or not batch_size or tuned == batch_size:
    return
  ratio = linear_ratio(config, batch_size)
  optimizer.tuned_batch_size = batch_size
  if rate_is_given:
    return
  rate = optimizer.learning_rate
  for name in ('learning_rate', 'warmup_learning_rate'):
    if name in optimizer:
      optimizer[name] *= ratio
  logging.info(
    'The learning rate %g is for batches of %d; for %d it is %g (linear rule). '
    'As many epochs as before are %g times the steps: training.num_steps, '
    'optimizer.decay_steps and evaluation.every_steps are not changed.',
    rate,
    tuned,
    batch_size,
    optimizer.learning_rate,
    1 / ratio,
  )


def linear_ratio(config, batch_size: int) -> float:
  """How often the config's learning rate fits a batch; 1 without a rule."""
  tuned = config.get('optimizer', {}).get('tuned_batch_size')
  return batch_size / tuned if tuned else 1.0


def find_config(name: str) -> tuple[pathlib.Path, str]:
  """Where a config lies, and the variant that was asked for.

  Args:
    name: a path or the name of a shipped config, with an optional `:variant`.

  Returns:
    The file and the variant, '' if none was given.
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
    f'file nor one of the shipped ones: {", ".join(shipped)}.'
  )


def apply_overrides(config: ml_collections.ConfigDict, overrides) -> None:
  """Sets fields of a config from text such as `optimizer.num_steps=100`.

  A value is read with the type that the field has: `true` or `false`, a number,
  a tuple such as `128,128` or `((128,128),)`, text, or `None`. A field that is
  None takes any Python literal, or text.

  Args:
    config: changed in place; may be locked.
    overrides: texts `section.field=value`.
  """
  for override in overrides:
    field, equals, text = override.partition('=')
    if not equals:
      raise UserError(f'{override!r} must be section.field=value.')
    *parents, leaf = field.split('.')
    section = config
    for depth, name in enumerate(parents):
      _check_field(section, name, '.'.join(parents[:depth]))
      section = section[name]
    _check_field(section, leaf, '.'.join(parents))
    current = section[leaf]
    if isinstance(current, Mapping | ml_collections.ConfigDict):
      raise UserError(
        f'{field} is a section; set one of its fields: '
        f'{_fields(current, field)}.'
      )
    section[leaf] = _parse(text, current, section.get_type(leaf), field)


def _shipped_configs() -> dict[str, pathlib.Path]:
  """Shipped files by name: inside the wheel, or beside it in a checkout."""
  package = pathlib.Path(__file__).resolve().parent
  for folder in (package / 'configs', package.parent / 'configs'):
    paths = sorted(folder.glob('[!_]*.py'))
    if paths:
      return {path.stem: path for path in paths}
  return {}


def _check_field(section, name: str, where: str) -> None:
  """Raises if a section has no such field, saying what was meant."""
  if not isinstance(section, ml_collections.ConfigDict):
    raise UserError(f'{where} is a value, so it has no field {name!r}.')
  if name not in section:
    place = where or 'the config'
    raise UserError(
      f'There is no field {name!r} in {place}{did_you_mean(name, section)} '
      f'Fields: {_fields(section, where)}.'
    )


def _fields(section, where: str) -> str:
  prefix = f'{where}.' if where else ''
  return ', '.join(prefix + name for name in sorted(section))


def _parse(text: str, current: Any, kind: type, field: str):
  """The value that a text stands for in a field that holds `current`."""
  if text == 'None':
    return None
  if kind is str:
    return text
  try:
    value = ast.literal_eval(_BOOLS.get(text, text))
  except (ValueError, SyntaxError):
    value = text
  if kind is type(None):
    return value
  return _convert(value, kind, current, field)


def _convert(value: Any, kind: type, like: Any, field: str):
  """The value as that type, items as those of `like`, if that loses nothing."""
  if kind is float and type(value) is int:
    return float(value)
  if kind is int and type(value) is float and value.is_integer():
    return int(value)
  if kind in (tuple, list) and isinstance(value, tuple | list):
    item = like[0] if like else None
    if item is None:
      return kind(value)
    return kind(_convert(x, type(item), item, field) for x in value)
  if kind is not type(value):
    example = '' if like is None else f' like {like!r}'
    raise UserError(
      f'{field} must be {_WANTED.get(kind, kind.__name__)}{example}, '
      f'got {value!r}.'
    )
  return value
