"""Metric writer: JSON lines, TensorBoard and a progress bar.

`WORKDIR/metrics.jsonl` has one object a line with `step` and the keys that
TensorBoard shows (`train/mask`, `eval/AP`). A resumed run appends; where a step
occurs twice, the later line counts.
"""

import contextlib
import json
import math
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorboardX
import tqdm
from tensorboardX import summary

from maskrcnn_jax import files


class MetricWriter:
  """Writes the metrics of a run; a context manager."""

  def __init__(
    self, workdir, num_steps: int = 0, first_step: int = 0, enabled: bool = True
  ):
    """Opens the files of a run.

    Args:
      workdir: directory of the run; made if missing.
      num_steps: length of the progress bar; 0 for none.
      first_step: finished steps; TensorBoard hides later ones of a run that
        was killed.
      enabled: False on all hosts but one; they neither write nor print.
    """
    self._file = self._board = self._bar = None
    self.enabled = enabled
    if not enabled:
      return
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    for name in ('metrics.jsonl', 'eval', 'pictures', 'plugins'):
      files.not_a_link(workdir / name)
    self._file = _open_lines(workdir / 'metrics.jsonl')
    # The queue of its thread has no end, and the end of the process does not
    # wait for it: a full disk stops the thread at any time, without a word.
    self._board = tensorboardX.SummaryWriter(
      str(workdir),
      purge_step=first_step + 1 if num_steps else None,
      max_queue=0,
    )
    self._board.file_writer.event_writer._event_queue.cancel_join_thread()
    if num_steps and sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        total=num_steps, initial=first_step, unit='step', dynamic_ncols=True
      )

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes named numbers of one step; a number that is not finite as null."""
    if self._file is None:
      return
    values = {k: float(v) for k, v in values.items()}
    finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
    with files.naming(self._file.name):
      self._file.write(json.dumps({'step': int(step), **finite}) + '\n')
      self._file.flush()
    self.board_scalars(step, values)

  def board_scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Shows named numbers in TensorBoard alone."""
    if self._has_board():
      for name, value in values.items():
        self._board.add_scalar(name, value, int(step))

  def hyperparameters(self, config: Mapping[str, Any]) -> None:
    """Shows a config in TensorBoard's tab for hyperparameters."""
    if not self._has_board():
      return
    plain = {
      name: value if isinstance(value, bool | int | float) else str(value)
      for name, value in _flat(config)
    }
    results = dict.fromkeys(('eval/AP', 'eval/mask_AP', 'train/total_loss'))
    for part in summary.hparams(plain, results):
      self._board.file_writer.add_summary(part)

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    """Shows a picture, `[height, width, 3]` uint8, in TensorBoard."""
    if self._has_board():
      self._board.add_image(name, image, int(step), dataformats='HWC')

  def advance(self, step: int) -> None:
    """Moves the progress bar to a finished step."""
    if self._bar is not None:
      self._bar.update(step - self._bar.n)

  def show(
    self,
    step: int,
    num_steps: int,
    values: Mapping[str, float],
    rate: float,
    note: str = '',
  ) -> None:
    """Shows metrics and images a second, in short if there is a bar."""
    loss, speed = values['total_loss'], f'{rate:.3g} images/s{note}'
    if self._bar is not None:
      self._bar.set_postfix_str(f'loss {loss:.4g}, {speed}')
      return
    shown = {k: f'{v:.4g}' for k, v in values.items() if k != 'total_loss'}
    learning_rate = shown.pop('learning_rate')
    terms = ', '.join(map(' '.join, shown.items()))
    self.say(
      f'step {step}/{num_steps}: loss {loss:.4g} ({terms}), learning rate '
      f'{learning_rate}, {speed}'
    )

  def say(self, text: str, file=None) -> None:
    """Prints a line, to stderr by default, without breaking the bar."""
    file = file or sys.stderr
    if self._file is not None:
      tqdm.tqdm.write(text, file=file)
      file.flush()

  def progress(self, batches: Iterable) -> Iterable:
    """The batches of an evaluation, with a bar of their own in a terminal."""
    shown = self.enabled and sys.stderr.isatty()
    return tqdm.tqdm(
      batches, unit='batch', leave=False, disable=not shown, dynamic_ncols=True
    )

  def print(self, text: str) -> None:
    """Prints a result, to stdout."""
    self.say(text, file=sys.stdout)

  def flush(self) -> None:
    """Makes everything so far visible to other programs."""
    if self._has_board():
      with files.naming(self._board.logdir):
        self._board.flush()

  def _has_board(self) -> bool:
    """Whether TensorBoard's thread lives, so that events are read."""
    if self._board is None:
      return False
    if self._board.file_writer.event_writer._worker.is_alive():
      return True
    self.say(f'WARNING: no more TensorBoard events in {self._board.logdir}.')
    self._board = None
    return False

  def __enter__(self):
    return self

  def __exit__(self, *unused_error):
    if self._bar is not None:
      self._bar.close()
    if self._file is not None:
      with contextlib.suppress(OSError):  # A full disk, which is known then.
        if self._has_board():
          self._board.close()
      with files.naming(self._file.name):
        self._file.close()


def means(window: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Means over the steps of a window; waits for the device.

  The learning rate is that of the last step.
  """
  if not window:
    raise ValueError('window must hold the metrics of at least one step.')
  result = {k: float(np.mean([x[k] for x in window])) for k in window[0]}
  if 'learning_rate' in result:
    result['learning_rate'] = float(window[-1]['learning_rate'])
  return result


def _flat(config, prefix='') -> Iterator[tuple[str, Any]]:
  """`section.field` and value of a config."""
  for name, value in config.items():
    if hasattr(value, 'items'):
      yield from _flat(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value


def _open_lines(path: pathlib.Path):
  """Opens for appending, after the end of the last line."""
  written = path.read_bytes() if path.exists() else b''
  file = path.open('a', encoding='utf-8')
  if written and not written.endswith(b'\n'):
    file.write('\n')
  return file
