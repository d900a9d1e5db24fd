"""Whether a checkpoint is of this model; if not, in what they differ."""

import dataclasses
from collections.abc import Mapping

from maskrcnn_jax.checkpoints import checksums as checkpoint_health
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.models.mask_rcnn import MaskRCNN

# As many differences as an error names.
_NUM_NAMED = 5


class WorkdirError(UserError):
  """The workdir belongs to a run of another model."""


def check_tensors(
  path, saved: dict[str, str], target, config_differences: list[str]
) -> None:
  """Raises `WorkdirError` if a saved state has other tensors than a target.

  Args:
    path: of the checkpoint, for the message.
    saved: what is in it, as `checkpoint_health.shapes` says it.
    target: a train state.
    config_differences: a hint at why, as from `differences`.
  """
  lines = differences(saved, checkpoint_health.shapes(target))
  if lines:
    raise WorkdirError(
      f'{path} does not fit this model and optimizer: {len(lines)} '
      f'tensors differ:\n{listed(lines)}\nThe configs differ in:\n'
      f'{listed(config_differences)}\nNothing was changed; take another '
      'workdir or the config of that run.'
    )


def check_model(path, saved, given) -> None:
  """Raises `WorkdirError` if two configs have another section `model`.

  A field that only one of them has, since it was not there yet when the other
  was written, is at its default in the other.

  Args:
    path: of the workdir or checkpoint, for the message.
    saved: its config.
    given: that of this run.
  """
  saved, given = saved.get('model'), given.get('model')
  defaults = _as_dict(MaskRCNN())
  saved = _completed(saved, given, defaults)
  given = _completed(given, saved, defaults)
  lines = differences({'model': saved}, {'model': given})
  if lines:
    raise WorkdirError(
      f'{path} holds a run of another model:\n{listed(lines)}\n'
      'Nothing was changed; take another workdir or the config of that run.'
    )


def _completed(section, other, defaults):
  """A section with the fields that only the other one has, by default."""
  if not (isinstance(section, Mapping) and isinstance(other, Mapping)):
    return section
  defaults = defaults if isinstance(defaults, Mapping) else {}
  added = {k: defaults[k] for k in other if k in defaults and k not in section}
  kept = {
    key: _completed(value, other.get(key), defaults.get(key))
    for key, value in section.items()
  }
  return {**kept, **added}


def _as_dict(value):
  """Options in the types of JSON."""
  if dataclasses.is_dataclass(value):
    names = [field.name for field in dataclasses.fields(value)]
    return {
      name: _as_dict(getattr(value, name))
      for name in names
      if name not in ('parent', 'name', 'layout')  # Linen's, and places.
    }
  if isinstance(value, tuple):
    return [_as_dict(x) for x in value]
  return value


def differences(saved, given, prefix: str = '') -> list[str]:
  """One line for every leaf of two nested dicts that is not the same."""
  if not (isinstance(saved, Mapping) and isinstance(given, Mapping)):
    same = saved == given
    return [] if same else [f'{prefix[:-1]}: saved {saved}, given {given}']
  lines = []
  for key in sorted({*saved, *given}):
    pair = (side.get(key, 'nothing') for side in (saved, given))
    lines += differences(*pair, prefix=f'{prefix}{key}.')
  return lines


def listed(lines: list[str]) -> str:
  """The first few lines of many, indented."""
  shown = [f'  {line}' for line in lines[:_NUM_NAMED]] or ['  nothing']
  if len(lines) > _NUM_NAMED:
    shown.append(f'  and {len(lines) - _NUM_NAMED} more')
  return '\n'.join(shown)
