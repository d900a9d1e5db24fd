"""Option dataclasses from sections of a config."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from maskrcnn_jax.errors import UserError, did_you_mean


def changes(
  options: Any, section: Mapping[str, Any], path: str
) -> dict[str, Any]:
  """Fields of a dataclass that a section changes, as keyword arguments.

  Args:
    options: dataclass with the defaults; fields may be dataclasses too.
    section: new values; a nested section for a field that is a dataclass, whose
      other fields keep their values.
    path: path of the section, for errors.

  Returns:
    New values by field name, lists as tuples, since options must be hashable.

  Raises:
    UserError: the section names an unknown field.
  """
  names = [
    field.name
    for field in dataclasses.fields(options)
    if field.name not in ('parent', 'name')  # Fields of every Linen module.
  ]
  result = {}
  for name, value in section.items():
    if name not in names:
      raise unknown_field(path, name, names)
    current = getattr(options, name)
    if dataclasses.is_dataclass(current):
      inner = changes(current, value, f'{path}.{name}')
      result[name] = dataclasses.replace(current, **inner)
    else:
      result[name] = _frozen(value)
  return result


def as_dict(options: Any) -> dict[str, Any]:
  """Nested dicts of a dataclass, without the fields that no config has."""
  return {
    field.name: as_dict(value) if dataclasses.is_dataclass(value) else value
    for field in dataclasses.fields(options)
    # Linen's; functions.
    if field.name not in ('parent', 'name', 'layout', 'operations')
    for value in [getattr(options, field.name)]
  }


def make(kind: type, section: Mapping[str, Any], path: str) -> Any:
  """Dataclass made of a section; fields without a default are required.

  Args:
    kind: type of the dataclass.
    section: values by field name.
    path: path of the section, for errors.

  Raises:
    UserError: the section names an unknown field, or lacks a required one.
  """
  fields = dataclasses.fields(kind)
  names = [field.name for field in fields]
  for name in section:
    if name not in names:
      raise unknown_field(path, name, names)
  for field in fields:
    if field.name not in section and field.default is dataclasses.MISSING:
      raise UserError(
        f'{path} lacks the field {field.name!r}.',
        argument=f'{path}.{field.name}',
      )
  return kind(**section)


def unknown_field(path: str, name: str, known: Iterable[str]) -> UserError:
  """Error of a field that a section does not have.

  Args:
    path: path of the section, '' for the whole config.
    name: of the field.
    known: names of the section's fields.
  """
  known = sorted(known)
  return UserError(
    f'{path or "The config"} has no field {name!r}{did_you_mean(name, known)} '
    f'Its fields are {", ".join(known)}.',
    argument=f'{path}.{name}'.lstrip('.'),
    given=name,
    wanted=known,
  )


def _frozen(value):
  """Lists as tuples, which can be hashed."""
  if isinstance(value, (list, tuple)):
    return tuple(map(_frozen, value))
  return value
