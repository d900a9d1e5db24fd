"""Runs the benchmarks that were asked for; writes what they found."""

import json
import logging
import os
import pathlib
import resource
from typing import Any

import jax

from maskrcnn_jax.benchmarks import (
  backbone,
  compilation,
  floors,
  growth,
  inference,
  peaks,
  plot,
  report,
  stages,
  torchvision_process,
  train_step,
)
from maskrcnn_jax.benchmarks.options import SUBJECTS, BenchOptions
from maskrcnn_jax.benchmarks.other_load import OtherLoad
from maskrcnn_jax.benchmarks.subject import make_subject
from maskrcnn_jax.errors import UserError

# What runs a model on its batches, also beside another side.
_RUNS = {
  'step': train_step.run,
  'inference': inference.run,
  'backbone': backbone.run,
  'stages': stages.run,
  'compilation': compilation.run,
}
# More would only take memory.
_MOST_BATCHES = 8


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
  if jax.process_count() > 1:
    raise UserError('bench measures what one process does; start it alone.')
  folder = pathlib.Path(output)
  if (folder / 'bench.json').exists():
    raise FileExistsError(
      f'{output} holds the results of an earlier run; choose another --output.'
    )
  folder.mkdir(parents=True, exist_ok=True)
  result = {'machine': _machine(), 'peaks': peaks.measure_peaks()}
  subject = make_subject(config, is_real, min(options.rounds, _MOST_BATCHES))
  result['subject'] = _describe(subject, options)
  with torchvision_process.beside(
    options.against, subject, _num_cpus(), options.channels_last
  ) as (other, facts):
    result['torchvision'] = facts
    load = OtherLoad([other.pid] if other else [])
    result['machine']['other_cpus'] = {}
    for name in [x for x in SUBJECTS if x in options.what]:
      logging.info('measuring %s', name)
      load.read()
      result[name] = _measure(name, config, subject, other, options)
      result['machine']['other_cpus'][name] = load.read()
      # Kept at once: the next one may take minutes, or fail.
      _write(result, folder)
    result['memory'] = {'ours': _most_memory()}
    if other:
      result['memory']['torchvision'] = other.ask('memory')['peak']
  result['peaks'] = peaks.highest(result['peaks'], peaks.measure_peaks())
  result['machine']['load_after'] = os.getloadavg()[0]
  floors.add_floors(result)
  _write(result, folder)
  print(report.text(result))
  plot.draw(result).save(folder / 'bench.png')
  logging.info('wrote bench.json and bench.png to %s', output)
  return result


def _measure(name, config, subject, other, options):
  """What one of `SUBJECTS` found."""
  rounds, warmup = options.rounds, options.warmup
  if name in _RUNS:
    return _RUNS[name](subject, other, rounds, warmup)
  if name == 'growth':
    return growth.run(config, rounds, warmup)
  # These need packages that the others do without.
  if name == 'input':
    from maskrcnn_jax.benchmarks import input_pipeline

    return input_pipeline.run(config)
  from maskrcnn_jax.benchmarks import evaluation

  return evaluation.run(config.evaluation.annotations_file)


def _describe(subject, options) -> dict[str, Any]:
  """What is measured, for the record."""
  return {
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


def _num_cpus() -> int:
  """CPUs that this process may use, as JAX takes them."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count()


def _most_memory() -> int:
  """Bytes of a device that were in use at once; on a CPU of this process."""
  stats = jax.local_devices()[0].memory_stats() or {}
  resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return stats.get('peak_bytes_in_use', resident)


def _machine() -> dict[str, Any]:
  return {
    'backend': jax.default_backend(),
    'device': jax.devices()[0].device_kind,
    'devices': jax.device_count(),
    'cpus': _num_cpus(),
    'jax': jax.__version__,
    'load_before': os.getloadavg()[0],
  }


def _write(result, folder) -> None:
  path = folder / 'bench.json'
  path.write_text(json.dumps(result, indent=2) + '\n')
