"""A trace of some steps, for TensorBoard's profiler (xprof)."""

import logging
from collections.abc import Sequence

import jax

from maskrcnn_jax.errors import UserError


class Trace:
  """Traces steps of this process; a context manager that closes the trace."""

  def __init__(self, workdir, steps: Sequence[int] | None):
    """Prepares a trace.

    Args:
      workdir: `plugins/profile/TIME` is made in it.
      steps: first and last step, counted from 1 in this process; None traces
        nothing.

    Raises:
      ValueError: the steps are not two numbers in order.
    """
    steps = tuple(steps or ())
    if steps and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
      raise UserError(
        'training.profile must be the first and the last step to trace, '
        f'counted from 1, got {steps}.'
      )
    self._workdir = str(workdir)
    self._first, self._last = steps or (0, 0)
    self._open = False

  def before(self, step: int) -> None:
    """Starts the trace before its first step."""
    if step == self._first:
      jax.profiler.start_trace(self._workdir)
      self._open = True

  def after(self, step: int, values) -> None:
    """Ends the trace after its last step, once the device has done it."""
    if self._open and step >= self._last:
      jax.block_until_ready(values)
      self._close()

  def _close(self):
    jax.profiler.stop_trace()
    self._open = False
    logging.info(
      'trace of steps written; see it with tensorboard --logdir %s',
      self._workdir,
    )

  def __enter__(self):
    return self

  def __exit__(self, *unused_error):
    if self._open:
      self._close()
