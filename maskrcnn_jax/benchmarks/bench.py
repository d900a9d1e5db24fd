"""Runs the chosen benchmarks and writes their results."""

import json
import logging
import os
import pathlib
from typing import Any

import jax

from maskrcnn_jax import files
from maskrcnn_jax.benchmarks import (
  compilation,
  machine,
  measure,
  profile,
  programs,
  report,
  torchvision_process,
)
from maskrcnn_jax.benchmarks.options import SUBJECTS, BenchOptions
from maskrcnn_jax.benchmarks.subject import make_subject
from maskrcnn_jax.errors import invalid

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
    output: empty folder, made if missing; None: nothing is written.
    is_real: whether images are of the config's records; else they are random.

  Returns:
    The content of `bench.json`: facts of the machine and the subject, and
    `tables`, rows of `measure.run` by title.

  Raises:
    UserError: an argument is wrong, or the folder is not empty.
  """
  if jax.process_count() > 1:
    raise invalid('number of processes', jax.process_count(), '1')
  if output:
    files.check_new_folder(output)
  peaks = machine.measure_peaks()
  subject = make_subject(config, is_real, min(options.rounds, _MAX_BATCHES))
  result = {
    'machine': machine.describe() | {'other_cpus': {}},
    # That of the products above; a smaller program does not show in the peak.
    'memory': {'before': machine.peak_memory()},
    'subject': subject.describe(),
    'tables': {},
  }
  with torchvision_process.beside(
    options.against,
    subject,
    machine.num_cpus(),
    options.channels_last,
    options.what,
  ) as (other, facts):
    result['torchvision'] = facts
    load = machine.OtherLoad(
      lambda: other.ask('usage')['cpu_seconds'] if other else 0.0
    )
    for name in [x for x in SUBJECTS if x in options.what]:
      logging.info('measuring %s', name)
      load.read()
      result['tables'] |= _measure(
        name, config, subject, other, options, output
      )
      result['machine']['other_cpus'][name] = load.read()
      # Written at once: the next one may take minutes, or fail.
      _write(result, output)
    result['memory']['maskrcnn_jax'] = machine.peak_memory()
    if other:
      result['memory'][subject.peer] = other.ask('usage')['peak_memory']
  again = machine.measure_peaks()
  result['peaks'] = {name: max(x, again[name]) for name, x in peaks.items()}
  result['machine']['load_after'] = os.getloadavg()[0]
  for rows in result['tables'].values():
    measure.add_floors(rows, result['peaks'], subject.model.dtype)
  _write(result, output)
  print(report.text(result))
  if output:
    report.draw(result, pathlib.Path(output, 'bench.png'))
    logging.info('wrote bench.json and bench.png to %s', output)
  return result


def _measure(name, config, subject, other, options, output):
  """Rows by title of one of `SUBJECTS`."""
  match name:
    case 'step':
      return {'train step': programs.training(subject, other, options)}
    case 'inference':
      return {'inference': programs.inference(subject, other, options)}
    case 'backbone':
      title = 'backbone, forward and backward'
      return {title: programs.backbone(subject, other, options)}
    case 'compilation':
      return {'compilation': compilation.run(subject)}
    case 'profile':
      sides = {
        'a step': programs.step_side,
        'detection': programs.detection_side,
      }
      return {
        f'kernels of {name}, from a trace': profile.run(
          *(make(subject), options.rounds, options.warmup),
          output and f'{output}/trace/{name.split()[-1]}',
        )
        for name, make in sides.items()
      }
    case 'growth':
      title = 'a step, one size changed at a time'
      return {title: programs.growth(config, options)}
    # These need TensorFlow or pycocotools, which the others do without.
    case 'input':
      from maskrcnn_jax.benchmarks import input_pipeline

      title = 'input, processor time of an image'
      return {title: input_pipeline.run(config, options.rounds)}
    case 'evaluation':
      from maskrcnn_jax.benchmarks import evaluation

      section = config.evaluation
      rows = evaluation.run(
        section.annotations_file,
        num_processes=section.get('num_processes'),
        scorer=section.get('scorer', 'pycocotools'),
      )
      return {'evaluation': rows}


def _write(result, output) -> None:
  if output:
    text = json.dumps(result, indent=2) + '\n'
    files.write_text(pathlib.Path(output, 'bench.json'), text)
