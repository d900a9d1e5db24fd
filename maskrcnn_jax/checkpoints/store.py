"""Checkpoints of a run: found, checked and restored; `writer` saves them.

`WORKDIR/checkpoints/STEP` holds five items: `state` (the train state),
`position` (examples consumed and salt of the input), `config`, `classes`
(id -> name) and `health` (checksums of all of it, compared at every read).
`WORKDIR/config.json` is written before the first checkpoint.
"""

import contextlib
import dataclasses
import json
import logging
import operator
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from maskrcnn_jax import files
from maskrcnn_jax.checkpoints import (
  checksums,
  compatibility,
  containment,
  retention,
)
from maskrcnn_jax.checkpoints.checksums import CorruptCheckpointError
from maskrcnn_jax.checkpoints.compatibility import WorkdirError
from maskrcnn_jax.checkpoints.disk_space import SaveError as SaveError
from maskrcnn_jax.checkpoints.disk_space import check_can_save as check_can_save
from maskrcnn_jax.checkpoints.retention import best_step as best_step
from maskrcnn_jax.checkpoints.retention import (
  foreign_checkpoints as foreign_checkpoints,
)
from maskrcnn_jax.checkpoints.retention import is_checkpoint as is_checkpoint
from maskrcnn_jax.checkpoints.retention import latest_step as latest_step
from maskrcnn_jax.checkpoints.retention import step_of as step_of
from maskrcnn_jax.checkpoints.saved_config import received, with_new_names
from maskrcnn_jax.checkpoints.writer import CheckpointWriter as CheckpointWriter
from maskrcnn_jax.distributed import collectives

_CONFIG_FILE = 'config.json'


@dataclasses.dataclass(frozen=True)
class Restored:
  """A run as it was saved.

  Attributes:
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
    step: the checkpoint to compare with, see `restore`; the newest if None.

  Raises:
    FileNotFoundError: there is no checkpoint of that step.
    CorruptCheckpointError: that step is corrupt.
    WorkdirError: the workdir holds a run of another model, or the processes do
      not share it.
  """
  newest = collectives.all_gather(latest_step(workdir) or 0)
  if len({*newest}) > 1:
    raise WorkdirError(
      f'{workdir} has {min(newest)} finished steps in one process and '
      f'{max(newest)} in another: the processes must share the folder.',
      path=workdir,
      given=newest,
    )
  claimed = claimed_config(workdir)
  if claimed is not None:
    compatibility.check_model(workdir, claimed, config)
  if step is not None:
    compatibility.check_model(workdir, read_config(workdir, step), config)
    return
  for saved in reversed(retention.steps(workdir)):
    # Whoever restores a corrupt one reports it.
    with contextlib.suppress(CorruptCheckpointError):
      compatibility.check_model(workdir, read_config(workdir, saved), config)
      return


def claim_workdir(
  workdir, config, notes: Mapping[str, str] | None = None
) -> None:
  """Writes the config into a workdir that passed `check_workdir`.

  A later run with other settings outside `model` leaves `config.json` as it is
  and adds `config-from-step-STEP.json`. The notes are treated the same way.

  Args:
    workdir: directory of the run; made if missing.
    notes: further texts to keep, by file name.
  """
  if jax.process_index() != 0:
    return
  contents = json.dumps(compatibility.as_json(config), indent=2) + '\n'
  for name, text in {_CONFIG_FILE: contents, **(notes or {})}.items():
    path = pathlib.Path(workdir, name)
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
  path = pathlib.Path(workdir, _CONFIG_FILE)
  if not path.exists():
    return None
  containment.check_links(path, workdir)
  return with_new_names(containment.read_json(path), path)


