"""Compatibility of a saved run with the model, config and state of this one."""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import flax
import jax
import ml_collections

from maskrcnn_jax import override
from maskrcnn_jax.checkpoints import checksums
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.mask_rcnn import MaskRCNN

# Differences that an error lists, and those that a log does.
_NUM_LISTED, _NUM_LOGGED = 5, 50


class WorkdirError(UserError):
  """The workdir belongs to a run of another model, or is not shared."""


@contextlib.contextmanager
def fitting(path) -> Iterator[None]:
  """Turns Flax's errors about tensors of a checkpoint into `WorkdirError`."""
  try:
    yield
  except flax.errors.FlaxError as error:
    raise WorkdirError(
      f'The tensors of {path} are not those of its model: '
      f'{checksums.summary(error)}',
      path=path,
    ) from error


def as_json(config) -> dict[str, Any]:
  """A config in types of JSON."""
  return json.loads(json.dumps(ml_collections.ConfigDict(config).to_dict()))


def from_json(config: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """A config of JSON, with tuples for lists, so that options can be hashed."""
  return ml_collections.ConfigDict(_with_tuples(config))


def _with_tuples(value):
  if isinstance(value, dict):
    return {k: _with_tuples(v) for k, v in value.items()}
  if isinstance(value, list):
    return tuple(_with_tuples(v) for v in value)
  return value


def check_tensors(
  path, saved: dict[str, str], target, config_differences: list[str]
) -> None:
  """Raises `WorkdirError` if a saved state has other tensors than a target.

  Where they are the same, the settings that differ are logged.

  Args:
    config_differences: the likely reason, as from `differences`.
  """
  lines = differences(saved, checksums.shapes(target))
  if lines:
    raise WorkdirError(
      f'{path} does not fit this model and optimizer: {len(lines)} '
      f'tensors differ:\n{listed(lines)}\nThe configs differ in:\n'
      f'{listed(config_differences)}\nNothing was changed; use another '
      'workdir or the config of that run.',
      path=path,
      given=lines,
    )
  if config_differences and jax.process_index() == 0:
    logging.info(
      'Settings that are not those of %s:\n%s',
      *(path, listed(config_differences, _NUM_LOGGED)),
    )


def check_model(path, saved, given) -> None:
  """Raises `WorkdirError` if the sections `model` of two configs differ.

  A field that only one of them has, being newer than the other, is at its
  default in the other.
  """
  saved, given = saved.get('model'), as_json(given).get('model')
  defaults = as_json(override.as_dict(MaskRCNN()))
  saved = _completed(saved, given, defaults)
  given = _completed(given, saved, defaults)
  lines = differences({'model': saved}, {'model': given})
  if lines:
    raise WorkdirError(
      f'{path} holds a run of another model:\n{listed(lines)}\n'
      'Nothing was changed; use another workdir or the config of that run.',
      path=path,
      given=lines,
    )


def _completed(section, other, defaults):
  """A section with the fields that only the other one has, at their default."""
  if not (isinstance(section, Mapping) and isinstance(other, Mapping)):
    return section
  defaults = defaults if isinstance(defaults, Mapping) else {}
  added = {k: defaults[k] for k in other if k in defaults and k not in section}
  kept = {
    key: _completed(value, other.get(key), defaults.get(key))
    for key, value in section.items()
  }
  return {**kept, **added}


def differences(saved, given, prefix: str = '') -> list[str]:
  """One line for every leaf that differs between two nested dicts."""
  if not (isinstance(saved, Mapping) and isinstance(given, Mapping)):
    same = saved == given
    return [] if same else [f'{prefix[:-1]}: saved {saved}, given {given}']
  return [
    line
    for key in sorted({*saved, *given})
    for line in differences(
      *(side.get(key, 'nothing') for side in (saved, given)), f'{prefix}{key}.'
    )
  ]


def listed(lines: list[str], most: int = _NUM_LISTED) -> str:
  """The first few lines, indented."""
  shown = [f'  {line}' for line in lines[:most]] or ['  nothing']
  if len(lines) > most:
    shown.append(f'  and {len(lines) - most} more')
  return '\n'.join(shown)
