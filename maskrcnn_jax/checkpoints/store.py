"""Checkpoints: everything a resume needs, and nothing that is not so.

`WORKDIR/checkpoints/STEP` holds five items: `state` (the train state),
`position` (examples consumed and salt of the input), `config`, `classes`
(id -> name) and `health` (checksums of all of it, compared whenever something
is read). `WORKDIR/config.json` says whose workdir it is before the first
checkpoint. Only the files `checkpoint*.py` know Orbax; callers need this
one alone.
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from maskrcnn_jax.checkpoints import checksums as health_lib
from maskrcnn_jax.checkpoints import compatibility as match
from maskrcnn_jax.checkpoints import layout as layout
from maskrcnn_jax.checkpoints.checksums import DamagedError
from maskrcnn_jax.checkpoints.compatibility import WorkdirError
from maskrcnn_jax.checkpoints.retention import best_step as best_step
from maskrcnn_jax.checkpoints.writer import CheckpointWriter as CheckpointWriter
from maskrcnn_jax.checkpoints.writer import SaveError as SaveError
from maskrcnn_jax.checkpoints.writer import check_can_save as check_can_save
from maskrcnn_jax.config import with_new_names


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


def check_workdir(workdir, config, step: int | str | None = None) -> None:
  """Checks that a workdir is empty or of the same model; changes nothing.

  Args:
    workdir: directory of a run, or where one will be.
    config: of this run; its section `model` is compared.
    step: the checkpoint to compare with, see `restore`; the newest if None.

  Raises:
    FileNotFoundError: there is no checkpoint of that step.
    DamagedError: that step is damaged.
    WorkdirError: the workdir holds a run of another model, or the hosts do not
      share it.
  """
  _check_shared(workdir)
  given = layout.as_json(config)
  path = _config_path(workdir)
  if path.exists():
    match.check_model(workdir, claimed_config(workdir), given)
  if step is not None:
    match.check_model(workdir, read_config(workdir, step), given)
    return
  for newest in reversed(layout.steps(workdir)):
    # Of a damaged one, whoever restores it says more.
    with contextlib.suppress(DamagedError):
      match.check_model(workdir, read_config(workdir, newest), given)
      return


def check_same_model(path, config) -> None:
  """Raises `WorkdirError` if a checkpoint is of another model.

  Args:
    path: as in `restore`.
    config: whose section `model` is compared.
  """
  match.check_model(path, read_config(path), layout.as_json(config))


def is_ours(path) -> bool:
  """Whether a path is a workdir with a checkpoint, or a checkpoint itself."""
  path = pathlib.Path(path)
  if layout.is_best(path):
    path = path.parents[1]
  return (path / 'state').is_dir() or latest_step(path) is not None


def step_of(path, step: int | str | None = None) -> int:
  """The finished steps of the checkpoint that `restore(path, step)` takes."""
  return int(layout.find(path, step).name)


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
  config_text = json.dumps(layout.as_json(config), indent=2) + '\n'
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


def claimed_config(workdir) -> dict[str, Any] | None:
  """The config of the run that a workdir is of, in the types of JSON.

  Raises:
    WorkdirError: the file is no config.
  """
  path = _config_path(workdir)
  return with_new_names(_read_json(path)) if path.exists() else None


def latest_step(workdir) -> int | None:
  """The newest complete checkpoint of a workdir; None if it has none.

  It may still be damaged: what a run continues from, `restore_latest` says.
  """
  return max(layout.steps(workdir), default=None)


def restore_latest(workdir, target, config) -> Restored | None:
  """The newest sound checkpoint of a workdir; None if it has none at all.

  A checkpoint that cannot be read, or is not what was saved, is named in a
  warning and renamed to `STEP.damaged`, and the one before is taken: the
  finished steps are those of the result, not `latest_step` of before. All
  processes take the same one.

  Args:
    workdir: directory of the run.
    target: a train state (or its `jax.ShapeDtypeStruct`s) with the wanted
      structure, shapes and shardings.
    config: the config of this run, to be compared with the saved one.

  Raises:
    WorkdirError: the checkpoint holds another model or optimizer.
    DamagedError: all checkpoints are damaged.
  """
  damage = []
  while (step := latest_step(workdir)) is not None:
    path = layout.directory(workdir) / str(step)
    restored, reason = _restore_sound(path, target, config)
    if not reason:
      return restored
    damage.append(f'step {step}: {reason}')
    _set_aside(path, reason)
  damage = damage or [str(path) for path in layout.damaged(workdir)]
  if damage:
    raise DamagedError(
      f'{workdir} holds damaged checkpoints only:\n{match.listed(damage)}\n'
      'They are kept under the ending .damaged. To train from the start, take '
      'another workdir or move them away.'
    )
  return None


def restore(path, step: int | str | None = None):
  """The model of a checkpoint, to look at or to detect with.

  Args:
    path: a workdir, or one checkpoint of it (`WORKDIR/checkpoints/STEP`, or
      `WORKDIR/checkpoints/best`).
    step: which checkpoint of the workdir; `'best'` for the one with the best
      `training.keep_best`; the newest if None.

  Returns:
    The variables that `MaskRCNN.apply` and `detect` take (`params` and
    `batch_stats`), on the default device, and the config as a ConfigDict,
    without its section `runtime`, which describes another machine. Of a run
    that averages its parameters `params` is the average.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    DamagedError: it is not what was saved.
  """
  path = layout.find(path, step)
  config = read_config(path)
  # What a run computed on, and where it kept programs, is nobody else's: a
  # received folder must not choose what is loaded here.
  config.pop('runtime', None)
  config = ml_collections.ConfigDict(_with_tuples(config))
  with health_lib.naming_damage(path / 'state'):
    health, tree = layout.read_health(path), layout.tensors(path)
    if health:
      found = health_lib.shapes(tree)
      health_lib.check_shapes(health, path / 'state', found)
    params = 'ema' if 'ema' in tree else 'params'
    wanted = {k: tree[k] for k in (params, 'batch_stats') if tree.get(k)}
    item = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), wanted
    )
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    restore_args = jax.tree.map(lambda _: as_numpy, item)
    variables = ocp.PyTreeCheckpointHandler().restore(
      path / 'state',
      args=ocp.args.PyTreeRestore(
        item=item, restore_args=restore_args, partial_restore=True
      ),
    )
    variables = jax.tree.map(jnp.asarray, variables)
    if health:
      health_lib.check_tensors(health, path / 'state', variables)
  variables['params'] = variables.pop(params)
  return {'batch_stats': {}, **variables}, config


def read_config(path, step: int | str | None = None) -> dict[str, Any]:
  """The config of a checkpoint (see `restore`), in the types of JSON."""
  return with_new_names(layout.read_item(layout.find(path, step), 'config'))


def read_classes(path, step: int | str | None = None) -> dict[int, str]:
  """The class names of a checkpoint by id; empty if none were known."""
  classes = layout.read_item(layout.find(path, step), 'classes')
  return {
    int(k): v if isinstance(v, str) else v['name'] for k, v in classes.items()
  }


def read_category_ids(path, step: int | None = None) -> dict[int, int]:
  """The category id of each class whose id in the annotations is another.

  So it is where they number categories from 0, which is the background here.
  """
  classes = layout.read_item(layout.find(path, step), 'classes')
  return {
    int(k): v['category_id']
    for k, v in classes.items()
    if not isinstance(v, str)
  }


def read_position(path, step: int | str | None = None) -> dict[str, int]:
  """Where the input of a checkpoint continues: `examples` and `salt`."""
  return layout.read_item(layout.find(path, step), 'position')


def _restore_sound(path, target, config) -> tuple[Restored | None, str]:
  """What is in a checkpoint, or why it is damaged; alike in all processes."""
  restored = health = None
  reason = ''
  try:
    restored, health = _restore(path, target, config)
  except DamagedError as error:
    reason = str(error)
  # The checksums are computed by all processes together, or by none.
  reason = layout.agree(reason)
  if not reason and health:
    try:
      health_lib.check_tensors(health, path / 'state', restored.state)
    except DamagedError as error:
      reason = str(error)
    reason = layout.agree(reason)
  elif not reason and jax.process_index() == 0:
    logging.warning(
      '%s has no checksums, as an older version saved it: its numbers are '
      'taken as they are.',
      path,
    )
  return restored, reason


def _restore(path, target, config) -> tuple[Restored, dict | None]:
  """What is in a checkpoint, whose tensors are still to be checked."""
  saved, given = read_config(path), layout.as_json(config)
  position, classes = read_position(path), read_classes(path)
  with health_lib.naming_damage(path / 'state'):
    health = layout.read_health(path)
    shapes = health_lib.shapes(layout.tensors(path))
    if health:
      health_lib.check_shapes(health, path / 'state', shapes)
  match.check_model(path, saved, given)
  match.check_tensors(path, shapes, target, match.differences(saved, given))
  with health_lib.naming_damage(path / 'state'):
    # A Checkpointer would wait for the other processes, which may have failed.
    state = ocp.StandardCheckpointHandler().restore(
      path / 'state', args=ocp.args.StandardRestore(_abstract(target))
    )
  return Restored(int(path.name), state, position, classes), health


def _set_aside(path: pathlib.Path, reason: str) -> None:
  if jax.process_index() == 0:
    new = layout.set_aside(path, reason)
    logging.warning(
      'Step %s is damaged, so the checkpoint before is taken: %s It is now %s.',
      path.name,
      reason,
      new,
    )
  # Nobody may look for the newest one before.
  layout.agree('')


def _config_path(workdir) -> pathlib.Path:
  return pathlib.Path(workdir) / 'config.json'


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
