"""How fast a run is, and the account that it closes with.

The first steps of a process wait for the input and fill caches, so that the
throughput of a run leaves out `WARMUP_STEPS` of them.
"""

import contextlib
import datetime
import json
import pathlib
import time
from collections.abc import Mapping, Sequence

import numpy as np

from maskrcnn_jax.habana import metric_names as seed_names
from maskrcnn_jax.training import stopping

WARMUP_STEPS = 100
_LATENCY_PERCENTS = (50, 90, 95, 99, 100)


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
    rate = self.peek()
    self._restart()
    return rate

  def peek(self) -> float:
    """The same, and goes on."""
    seconds = self._clock() - self._start - self._paused
    return self._images / seconds if seconds > 0 else 0.0


class RunSummary:
  """Times a run; a context manager that reports how it ended.

  Attributes:
    values: metrics of the last steps that were logged.
  """

  def __init__(self, writer, log_file: str | None = None, clock=time.monotonic):
    """Starts the clock.

    Args:
      writer: `metrics.MetricWriter`.
      log_file: of JSON lines, see `log`; None for none.
      clock: seconds.
    """
    self._writer = writer
    self._log_file = log_file
    self._clock = clock
    self._start = clock()
    # Since the last log, since the warm-up, and what `seed_rates` tells.
    self._window, self._whole = ImageRate(clock), ImageRate(clock)
    self._shown, self._shown_steps = ImageRate(clock), ImageRate(clock)
    self._steps = 0
    self.values = {}

  def add(self, num_images: int, wait) -> None:
    """Counts a step.

    Args:
      num_images: of the step, over all hosts.
      wait: called where the clock must not run ahead of the device.
    """
    self._steps += 1
    for rate in (self._window, self._whole, self._shown):
      rate.add(num_images)
    self._shown_steps.add(1)
    if self._steps == WARMUP_STEPS:
      wait()
      self._whole.read()

  @contextlib.contextmanager
  def paused(self):
    """Leaves out the time spent in the context."""
    with contextlib.ExitStack() as stack:
      for rate in (self._window, self._whole, self._shown, self._shown_steps):
        stack.enter_context(rate.paused())
      yield

  def window_rate(self) -> float:
    """Images per second since it was last asked; the device must be done."""
    return self._window.read()

  def seed_rates(self) -> dict[str, float]:
    """Speed since it was last asked under the seed's names in TensorBoard."""
    return {
      'global_step/sec': self._shown_steps.read(),
      'examples/sec': self._shown.read(),
    }

  def is_warm(self) -> bool:
    """Whether steps beyond the warm-up have been counted."""
    return self._steps > WARMUP_STEPS

  def __enter__(self):
    return self

  def __exit__(self, kind, error, unused_traceback):
    rate = self._whole.peek()
    seconds = self._clock() - self._start
    status = 'SUCCESS' if kind is None else f'FAILURE, {kind.__name__}'
    if isinstance(error, stopping.Stopped):
      status = 'STOPPED by SIGTERM; the same command goes on from here'
    self._writer.print('\n'.join(self._lines(status, rate, seconds)))
    if self._writer.enabled:
      log(
        self._log_file,
        {
          'Average_throughput': rate if self.is_warm() else -1.0,
          'Total processed steps': self._steps,
          'Total_processing_time': seconds,
        },
        seed_names.logged(self.values),
      )

  def _lines(self, status, rate, seconds):
    span = datetime.timedelta(seconds=round(seconds))
    note = f'without the first {WARMUP_STEPS} steps'
    if not self.is_warm():
      note = f'warm-up: a run is measured from step {WARMUP_STEPS + 1} on'
    yield f'Training ended with status: {status}'
    yield f'  steps       {self._steps} in {span} (hours:minutes:seconds)'
    yield f'  throughput  {rate:.4g} images/s ({note})'
    for name, value in self.values.items():
      yield f'  {name:<14} {value:.5g}'


def inference_lines(
  seconds: Sequence[float], batch_size: int
) -> tuple[list[str], dict[str, float]]:
  """Speed of an evaluation in words, and for the log.

  Args:
    seconds: of every batch; the first one compiles.
    batch_size: images of a batch.

  Returns:
    lines: for people.
    logged: under the seed's names; -1 while the warm-up lasts, as there.
  """
  logged = {
    'avg_inference_throughput': -1.0,
    'avg_inference_time': float(np.sum(seconds)),
  }
  steady = np.asarray(seconds[1:])
  if not steady.size:
    return [], logged
  rate = batch_size / np.mean(steady)
  percentiles = ', '.join(
    f'{percent} % {value:.3g}'
    for percent, value in zip(
      _LATENCY_PERCENTS, np.percentile(steady, _LATENCY_PERCENTS)
    )
  )
  # The seed leaves out the first hundred and the last, which it does not fill.
  after = np.asarray(seconds[WARMUP_STEPS:-1])
  if after.size:
    logged['avg_inference_throughput'] = float(np.mean(batch_size / after))
  lines = [
    f'inference: {rate:.4g} images/s without the first batch; seconds a batch: '
    f'mean {np.mean(steady):.3g}, {percentiles}'
  ]
  return lines, logged


def log(path: str | None, *entries: Mapping[str, float]) -> None:
  """Appends entries to a file of JSON lines, in the form of dllogger.

  Args:
    path: of the file; its folder is made if missing; None does nothing.
    *entries: values by name; empty ones are left out.
  """
  if path is None:
    return
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  now = time.time()
  with path.open('a', encoding='utf-8') as file:
    for entry in entries:
      if not entry:
        continue
      line = {
        'timestamp': now,
        'datetime': str(datetime.datetime.fromtimestamp(now)),
        'type': 'LOG',
        'step': [],
        'data': dict(entry),
      }
      file.write(json.dumps(line) + '\n')
