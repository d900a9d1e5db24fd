"""Runs the benchmarks that were asked for; writes what they found."""

import json
import logging
import os
import pathlib
from typing import Any

import jax

from maskrcnn_jax.benchmarks import (
  backbone,
  inference,
  peaks,
  report,
  torchvision_process,
  train_step,
)
from maskrcnn_jax.benchmarks.options import SUBJECTS, BenchOptions
from maskrcnn_jax.benchmarks.subject import make_subject


def bench(
  config: Any, options: BenchOptions, output: str, is_real: bool = False
) -> dict[str, Any]:
  """Measures, prints tables, and writes `bench.json` and `bench.png`.

  Args:
    config: a ConfigDict with the sections `model` and `input`.
    options: see `BenchOptions`.
    output: folder, made if missing.
    is_real: whether images are of the config's records; else they are drawn.

  Returns:
    What was written as JSON.

  Raises:
    ValueError: an argument is wrong.
    FileExistsError: the folder has results already.
  """
  folder = pathlib.Path(output)
  if (folder / 'bench.json').exists():
    raise FileExistsError(
      f'{output} holds the results of an earlier run; choose another --output.'
    )
  folder.mkdir(parents=True, exist_ok=True)
  result = {'machine': _machine(), 'peaks': peaks.measure_peaks()}
  subject = make_subject(config, is_real, options.rounds)
  result['subject'] = {
    'canvas': list(subject.canvas),
    'batch_size': subject.batch_size,
    'dtype': subject.model.dtype,
    'num_classes': subject.model.num_classes,
    'depth': subject.model.backbone.depth,
    'images': subject.images,
    'objects': [
      batch['instances']['valid'].sum(axis=1).tolist()
      for batch in subject.host_batches
    ],
    'rounds': options.rounds,
    'warmup': options.warmup,
  }

  def measure_all(other):
    for name in SUBJECTS:
      if name not in options.what:
        continue
      logging.info('measuring %s', name)
      run = _RUNS[name]
      result[name] = run(subject, other, options.rounds, options.warmup)
      # Kept at once: the next one may take minutes, or fail.
      _write(result, folder)

  if options.against:
    channels_last = options.channels_last
    if channels_last is None:
      channels_last = jax.default_backend() == 'gpu'
    with torchvision_process.start(
      options.against,
      subject.model,
      subject.host_batches,
      _num_threads(),
      channels_last,
    ) as (other, facts):
      result['torchvision'] = facts
      measure_all(other)
  else:
    measure_all(None)
  result['peaks'] = peaks.highest(result['peaks'], peaks.measure_peaks())
  result['machine']['load_after'] = os.getloadavg()[0]
  _write(result, folder)
  print(report.text(result))
  logging.info('wrote bench.json to %s', output)
  return result


_RUNS = {
  'step': train_step.run,
  'inference': inference.run,
  'backbone': backbone.run,
}


def _num_threads() -> int:
  """CPUs that this process may use, as JAX takes them."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count()


def _machine() -> dict[str, Any]:
  device = jax.devices()[0]
  return {
    'backend': jax.default_backend(),
    'device': device.device_kind,
    'devices': jax.device_count(),
    'cpus': _num_threads(),
    'jax': jax.__version__,
    'load_before': os.getloadavg()[0],
  }


def _write(result, folder) -> None:
  path = folder / 'bench.json'
  path.write_text(json.dumps(result, indent=2) + '\n')
