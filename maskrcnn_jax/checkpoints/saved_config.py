"""Saved configs: read, checked, with the field names of now.

They come with a workdir that anybody may have made, so nothing in them may
choose what is opened or loaded here, or how much memory that takes.
"""

import copy
import functools
import logging
import math
from collections.abc import Mapping
from typing import Any

from maskrcnn_jax import override
from maskrcnn_jax.config import RENAMED_FIELDS
from maskrcnn_jax.errors import UserError, brief
from maskrcnn_jax.models.mask_rcnn import MaskRCNN

_MAX_DEPTH = 12
_MAX_VALUES = 10_000
_MAX_NUMBER = 10**9
_MAX_LENGTH = 4096
_MAX_PIXELS = 2**26
# Layers, of which a config might ask for a billion.
_MAX_LAYERS = 64
_LAYERS = ('rpn_convs', 'box_convs', 'box_dense', 'mask_convs', 'max_level')
# Paths and URLs of the machine that trained -> no value.
_LOCAL_FIELDS = {
  'input.file_pattern': '',
  'evaluation.file_pattern': '',
  'evaluation.annotations_file': '',
  'training.pretrained': None,
  'training.log_file': None,
}

_log_once = functools.cache(logging.info)


def with_new_names(config: Any, path) -> dict[str, Any]:
  """A saved config with the present field names; logs each renamed field once.

  Args:
    config: in the types of JSON; not changed.
    path: of its file, for errors.

  Raises:
    UserError: it is no config, or its values are absurd.
  """
  if not isinstance(config, dict) or not all(
    isinstance(section, dict) for section in config.values()
  ):
    raise UserError(f'{path} is not a config: it has no sections.', path=path)
  count = _check(config, 'config', path, _MAX_DEPTH)
  if count > _MAX_VALUES:
    raise UserError(f'{path} is not a config: {count:,} values.', path=path)
  config = copy.deepcopy(config)
  _check_like(
    config.get('model', {}), override.as_dict(MaskRCNN()), 'model', path
  )
  sampling = config.get('model', {}).get('sampling', {})
  group, size = (
    sampling.pop('mask_pool_group', 1),
    sampling.get('mask_pool_size'),
  )
  if size:
    if not (type(group) is type(size) is int and group > 0):
      raise _error([group, size], 'model.sampling.mask_pool_size', path)
    sampling['mask_pool_size'] = max(1, size // group)
  for former, present in RENAMED_FIELDS.items():
    *parents, leaf = former.split('.')
    section = config
    for name in parents:
      section = section.get(name) or {}
    if leaf in section:
      value = section.pop(leaf)
      section[present.rpartition('.')[2]] = 'all' if value == 'ties' else value
      _log_once(f'The saved config has {former}, which is now {present}.')
  return config


def received(config: Mapping[str, Any], path) -> dict[str, Any]:
  """A config of `with_new_names` without what belongs to another machine.

  That is the section `runtime`, which may name a plugin or a cache of compiled
  programs, and the paths of data and weights.
  """
  config = {k: dict(v) for k, v in config.items() if k != 'runtime'}
  for name, nothing in _LOCAL_FIELDS.items():
    section, _, field = name.partition('.')
    if field in config.get(section, {}):
      config[section][field] = nothing
  for section in ('input', 'evaluation'):
    for canvas in config.get(section, {}).get('canvases') or ():
      if not _is_canvas(canvas):
        raise _error(canvas, f'{section}.canvases', path)
  return config


def _is_canvas(value: Any) -> bool:
  is_pair = isinstance(value, list) and len(value) == 2
  is_pair = is_pair and all(type(x) is int and x > 0 for x in value)
  return is_pair and math.prod(value) <= _MAX_PIXELS


def _error(value: Any, name: str, path) -> UserError:
  text = f'{path} is not a config: {name} is {brief(value)}.'
  return UserError(text, path=path, argument=name, given=value)


def _check(value: Any, name: str, path, depth: int) -> int:
  """Raises for a value that no config has; the number of values in it."""
  if isinstance(value, dict | list) and depth:
    inner = value.values() if isinstance(value, dict) else value
    return 1 + sum(_check(x, name, path, depth - 1) for x in inner)
  is_text = isinstance(value, str) and len(value) <= _MAX_LENGTH
  is_number = isinstance(value, int | float) and abs(value) <= _MAX_NUMBER
  if value is None or is_text or is_number:
    return 1
  raise _error(value, name, path)


def _check_like(value: Any, like: Any, name: str, path) -> None:
  """Raises if a value is of another kind than a default, where that tells."""
  if isinstance(like, dict):
    if not isinstance(value, dict):
      raise _error(value, name, path)
    for key in value.keys() & like.keys():
      _check_like(value[key], like[key], f'{name}.{key}', path)
    return
  kinds = {bool: bool, int: int, float: int | float, str: str, tuple: list}
  kind = kinds.get(type(like))
  fits = kind is None or value is None or isinstance(value, kind)
  fits = fits and (type(like) is bool or not isinstance(value, bool))
  if name.rpartition('.')[2] in _LAYERS:
    fits = fits and (value or 0) <= _MAX_LAYERS
  if not fits:
    raise _error(value, name, path)
