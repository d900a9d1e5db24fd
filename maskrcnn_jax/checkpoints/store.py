"""Checkpoints of a run: saved, found and restored. The door of this package.

`WORKDIR/checkpoints/STEP` holds five items: `state` (the train state),
`position` (examples consumed and salt of the input), `config`, `classes`
(id -> name) and `health` (checksums of all of it, compared at every read).
`WORKDIR/config.json` is written before the first checkpoint.
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

from maskrcnn_jax import files
from maskrcnn_jax.checkpoints import checksums, compatibility, retention
from maskrcnn_jax.checkpoints.checksums import CorruptCheckpointError
from maskrcnn_jax.checkpoints.compatibility import WorkdirError
from maskrcnn_jax.checkpoints.retention import best_step as best_step
from maskrcnn_jax.checkpoints.writer import CheckpointWriter as CheckpointWriter
from maskrcnn_jax.checkpoints.writer import SaveError as SaveError
from maskrcnn_jax.checkpoints.writer import check_can_save as check_can_save
from maskrcnn_jax.config import with_new_names
from maskrcnn_jax.distributed import collectives


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
    CorruptCheckpointError: that step is corrupt.
    WorkdirError: the workdir holds a run of another model, or the processes do
      not share it.
  """
  _check_shared(workdir)
  given = compatibility.as_json(config)
  claimed = claimed_config(workdir)
  if claimed is not None:
    compatibility.check_model(workdir, claimed, given)
  if step is not None:
    compatibility.check_model(workdir, read_config(workdir, step), given)
    return
  for newest in reversed(retention.steps(workdir)):
    # Whoever restores a corrupt one reports it.
    with contextlib.suppress(CorruptCheckpointError):
      compatibility.check_model(workdir, read_config(workdir, newest), given)
      return


def check_same_model(path, config) -> None:
  """Raises `WorkdirError` if a checkpoint is of another model.

  Args:
    path: as in `restore`.
    config: whose section `model` is compared.
  """
  compatibility.check_model(
    path, read_config(path), compatibility.as_json(config)
  )


def is_checkpoint(path) -> bool:
  """Whether a path is a checkpoint, or a workdir that has one."""
  path = pathlib.Path(path)
  if retention.is_best(path):
    path = path.parents[1]
  return (path / 'state').is_dir() or latest_step(path) is not None


def step_of(path, step: int | str | None = None) -> int:
  """The finished steps of the checkpoint that `restore(path, step)` takes."""
  return int(retention.find(path, step).name)


def foreign_checkpoints(workdir) -> list[str]:
  """Prefixes of the TensorFlow checkpoints in a folder."""
  paths = pathlib.Path(workdir).glob('*ckpt*.index')
  return sorted(str(path.with_suffix('')) for path in paths)


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
  text = json.dumps(compatibility.as_json(config), indent=2) + '\n'
  texts = {_config_path(workdir).name: text, **(notes or {})}
  for name, text in texts.items():
    path = pathlib.Path(workdir) / name
    if path.exists():
      if path.read_text() == text:
        continue
      step = latest_step(workdir) or 0
      path = path.with_stem(f'{path.stem}-from-step-{step}')
    files.write_text(path, text)


def claimed_config(workdir) -> dict[str, Any] | None:
  """The config of a workdir's run in types of JSON; None of an empty workdir.

  Raises:
    WorkdirError: the file is no config.
  """
  path = _config_path(workdir)
  if not path.exists():
    return None
  try:
    return with_new_names(json.loads(path.read_text()))
  except json.JSONDecodeError as error:
    raise WorkdirError(f'{path} is not a config: {error}', path=path) from error


def latest_step(workdir) -> int | None:
  """The newest complete checkpoint of a workdir; None if it has none.

  It may still be corrupt, see `restore_latest`.
  """
  return max(retention.steps(workdir), default=None)


def restore_latest(workdir, target, config) -> Restored | None:
  """The newest valid checkpoint of a workdir; None if it has none at all.

  A checkpoint that cannot be read, or is not as it was saved, is named in a
  warning and renamed to `STEP.damaged`, and the previous one is taken: the
  finished steps are those of the result, not `latest_step` of before. All
  processes take the same one.

  Args:
    workdir: directory of the run.
    target: a train state (or its `jax.ShapeDtypeStruct`s) with the wanted
      structure, shapes and shardings.
    config: the config of this run, to be compared with the saved one.

  Raises:
    WorkdirError: the checkpoint holds another model or optimizer.
    CorruptCheckpointError: all checkpoints are corrupt.
  """
  corrupt = []
  while (step := latest_step(workdir)) is not None:
    path = retention.directory(workdir) / str(step)
    restored, reason = _restore_checked(path, target, config)
    if not reason:
      return restored
    corrupt.append(f'step {step}: {reason}')
    if jax.process_index() == 0:
      new = retention.set_aside(path, reason)
      logging.warning(
        'Step %s is corrupt, so the previous checkpoint is taken: %s It is now '
        '%s.',
        *(step, reason, new),
      )
    collectives.barrier()  # Before anybody looks for the newest one.
  corrupt = corrupt or [str(path) for path in retention.corrupt(workdir)]
  if corrupt:
    raise CorruptCheckpointError(
      f'All checkpoints of {workdir} are corrupt:\n'
      f'{compatibility.listed(corrupt)}\n'
      'They are kept with the suffix .damaged. To train from the start, use '
      'another workdir or move them away.',
      path=workdir,
      given=corrupt,
    )
  return None


