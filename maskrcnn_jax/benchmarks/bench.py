"""Runs the chosen benchmarks and writes their results."""

import json
import logging
import os
import pathlib
from typing import Any

import jax

from maskrcnn_jax import files
from maskrcnn_jax.benchmarks import (
  comparison,
  compilation,
  growth,
  machine,
  report,
  stages,
  torchvision_process,
)
from maskrcnn_jax.benchmarks.options import SUBJECTS, BenchOptions
from maskrcnn_jax.benchmarks.subject import make_subject
from maskrcnn_jax.errors import invalid

_COMPARISONS = {
  'step': comparison.training,
  'inference': comparison.inference,
  'backbone': comparison.backbone,
}
# More would only take memory.
_MAX_BATCHES = 8


def bench(
  config: Any,
  options: BenchOptions,
  output: str | None = None,
  is_real: bool = False,
) -> dict[str, Any]:
  """Measures, prints tables, and writes `bench.json` and `bench.png`.

  Args:
    config: a ConfigDict with the sections `model` and `input`.
    options: see `BenchOptions`.
    output: folder, made if missing; None: nothing is written.
    is_real: whether images are of the config's records; else they are random.

  Returns:
    The content of `bench.json`.

  Raises:
    UserError: an argument is wrong.
    FileExistsError: the folder has results already.
  """
  if jax.process_count() > 1:
    raise invalid('number of processes', jax.process_count(), '1')
  if output and pathlib.Path(output, 'bench.json').exists():
    raise FileExistsError(
      f'{output} holds the results of an earlier run; choose another --output.'
    )
  result = {'machine': machine.describe(), 'peaks': machine.measure_peaks()}
  subject = make_subject(config, is_real, min(options.rounds, _MAX_BATCHES))
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
  with torchvision_process.beside(
    options.against, subject, machine.num_cpus(), options.channels_last
  ) as (other, facts):
    result['torchvision'] = facts
    load = machine.OtherLoad([other.pid] if other else [])
    result['machine']['other_cpus'] = {}
    for name in [x for x in SUBJECTS if x in options.what]:
      logging.info('measuring %s', name)
      load.read()
      result[name] = _measure(name, config, subject, other, options)
      result['machine']['other_cpus'][name] = load.read()
      # Written at once: the next one may take minutes, or fail.
      _write(result, output)
    result['memory'] = {'ours': machine.peak_memory()}
    if other:
      result['memory']['torchvision'] = other.ask('memory')['peak']
  result['peaks'] = machine.highest(result['peaks'], machine.measure_peaks())
  result['machine']['load_after'] = os.getloadavg()[0]
  machine.add_floors(result)
  _write(result, output)
  print(report.text(result))
  if output:
    report.draw(result, pathlib.Path(output, 'bench.png'))
    logging.info('wrote bench.json and bench.png to %s', output)
  return result


def _measure(name, config, subject, other, options):
  """The result of one of `SUBJECTS`."""
  rounds, warmup = options.rounds, options.warmup
  if name in _COMPARISONS:
    return _COMPARISONS[name](subject, other, rounds, warmup)
  if name == 'compilation':
    return compilation.run(subject)
  if name == 'stages':
    return stages.run(subject, rounds, warmup)
  if name == 'growth':
    return growth.run(config, rounds, warmup)
  # These need TensorFlow or pycocotools, which the others do without.
  if name == 'input':
    from maskrcnn_jax.benchmarks import input_pipeline

    return input_pipeline.run(config)
  from maskrcnn_jax.benchmarks import evaluation

  section = config.evaluation
  return evaluation.run(
    section.annotations_file,
    num_processes=section.get('num_processes'),
    scorer=section.get('scorer', 'pycocotools'),
  )


def _write(result, output) -> None:
  if output:
    text = json.dumps(result, indent=2) + '\n'
    files.write_text(pathlib.Path(output, 'bench.json'), text)
