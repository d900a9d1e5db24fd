"""Report of benchmarks: tables of one run or of several, and a bar chart.

`python -m maskrcnn_jax.benchmarks.report FOLDER` prints one table of all the
`*/bench.json` in a folder.
"""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from maskrcnn_jax import charts, tables
from maskrcnn_jax.benchmarks.measure import Row
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.tables import number, table

_RATIO = '{0[median]:.2f} ({0[lowest]:.2f} to {0[highest]:.2f})'.format
# Columns, the path of their value in a row, and its unit or form.
_COLUMNS = (
  ('ms', 'seconds.median', 1e-3),
  ('lowest', 'seconds.lowest', 1e-3),
  ('highest', 'seconds.highest', 1e-3),
  ('of all', 'share', '{:.1%}'.format),
  ('images/s', 'images_per_second', 1),
  ('our time / theirs', 'ratio', _RATIO),
  ('images/CPU s', 'images_per_cpu_second', 1),
  ('CPU s', 'cpu_seconds', 1),
  ('GFLOP', 'program.flops', 1e9),
  ('of peak', 'peak_share', '{:.1%}'.format),
  ('floor ms', 'floor.seconds', 1e-3),
  ('bound by', 'floor.bound', str),
  ('gap ms', 'gap_seconds', 1e-3),
  ('least GB', 'program.memory.least_moved', 1e9),
  ('GB', 'program.bytes_accessed', 1e9),
  ('traffic ms', 'traffic_seconds', 1e-3),
  ('needs GiB', 'program.memory.needed', 2**30),
  ('peak GiB', 'peak_memory', str),
  ('kernels', 'kernels', 1),
  ('Python s', 'trace_seconds', 1),
  ('compiler s', 'compile_seconds', 1),
  ('kept MB', 'cache_bytes', 1e6),
)
_SUMMARY = (
  *('ms', 'images/s', 'our time / theirs', 'of peak'),
  *('needs GiB', 'peak GiB'),
)
# CPUs that a quiet machine uses by itself.
_QUIET = 0.1


def text(result: dict[str, Any]) -> str:
  """Markdown tables of a `bench.bench` result."""
  peaks = result['peaks']
  units = [f'{x} GFLOP/s' for x in ('float32', 'bfloat16')] + ['copy GB/s']
  names = ('float32', 'bfloat16', 'bandwidth')
  cells = {unit: number(peaks[x], 1e9) for unit, x in zip(units, names)}
  parts = [_heading(result), _warning(result['machine']), table([cells])]
  for title, rows in result['tables'].items():
    parts += [f'{title.capitalize()}:', table(_cells(rows))]
    gaps = [row for row in rows if 'share' in row and 'floor' in row]
    if gaps:
      worst = max(gaps, key=lambda row: row['gap_seconds'])
      parts.append(
        f'Furthest from its floor: {worst["name"]}, '
        f'{number(worst["seconds"]["median"], 1e-3)} ms; '
        f'the floor is {number(worst["floor"]["seconds"], 1e-3)} ms.'
      )
  return '\n\n'.join(part for part in parts if part)


def _cells(rows: Sequence[Row]) -> list[dict[str, str]]:
  """The columns that some row has."""
  found = [{'name': row['name'], **tables.cells(row, _COLUMNS)} for row in rows]
  used = [x for x in found[0] if any(cells[x] != '-' for cells in found)]
  return [{x: cells[x] for x in used} for cells in found]


def _canvas(subject) -> str:
  return 'x'.join(map(str, subject['canvas']))


def _heading(result) -> str:
  machine, subject = result['machine'], result['subject']
  other, beside = result.get('torchvision'), ''
  if other:
    layout = ', channels_last' if other['channels_last'] else ''
    beside = (
      f', beside torchvision {other["torchvision"]}, torch {other["torch"]}'
      f'{layout}, {other["threads"]} threads'
    )
  memory = ', '.join(
    f'{side} {number(x, 2**30)} GiB'
    for side, x in result['memory'].items()
    if side != 'before'
  )
  return (
    f'{machine["devices"]} x {machine["device"]}, {machine["cpus"]} CPUs, jax '
    f'{machine["jax"]}{beside}. Batches of {subject["batch_size"]} at '
    f'{_canvas(subject)}, {subject["dtype"]}, {subject["num_classes"]} classes,'
    f' images: {subject["images"]}. Load {machine["load_before"]:.1f} before, '
    f'{machine["load_after"]:.1f} after. Peak memory: {memory}.'
  )


def _warning(machine) -> str:
  """A warning of load by other processes; '' on a quiet machine."""
  found = ', '.join(
    f'{number(cpus)} during {name}'
    for name, cpus in machine['other_cpus'].items()
    if cpus and cpus > _QUIET
  )
  return found and (
    f'Other processes used some of the {machine["cpus"]} CPUs: {found}. That '
    'slows the sides unequally: do not quote these ratios.'
  )


def summary(folder: str) -> str:
  """One table of all the `*/bench.json` in a folder, smaller batches first.

  Raises:
    UserError: there is none.
  """
  paths = sorted(pathlib.Path(folder).glob('*/bench.json'))
  results = [json.loads(path.read_text()) for path in paths]
  # A run that was interrupted has no load at its end.
  results = [x for x in results if 'load_after' in x['machine']]
  if not results:
    raise UserError(f'{folder} holds no results: no */bench.json.', path=folder)
  results.sort(
    key=lambda x: (x['subject']['images'], x['subject']['batch_size'])
  )
  columns = [x for x in _COLUMNS if x[0] in _SUMMARY]
  return table(
    [
      {
        'what': title,
        'batch': str(result['subject']['batch_size']),
        'canvas': _canvas(result['subject']),
        'dtype': result['subject']['dtype'],
        'images': result['subject']['images'],
        'side': row['name'],
        **tables.cells(row | _peak(result['memory'], row['name']), columns),
      }
      for result in results
      for title in ('train step', 'inference', 'backbone, forward and backward')
      for row in result['tables'].get(title, ())
    ]
  )


def _peak(memory, side) -> dict[str, str]:
  """The largest memory in use by a side in its whole run, as a cell."""
  bytes_, before = memory.get(side.partition(',')[0]), memory.get('before', 0)
  if bytes_ is None:
    return {}
  sign = '<= ' if side == 'maskrcnn_jax' and bytes_ <= before else ''
  return {'peak_memory': f'{sign}{number(bytes_, 2**30)}'}


def draw(result: dict[str, Any], path: Any) -> None:
  """Writes a PNG of the times in each table, and of the memory of programs."""
  charts.save(charts.bar_chart(bar_panels(result)), path)


def bar_panels(result: dict[str, Any]) -> list[charts.BarPanel]:
  """The panels of `draw`; red lines are floors."""
  panels = []
  for title, rows in result['tables'].items():
    rows = [row for row in rows if 'seconds' in row]
    bars = [
      charts.Bar(
        row['name'],
        row['seconds']['median'] * 1e3,
        charts.ORANGE if 'ratio' in row else charts.BLUE,
        row['floor']['seconds'] * 1e3 if 'floor' in row else None,
      )
      for row in rows
    ]
    panels.append(charts.BarPanel(f'ms of {title} (line: floor)', bars))
    memory = [
      charts.Bar(row['name'], row['program']['memory']['needed'] / 2**30)
      for row in rows
      if row.get('program') and 'needed' in row['program']['memory']
    ]
    panels.append(charts.BarPanel(f'GiB needed by {title}', memory))
  return panels


if __name__ == '__main__':
  try:
    print(summary(sys.argv[1]))
  except UserError as error:
    sys.exit(str(error))
