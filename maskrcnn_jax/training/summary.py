"""Run summary: throughput of training and inference, and profiler traces.

The first `WARMUP_STEPS` steps of a process wait for the input and fill caches,
so they do not count in the throughput of a run.
"""

import contextlib
import datetime
import json
import logging
import pathlib
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from maskrcnn_jax.distributed.termination import Stopped
from maskrcnn_jax.errors import invalid
from maskrcnn_jax.habana import metric_names

WARMUP_STEPS = 100
_LATENCY_PERCENTS = (50, 90, 95, 99, 100)


class RunSummary:
  """Times a run; a context manager that prints a summary at its end.

  Attributes:
    values: metrics that were logged last.
  """

  def __init__(self, writer, log_file: str | None = None, clock=time.monotonic):
    """Starts the clock."""
    self._writer, self._log_file, self._clock = writer, log_file, clock
    self._start = clock()
    self._paused_seconds = 0.0
    self._images = self._steps = 0
    # Since the last log, since the warm-up, and for `habana_rates`.
    self._marks = dict.fromkeys(('window', 'whole', 'board'), self._now())
    self.values = {}

  def _now(self) -> tuple[float, int, int]:
    seconds = self._clock() - self._paused_seconds
    return seconds, self._images, self._steps

  def _rates(self, mark: str) -> tuple[float, float]:
    """Images and steps a second since a mark, which moves to now."""
    before, now = self._marks[mark], self._now()
    self._marks[mark] = now
    seconds, images, steps = (b - a for a, b in zip(before, now))
    return (images / seconds, steps / seconds) if seconds > 0 else (0.0, 0.0)

  def add(self, num_images: int, wait) -> None:
    """Counts a step.

    Args:
      wait: called where the clock must wait for the device.
    """
    self._steps += 1
    self._images += num_images
    if self._steps == WARMUP_STEPS:
      wait()
      self._marks['whole'] = self._now()

  @contextlib.contextmanager
  def paused(self):
    """Does not count the time spent in the context in any rate."""
    start = self._clock()
    try:
      yield
    finally:
      self._paused_seconds += self._clock() - start

  def log(
    self,
    step: int,
    num_steps: int,
    metrics: Mapping[str, float],
    skipped: Mapping[str, int],
  ) -> None:
    """Writes and prints metrics of the steps since the last call.

    Args:
      step: finished; the device must be done with it.
      skipped: number of skipped steps, images and objects so far.
    """
    rate, _ = self._rates('window')
    self.values = metrics
    named = {**metrics, 'images_per_second': rate}
    named |= {f'skipped_{kind}': n for kind, n in skipped.items() if n}
    self._writer.scalars(step, {f'train/{k}': v for k, v in named.items()})
    note = '' if self.is_warm() else ' (warm-up)'
    self._writer.show(step, num_steps, metrics, rate, note)

  def habana_rates(self) -> dict[str, float]:
    """Speed since the last call under Habana's names in TensorBoard."""
    images, steps = self._rates('board')
    return {'global_step/sec': steps, 'examples/sec': images}

  def is_warm(self) -> bool:
    """Whether steps beyond the warm-up have been counted."""
    return self._steps > WARMUP_STEPS

  def __enter__(self):
    return self

  def __exit__(self, kind, error, unused_traceback):
    rate, _ = self._rates('whole')
    seconds = self._clock() - self._start
    status = 'SUCCESS' if kind is None else f'FAILURE, {kind.__name__}'
    if isinstance(error, Stopped):
      status = f'STOPPED by {error.signal_name}; the same command continues'
    self._writer.print('\n'.join(self._lines(status, rate, seconds)))
    if self._writer.enabled:
      log(
        self._log_file,
        {
          'Average_throughput': rate if self.is_warm() else -1.0,
          'Total processed steps': self._steps,
          'Total_processing_time': seconds,
        },
        metric_names.logged(self.values),
      )

  def _lines(self, status, rate, seconds):
    span = datetime.timedelta(seconds=round(seconds))
    note = f'warm-up: throughput is measured from step {WARMUP_STEPS + 1} on'
    if self.is_warm():
      note = f'without the first {WARMUP_STEPS} steps'
    yield f'Training ended with status: {status}'
    yield f'  steps       {self._steps} in {span} (hours:minutes:seconds)'
    yield f'  throughput  {rate:.4g} images/s ({note})'
    for name, value in self.values.items():
      yield f'  {name:<14} {value:.5g}'


def inference_lines(
  seconds: Sequence[float], batch_size: int
) -> tuple[list[str], dict[str, float]]:
  """Speed of an evaluation: lines of text, and numbers for the log.

  Returns:
    The lines; the numbers under Habana's names, -1 during the warm-up as there.
  """
  total = float(np.sum(seconds))
  logged = {'avg_inference_throughput': -1.0, 'avg_inference_time': total}
  steady = np.asarray(seconds[1:])
  if not steady.size:
    return [], logged
  rate = batch_size / np.mean(steady)
  latencies = zip(_LATENCY_PERCENTS, np.percentile(steady, _LATENCY_PERCENTS))
  percentiles = ', '.join(f'{n} % {value:.3g}' for n, value in latencies)
  # Habana skips the first hundred, and the last, which is not full.
  after = np.asarray(seconds[WARMUP_STEPS:-1])
  if after.size:
    logged['avg_inference_throughput'] = float(np.mean(batch_size / after))
  line = (
    f'inference: {rate:.4g} images/s without the first batch; seconds a batch: '
    f'mean {np.mean(steady):.3g}, {percentiles}'
  )
  return [line], logged


def log(path: str | None, *entries: Mapping[str, float]) -> None:
  """Appends entries to a file of JSON lines in the format of dllogger.

  Args:
    path: of the file; its folder is made if missing; None does nothing.
    *entries: values by name; empty ones are skipped.
  """
  if path is None:
    return
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  now = time.time()
  with path.open('a', encoding='utf-8') as file:
    head = {
      'timestamp': now,
      'datetime': str(datetime.datetime.fromtimestamp(now)),
    }
    for entry in filter(None, entries):
      line = {**head, 'type': 'LOG', 'step': [], 'data': dict(entry)}
      file.write(json.dumps(line) + '\n')


class Profile:
  """Profiler trace of some steps for TensorBoard (xprof); a context manager."""

  def __init__(self, workdir, steps: Sequence[int] | None):
    """Prepares a trace.

    Args:
      workdir: `plugins/profile/TIME` is made in it.
      steps: first and last step, counted from 1 in this process; None traces
        nothing.

    Raises:
      UserError: the steps are not two numbers in order.
    """
    steps = tuple(steps or ())
    if steps and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
      wanted = 'the first and the last step to trace, counted from 1'
      raise invalid('training.profile', steps, wanted)
    self._workdir, self._is_open = str(workdir), False
    self._first, self._last = steps or (0, 0)

  def before(self, step: int) -> None:
    """Starts the trace before its first step."""
    if step == self._first:
      jax.profiler.start_trace(self._workdir)
      self._is_open = True

  def after(self, step: int, values) -> None:
    """Ends the trace after its last step, once the device has done it."""
    if self._is_open and step >= self._last:
      jax.block_until_ready(values)
      self._close()

  def _close(self):
    jax.profiler.stop_trace()
    self._is_open = False
    logging.info(
      'profile written; view it with tensorboard --logdir %s', self._workdir
    )

  def __enter__(self):
    return self

  def __exit__(self, *unused_error):
    if self._is_open:
      self._close()
