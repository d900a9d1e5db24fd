"""Checkpoints: everything a resume needs; the only file that knows Orbax.

`WORKDIR/checkpoints/STEP` holds four items: `state` (the train state),
`position` (examples consumed and salt of the input), `config`, and `classes`
(id -> name).
`WORKDIR/config.json` says whose workdir it is before the first checkpoint.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

# As many differences as an error names.
_NUM_NAMED = 5


class WorkdirError(ValueError):
  """The workdir belongs to a run of another model."""


@dataclasses.dataclass(frozen=True)
class Restored:
  """A run as it was saved.

  Attributes:
    step: finished steps.
    state: the train state, in the shardings of the target.
    position: `examples` and `salt` of the next batch.
    classes: name of every class id.
  """

  step: int
  state: Any
  position: dict[str, int]
  classes: dict[int, str]


class CheckpointWriter:
  """Saves in the background and keeps the newest; a context manager.

  Leaving the context waits for the last save. A save first copies the state to
  the host, so the step may donate it right after.
  """

  def __init__(self, workdir, keep: int = 3):
    """Opens `workdir` for saving.

    Args:
      workdir: directory of the run; made if missing.
      keep: how many checkpoints stay on disk.
    """
    if keep < 1:
      raise ValueError(f'keep must be at least 1, got {keep}.')
    policy = ocp.checkpoint_managers.LatestN(keep)
    self._manager = ocp.CheckpointManager(
      _checkpoints(workdir),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policy, cleanup_tmp_directories=True
      ),
      handler_registry=_handler_registry(),
    )

  def save(
    self,
    step: int,
    state,
    position: Mapping[str, int],
    config,
    classes: Mapping[int, str],
  ) -> None:
    """Starts to save; a step that is saved already stays as it is."""
    if step in self._manager.all_steps():
      return
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      position=ocp.args.JsonSave({k: int(v) for k, v in position.items()}),
      config=ocp.args.JsonSave(_as_json(config)),
      classes=ocp.args.JsonSave({str(k): v for k, v in classes.items()}),
    )
    self._manager.save(step, args=items)

  def wait(self) -> None:
    """Returns when everything is on disk."""
    self._manager.wait_until_finished()

  def __enter__(self):
    return self

  def __exit__(self, *unused_error):
    self._manager.close()


def check_workdir(workdir, config, step: int | None = None) -> None:
  """Checks that a workdir is empty or of the same model; changes nothing.

  Args:
    workdir: directory of a run, or where one will be.
    config: of this run; its section `model` is compared.
    step: the checkpoint to compare with; the newest if None.

  Raises:
    FileNotFoundError: there is no checkpoint of that step.
    WorkdirError: the workdir holds a run of another model, or the hosts do not
      share it.
  """
  _check_shared(workdir)
  given = _as_json(config)
  path = _config_path(workdir)
  if path.exists():
    _check_same_model(workdir, _read_json(path), given)
  if step is not None or latest_step(workdir) is not None:
    _check_same_model(workdir, read_config(workdir, step), given)


def check_same_model(path, config) -> None:
  """Raises `WorkdirError` if a checkpoint is of another model.

  Args:
    path: as in `restore`.
    config: whose section `model` is compared.
  """
  _check_same_model(path, read_config(path), _as_json(config))


def is_ours(path) -> bool:
  """Whether a path is a workdir with a checkpoint, or a checkpoint itself."""
  path = pathlib.Path(path)
  return (path / 'state').is_dir() or latest_step(path) is not None


def step_of(path) -> int:
  """The finished steps of the checkpoint that `restore(path)` takes."""
  return int(_find(path, None).name)


def foreign_checkpoints(workdir) -> list[str]:
  """Checkpoints that a TensorFlow run left in a folder, by prefix."""
  files = pathlib.Path(workdir).glob('*ckpt*.index')
  return sorted(str(path.with_suffix('')) for path in files)


def claim_workdir(
  workdir, config, notes: Mapping[str, str] | None = None
) -> None:
  """Writes the config into a workdir that passed `check_workdir`.

  A later run with other settings outside `model` leaves `config.json` as it is
  and adds `config-from-step-STEP.json`; so it is with the notes.

  Args:
    workdir: directory of the run; made if missing.
    config: of the run.
    notes: further texts to keep, by file name.
  """
  if jax.process_index() != 0:
    return
  config_text = json.dumps(_as_json(config), indent=2) + '\n'
  texts = {_config_path(workdir).name: config_text, **(notes or {})}
  for name, text in texts.items():
    path = pathlib.Path(workdir) / name
    if path.exists():
      if path.read_text() == text:
        continue
      path = path.with_stem(
        f'{path.stem}-from-step-{latest_step(workdir) or 0}'
      )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def latest_step(workdir) -> int | None:
  """The newest complete checkpoint of a workdir; None if it has none."""
  return max(_steps(_checkpoints(workdir)), default=None)


def restore_latest(workdir, target, config) -> Restored | None:
  """The newest checkpoint of a workdir; None if it has none.

  Args:
    workdir: directory of the run.
    target: a train state (or its `jax.ShapeDtypeStruct`s) with the wanted
      structure, shapes and shardings.
    config: the config of this run, to be compared with the saved one.

  Raises:
    WorkdirError: the checkpoint holds another model or optimizer.
  """
  step = latest_step(workdir)
  if step is None:
    return None
  path = _checkpoints(workdir) / str(step)
  saved, given = read_config(path), _as_json(config)
  _check_same_model(workdir, saved, given)
  _check_same_tensors(path, target, _differences(saved, given))
  state = ocp.Checkpointer(ocp.StandardCheckpointHandler()).restore(
    path / 'state', args=ocp.args.StandardRestore(_abstract(target))
  )
  position = _read_item(path, 'position')
  return Restored(step, state, position, read_classes(path))


def restore(path, step: int | None = None):
  """The model of a checkpoint, to look at or to detect with.

  Args:
    path: a workdir, or one checkpoint of it (`WORKDIR/checkpoints/STEP`).
    step: which checkpoint of the workdir; the newest if None.

  Returns:
    The variables that `MaskRCNN.apply` and `detect` take (`params` and
    `batch_stats`), on the default device, and the config as a ConfigDict.
  """
  path = _find(path, step)
  tree = _tensors(path)
  wanted = {k: tree[k] for k in ('params', 'batch_stats') if tree.get(k)}
  item = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), wanted)
  restore_args = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item
  )
  variables = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(
    path / 'state',
    args=ocp.args.PyTreeRestore(
      item=item, restore_args=restore_args, partial_restore=True
    ),
  )
  config = ml_collections.ConfigDict(_with_tuples(read_config(path)))
  return jax.tree.map(jnp.asarray, {'batch_stats': {}, **variables}), config


def read_config(path, step: int | None = None) -> dict[str, Any]:
  """The config of a checkpoint, in the types of JSON."""
  return _read_item(_find(path, step), 'config')


def read_classes(path, step: int | None = None) -> dict[int, str]:
  """The class names of a checkpoint by id; empty if none were known."""
  names = _read_item(_find(path, step), 'classes')
  return {int(k): v for k, v in names.items()}


def read_position(path, step: int | None = None) -> dict[str, int]:
  """Where the input of a checkpoint continues: `examples` and `salt`."""
  return _read_item(_find(path, step), 'position')


def _config_path(workdir) -> pathlib.Path:
  return pathlib.Path(workdir) / 'config.json'


def _checkpoints(workdir) -> pathlib.Path:
  return pathlib.Path(workdir).absolute() / 'checkpoints'


def _steps(directory: pathlib.Path) -> list[int]:
  return ocp.path.step.checkpoint_steps(directory)


def _find(path, step: int | None) -> pathlib.Path:
  """The checkpoint that is meant by a workdir or a checkpoint directory."""
  path = pathlib.Path(path).absolute()
  if step is None and (path / 'state').is_dir():
    return path
  steps = sorted(_steps(_checkpoints(path)))
  if not steps:
    raise FileNotFoundError(
      f'{path} holds no checkpoint; wanted a workdir with checkpoints/STEP, or '
      'one such directory.'
    )
  if step is not None and step not in steps:
    raise FileNotFoundError(
      f'{path} holds no checkpoint of step {step}; it has {steps}.'
    )
  return _checkpoints(path) / str(steps[-1] if step is None else step)


def _handler_registry():
  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  registry.add('state', ocp.args.StandardSave, ocp.StandardCheckpointHandler())
  for name in ('position', 'config', 'classes'):
    registry.add(name, ocp.args.JsonSave, ocp.JsonCheckpointHandler())
  return registry


def _read_item(path: pathlib.Path, name: str):
  return ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(path / name)


def _tensors(path: pathlib.Path):
  """Shapes and dtypes of a saved state as nested dicts and lists."""
  return ocp.StandardCheckpointHandler().metadata(path / 'state').tree


def _shapes(tree) -> dict[str, str]:
  """`params/fpn/...` -> `float32[3, 3, 256, 256]`."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {
    jax.tree_util.keystr(keys, simple=True, separator='/'): (
      f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'
    )
    for keys, leaf in leaves
  }