def restore(path, step: int | str | None = None):
  """The model of a checkpoint, for inspection or detection.

  Args:
    path: a workdir, or one checkpoint of it (`WORKDIR/checkpoints/STEP`, or
      `WORKDIR/checkpoints/best`).
    step: of the workdir; `'best'` for the one with the best
      `training.keep_best`; the newest if None.

  Returns:
    The variables that `MaskRCNN.apply` and `detect` take (`params` and
    `batch_stats`), on the default device, and the config as a ConfigDict,
    without its section `runtime`, which describes another machine. Of a run
    that averages its parameters `params` is the average.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    CorruptCheckpointError: it is not what was saved.
  """
  path = retention.find(path, step)
  config = read_config(path)
  # A received folder must not choose what is loaded here, such as a plugin or
  # a cache of compiled programs.
  config.pop('runtime', None)
  config = ml_collections.ConfigDict(_with_tuples(config))
  saved = checksums.read(path)
  tree = checksums.read_shapes(path, saved)
  params = 'ema' if 'ema' in tree else 'params'
  wanted = {k: tree[k] for k in (params, 'batch_stats') if tree.get(k)}
  item = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), wanted)
  as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
  with checksums.reading(path / 'state'):
    variables = ocp.PyTreeCheckpointHandler().restore(
      path / 'state',
      args=ocp.args.PyTreeRestore(
        item=item,
        restore_args=jax.tree.map(lambda _: as_numpy, item),
        partial_restore=True,
      ),
    )
    variables = jax.tree.map(jnp.asarray, variables)
  if saved:
    checksums.check_tensors(saved, path / 'state', variables)
  variables['params'] = variables.pop(params)
  return {'batch_stats': {}, **variables}, config


def read_config(path, step: int | str | None = None) -> dict[str, Any]:
  """The config of a checkpoint (see `restore`), in types of JSON."""
  return with_new_names(_read_item(path, step, 'config'))


def read_classes(path, step: int | str | None = None) -> dict[int, str]:
  """The class names of a checkpoint by id; empty if none were known."""
  classes = _read_item(path, step, 'classes')
  return {
    int(k): v if isinstance(v, str) else v['name'] for k, v in classes.items()
  }


def read_category_ids(path, step: int | None = None) -> dict[int, int]:
  """Class id -> category id in the annotations, of the classes that differ.

  They do where annotations number categories from 0, which is the background
  here.
  """
  classes = _read_item(path, step, 'classes')
  return {
    int(k): v['category_id']
    for k, v in classes.items()
    if not isinstance(v, str)
  }


def read_position(path, step: int | str | None = None) -> dict[str, int]:
  """Position of the next batch in the input: `examples` and `salt`."""
  return _read_item(path, step, 'position')


def _read_item(path, step: int | str | None, name: str):
  return checksums.read_item(retention.find(path, step), name)


def _restore_checked(path, target, config) -> tuple[Restored | None, str]:
  """A checkpoint, or the reason why it is corrupt; alike in all processes."""
  restored = saved = None
  reason = ''
  try:
    restored, saved = _restore(path, target, config)
  except CorruptCheckpointError as error:
    reason = str(error)
  # The checksums are computed by all processes together, or by none.
  reason = collectives.first_error(reason)
  if not reason and saved:
    try:
      checksums.check_tensors(saved, path / 'state', restored.state)
    except CorruptCheckpointError as error:
      reason = str(error)
    reason = collectives.first_error(reason)
  elif not reason and jax.process_index() == 0:
    logging.warning(
      '%s has no checksums, as an older version saved it: it is not checked.',
      path,
    )
  return restored, reason


def _restore(path, target, config) -> tuple[Restored, dict | None]:
  """A checkpoint whose tensors are still to be checked, and its checksums."""
  config_then, config_now = read_config(path), compatibility.as_json(config)
  position, classes = read_position(path), read_classes(path)
  saved = checksums.read(path)
  shapes = checksums.shapes(checksums.read_shapes(path, saved))
  compatibility.check_model(path, config_then, config_now)
  changed = compatibility.differences(config_then, config_now)
  compatibility.check_tensors(path, shapes, target, changed)
  with checksums.reading(path / 'state'):
    # A Checkpointer would wait for the other processes, which may have failed.
    state = ocp.StandardCheckpointHandler().restore(
      path / 'state', args=ocp.args.StandardRestore(_abstract(target))
    )
  return Restored(int(path.name), state, position, classes), saved


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
  """Raises if the processes do not see the same newest checkpoint."""
  steps = collectives.all_gather(latest_step(workdir) or 0)
  if len({*steps}) > 1:
    raise WorkdirError(
      f'{workdir} has {min(steps)} finished steps in one process and '
      f'{max(steps)} in another: the processes must share the folder.',
      path=workdir,
      given=steps,
    )


def _with_tuples(value):
  """Lists of JSON as tuples, so that options can be hashed."""
  if isinstance(value, dict):
    return {k: _with_tuples(v) for k, v in value.items()}
  if isinstance(value, list):
    return tuple(_with_tuples(v) for v in value)
  return value