def restore_latest(workdir, target, config) -> Restored | None:
  """The newest valid checkpoint of a workdir; None if it has none at all.

  A corrupt checkpoint is named in a warning and renamed to `STEP.damaged`, and
  all processes take the previous one. So the result says how many steps are
  finished; a `latest_step` that was read earlier may be wrong.

  Args:
    target: a train state (or its `jax.ShapeDtypeStruct`s) with the wanted
      structure, shapes and shardings.

  Raises:
    WorkdirError: the checkpoint holds another model or optimizer.
    CorruptCheckpointError: all checkpoints are corrupt.
  """
  corrupt = []
  while (step := latest_step(workdir)) is not None:
    path = retention.directory(workdir) / str(step)
    try:
      return _restore(path, target, config)
    except CorruptCheckpointError as error:
      reason = str(error)
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
    path: a workdir, `WORKDIR/checkpoints/STEP` or `WORKDIR/checkpoints/best`.
    step: of the workdir: its number; `'best'` by `training.keep_best`; the
      newest if None.

  Returns:
    The variables for `MaskRCNN.apply` and `detect` on the default device,
    `params` (the average, if the run averages them) and `batch_stats`, and the
    config as a ConfigDict, without what belongs to another machine, see
    `saved_config.received`.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    CorruptCheckpointError: it is not what was saved.
  """
  path = retention.find(path, step)
  config = compatibility.from_json(received(read_config(path), path))
  saved = checksums.read(path)
  tree = checksums.read_shapes(path, saved)
  params = 'ema' if 'ema' in tree else 'params'
  item = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
    {k: tree[k] for k in (params, 'batch_stats') if tree.get(k)},
  )
  containment.check_size(path / 'state', item)
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
  path = retention.find(path, step)
  return with_new_names(checksums.read_item(path, 'config'), path / 'config')


def read_classes(path, step: int | str | None = None) -> dict[int, str]:
  """The class names of a checkpoint by id; empty if none were known."""
  return {k: name for k, (name, _) in _classes(path, step).items()}


def read_category_ids(path, step: int | None = None) -> dict[int, int]:
  """Category ids by class id, where they differ: in annotations from id 0."""
  found = _classes(path, step).items()
  return {k: category_id for k, (_, category_id) in found if category_id != k}


def _classes(path, step) -> dict[int, tuple[str, int]]:
  """Name and category id by class id."""
  path, found = retention.find(path, step), {}
  with checksums.reading(path / 'classes'):
    for k, value in checksums.read_item(path, 'classes').items():
      is_name = isinstance(value, str)
      pair = (value, k) if is_name else (value['name'], value['category_id'])
      found[int(k)] = '' + pair[0], int(pair[1])
  return found


def read_position(path, step: int | str | None = None) -> dict[str, int]:
  """Position of the next batch in the input: `examples` and `salt`."""
  path = retention.find(path, step)
  with checksums.reading(path / 'position'):
    position = checksums.read_item(path, 'position')
    return {k: operator.index(position[k]) for k in ('examples', 'salt')}


def _restore(path, target, config) -> Restored:
  """A checkpoint; if it is corrupt in one process, all raise an error."""
  item = path / 'state'
  with _alike_in_all(path):
    saved_config, position = read_config(path), read_position(path)
    classes, saved = read_classes(path), checksums.read(path)
    shapes = checksums.shapes(checksums.read_shapes(path, saved))
    compatibility.check_model(path, saved_config, config)
    given_config = compatibility.as_json(config)
    changed = compatibility.differences(saved_config, given_config)
    compatibility.check_tensors(path, shapes, target, changed)
    with checksums.reading(item):
      # A Checkpointer would wait for the other processes, which may have
      # failed.
      state = ocp.StandardCheckpointHandler().restore(
        item, args=ocp.args.StandardRestore(target)
      )
  # The checksums are computed by all processes together, or by none.
  if saved:
    with _alike_in_all(path):
      checksums.check_tensors(saved, item, state)
  elif jax.process_index() == 0:
    logging.warning(
      '%s has no checksums, as an older version saved it: it is not checked.',
      path,
    )
  return Restored(int(path.name), state, position, classes)


@contextlib.contextmanager
def _alike_in_all(path):
  """Raises the first process's `CorruptCheckpointError` in all processes."""
  reason = ''
  try:
    yield
  except CorruptCheckpointError as error:
    reason = str(error)
  reason = collectives.first_error(reason)
  if reason:
    raise CorruptCheckpointError(reason, path=path)