def _abstract(target):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=getattr(x, 'sharding', None)
    ),
    target,
  )


def _check_shared(workdir) -> None:
  """Raises if the hosts do not see the same newest checkpoint."""
  if jax.process_count() == 1:
    return
  steps = multihost_utils.process_allgather(
    np.array(latest_step(workdir) or 0)
  ).tolist()
  if len({*steps}) > 1:
    raise WorkdirError(
      f'{workdir} has {min(steps)} finished steps as one process sees it and '
      f'{max(steps)} as another does: the processes must share the folder.'
    )


def _check_same_tensors(path, target, config_differences: list[str]) -> None:
  differences = _differences(_shapes(_tensors(path)), _shapes(target))
  if differences:
    raise WorkdirError(
      f'{path} does not fit this model and optimizer: {len(differences)} '
      f'tensors differ:\n{_listed(differences)}\nThe configs differ in:\n'
      f'{_listed(config_differences)}\nNothing was changed; take another '
      'workdir or the config of that run.'
    )


def _check_same_model(workdir, saved, given) -> None:
  differences = _differences(
    {'model': saved.get('model')}, {'model': given.get('model')}
  )
  if differences:
    raise WorkdirError(
      f'{workdir} holds a run of another model:\n{_listed(differences)}\n'
      'Nothing was changed; take another workdir or the config of that run.'
    )


