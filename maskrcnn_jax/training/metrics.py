"""Metrics of a run: JSON lines, TensorBoard and a progress bar.

`WORKDIR/metrics.jsonl` has one object a line with `step` and the keys that
TensorBoard shows (`train/mask`, `eval/AP`). A resumed run appends; where a step
occurs twice, the later line holds.
"""

import contextlib
import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorboardX
import tqdm


class MetricWriter:
  """Writes what a run reports; a context manager."""

  def __init__(
    self,
    workdir,
    num_steps: int = 0,
    first_step: int = 0,
    enabled: bool = True,
  ):
    """Opens the files of a run.

    Args:
      workdir: directory of the run; made if missing.
      num_steps: length of the progress bar; 0 for none.
      first_step: finished steps; TensorBoard hides later ones of a run that
        was cut off.
      enabled: False on all hosts but one; they neither write nor print.
    """
    self._file = self._board = self._bar = None
    if not enabled:
      return
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    self._file = _open_lines(workdir / 'metrics.jsonl')
    self._board = tensorboardX.SummaryWriter(
      str(workdir), purge_step=first_step + 1 if num_steps else None
    )
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
    self._file.write(json.dumps({'step': int(step), **finite}) + '\n')
    self._file.flush()
    for name, value in values.items():
      self._board.add_scalar(name, value, int(step))

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    """Shows a picture, `[height, width, 3]` uint8, in TensorBoard."""
    if self._board is not None:
      self._board.add_image(name, image, int(step), dataformats='HWC')

  def advance(self, step: int) -> None:
    """Moves the progress bar to a finished step."""
    if self._bar is not None:
      self._bar.update(step - self._bar.n)

  def show(self, step: int, num_steps: int, loss: float, rate: float) -> None:
    """Loss and images per second: beside the bar, or as a line without one."""
    text = f'loss {loss:.4g}, {rate:.3g} images/s'
    if self._bar is not None:
      self._bar.set_postfix_str(text)
    else:
      self.say(f'step {step}/{num_steps}: {text}')

  def say(self, text: str, file=None) -> None:
    """Prints a line, to stderr by default, without breaking the bar."""
    file = file or sys.stderr
    if self._file is not None:
      tqdm.tqdm.write(text, file=file)
      file.flush()

  def flush(self) -> None:
    """Makes everything so far visible to other programs."""
    if self._board is not None:
      self._board.flush()

  def __enter__(self):
    return self

  def __exit__(self, *unused_error):
    if self._bar is not None:
      self._bar.close()
    if self._file is not None:
      self._board.close()
      self._file.close()


class ImageRate:
  """Images per second, without the time in which it was paused."""

  def __init__(self, clock=time.monotonic):
    self._clock = clock
    self._restart()

  def _restart(self):
    self._images, self._paused, self._start = 0, 0.0, self._clock()

  def add(self, num_images: int) -> None:
    """Counts images."""
    self._images += num_images

  @contextlib.contextmanager
  def paused(self):
    """Leaves out the time spent in the context."""
    start = self._clock()
    try:
      yield
    finally:
      self._paused += self._clock() - start

  def read(self) -> float:
    """Images per second since it was last read."""
    seconds = self._clock() - self._start - self._paused
    rate = self._images / seconds if seconds > 0 else 0.0
    self._restart()
    return rate


def means(window: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Means over the steps of a window; waits for the device.

  The learning rate is that of the last step.
  """
  if not window:
    raise ValueError('window must hold the metrics of at least one step.')
  names = window[0]
  steps = {k: [np.asarray(metrics[k]) for metrics in window] for k in names}
  result = {k: float(np.mean(values)) for k, values in steps.items()}
  if 'learning_rate' in steps:
    result['learning_rate'] = float(steps['learning_rate'][-1])
  return result


def _open_lines(path: pathlib.Path):
  """Opens for appending, after the end of the last line."""
  written = path.read_bytes() if path.exists() else b''
  file = path.open('a', encoding='utf-8')
  if written and not written.endswith(b'\n'):
    file.write('\n')
  return file