def _differences(saved, given, prefix: str = '') -> list[str]:
  """One line for every leaf of two nested dicts that is not the same."""
  if not (isinstance(saved, Mapping) and isinstance(given, Mapping)):
    same = saved == given
    return [] if same else [f'{prefix[:-1]}: saved {saved}, given {given}']
  lines = []
  for key in sorted({*saved, *given}):
    pair = (side.get(key, 'nothing') for side in (saved, given))
    lines += _differences(*pair, prefix=f'{prefix}{key}.')
  return lines


def _listed(lines: list[str]) -> str:
  shown = [f'  {line}' for line in lines[:_NUM_NAMED]] or ['  nothing']
  if len(lines) > _NUM_NAMED:
    shown.append(f'  and {len(lines) - _NUM_NAMED} more')
  return '\n'.join(shown)


def _as_json(config) -> dict[str, Any]:
  """A config in the types of JSON, as it will be read back."""
  return json.loads(json.dumps(ml_collections.ConfigDict(config).to_dict()))


def _with_tuples(value):
  """Lists of JSON as the tuples they were, so that options stay hashable."""
  if isinstance(value, dict):
    return {k: _with_tuples(v) for k, v in value.items()}
  if isinstance(value, list):
    return tuple(_with_tuples(v) for v in value)
  return value


def _read_json(path: pathlib.Path):
  try:
    return json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise WorkdirError(f'{path} is not a config: {error}') from error
