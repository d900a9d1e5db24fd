"""Report of benchmarks: tables of one run or of several, and a bar chart.

`python -m maskrcnn_jax.benchmarks.report FOLDER` prints one table of all the
`*/bench.json` in a folder.
"""

import json
import pathlib
import sys
from typing import Any

from maskrcnn_jax import charts
from maskrcnn_jax.benchmarks import machine
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.tables import number, table

NAMES = {
  'step': 'train step',
  'inference': 'inference',
  'backbone': 'backbone, forward and backward',
}
SIDES = {
  'ours': 'maskrcnn_jax',
  'torchvision': 'torchvision',
  'torchvision_free': 'torchvision, free-running',
}
_KINDS = {'train': 'training', 'inference': 'detection'}


def text(result: dict[str, Any]) -> str:
  """Markdown tables of a `bench.bench` result, with floors."""
  peaks = result['peaks']
  cells = {f'{x} GFLOP/s': number(n, 1e9) for x, n in peaks['flops'].items()}
  cells['copy GB/s'] = number(peaks['bandwidth'], 1e9)
  sides = [_side_cells(*measured) for measured in _sides(result)]
  parts = [_heading(result), _warning(result), table([cells]), table(sides)]
  for kind, stages in result.get('stages', {}).items():
    parts += _stage_parts(kind, stages)
  if 'compilation' in result:
    parts += ['Compilation:', table(_compile_cells(result))]
  if 'growth' in result:
    parts += [
      'A step with synthetic images, one size changed at a time:',
      table([_growth_cells(row) for row in result['growth']]),
    ]
  for name in ('input', 'evaluation'):
    if name in result:
      parts += [f'{name.capitalize()}:', table(_plain_cells(result[name]))]
  return '\n\n'.join(part for part in parts if part)


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
  rows = []
  for result in results:
    subject = result['subject']
    for name, side, values, ratio in _sides(result):
      is_random = subject['images'] == 'synthetic'
      rows.append(
        {
          'what': NAMES[name],
          'batch': str(subject['batch_size']),
          'canvas': _canvas(subject),
          'dtype': subject['dtype'],
          'images': 'random' if is_random else 'real',
          'side': SIDES[side],
          'images/s': number(values['images_per_second']),
          'our time / theirs': ratio,
          'of peak': _share(values),
        }
      )
  return table(rows)


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
  used = result['memory']
  memory = ', '.join(
    f'{SIDES[side]} {number(peak, 2**30)} GiB' for side, peak in used.items()
  )
  return (
    f'{machine["devices"]} x {machine["device"]}, {machine["cpus"]} CPUs, jax '
    f'{machine["jax"]}{beside}. Batches of {subject["batch_size"]} at '
    f'{_canvas(subject)}, {subject["dtype"]}, {subject["num_classes"]} classes,'
    f' images: {subject["images"]}. Load {machine["load_before"]:.1f} before, '
    f'{machine["load_after"]:.1f} after. Peak memory: {memory}.'
  )


def _warning(result) -> str:
  """A warning of load by other processes; '' on a quiet machine."""
  shares = result['machine']['other_cpus']
  busy = {x: n for x, n in shares.items() if n and n > machine.QUIET}
  if not busy:
    return ''
  found = ', '.join(f'{number(n)} during {name}' for name, n in busy.items())
  return (
    f'Other processes used some of the {result["machine"]["cpus"]} CPUs: '
    f'{found}. That slows the sides unequally: do not quote these ratios.'
  )


def _sides(result):
  """Subject, side, measurements, and ratio of our time to theirs, as a text."""
  for name in NAMES:
    measured = result.get(name, {})
    for side in [x for x in SIDES if x in measured]:
      ratio = measured.get('ratios', {}).get(side)
      shown = (
        '-'
        if ratio is None
        else (
          f'{ratio["median"]:.2f} '
          f'({ratio["lowest"]:.2f} to {ratio["highest"]:.2f})'
        )
      )
      yield name, side, measured[side], shown


def _side_cells(name, side, values, ratio) -> dict[str, str]:
  return {
    'what': NAMES[name],
    'side': SIDES[side],
    **_time_cells(values),
    'images/s': number(values['images_per_second']),
    'our time / theirs': ratio,
    **_program_cells(values),
  }


def _time_cells(values) -> dict[str, str]:
  seconds = values['seconds'] or {}
  return {
    name: number(seconds.get(key), 1e-3)
    for name, key in (
      ('ms', 'median'),
      ('lowest', 'lowest'),
      ('highest', 'highest'),
    )
  }


def _program_cells(values) -> dict[str, str]:
  program = values.get('program') or {}
  return {
    'GFLOP': number(program.get('flops'), 1e9),
    'of peak': _share(values),
    'needs GiB': number(program.get('memory', {}).get('needed'), 2**30),
  }


def _share(values) -> str:
  share = values.get('peak_share')
  return '-' if share is None else f'{share:.1%}'


def _stage_parts(kind, stages) -> list[str]:
  """The table of stages, and the one furthest from its floor."""
  total = sum(stage['seconds']['median'] for stage in stages)
  worst = max(stages, key=lambda stage: stage['gap_seconds'])
  return [
    f'Stages of {_KINDS[kind]}, each alone, {number(total, 1e-3)} ms in all:',
    table([_stage_cells(stage, total) for stage in stages]),
    f'Furthest from its floor: {worst["name"]}, '
    f'{number(worst["seconds"]["median"], 1e-3)} ms; '
    f'the floor is {number(worst["floor"]["seconds"], 1e-3)} ms.',
  ]


def _stage_cells(stage, total) -> dict[str, str]:
  work, floor, seconds = stage['program'], stage['floor'], stage['seconds']
  return {
    'stage': stage['name'],
    **_time_cells(stage),
    'of all': f'{seconds["median"] / total:.1%}',
    'GFLOP': number(work['flops'], 1e9),
    'least GB': number(work['memory']['least_moved'], 1e9),
    'floor ms': number(floor['seconds'], 1e-3),
    'bound by': floor['bound'],
    'gap ms': number(stage['gap_seconds'], 1e-3),
    'of peak': _share(stage),
    'GB': number(work['bytes_accessed'], 1e9),
    'traffic ms': number(stage['traffic_seconds'], 1e-3),
  }


def _compile_cells(result) -> list[dict[str, str]]:
  return [
    {
      'what': NAMES[name],
      'cache': kind,
      'Python s': number(values[kind]['trace_seconds']),
      'compiler s': number(values[kind]['compile_seconds']),
      'in all s': number(values[kind]['seconds']),
      'kept MB': number(values['cache_bytes'], 1e6),
    }
    for name, values in result['compilation'].items()
    for kind in ('cold', 'cached')
  ]


def _growth_cells(row) -> dict[str, str]:
  return {
    'size': row['axis'],
    'value': str(row['value']),
    **_time_cells(row),
    'images/s': number(row['images_per_second']),
    **_program_cells(row),
  }


def _plain_cells(values, prefix='') -> list[dict[str, str]]:
  """Every number or text of nested dicts, under its path."""
  rows = []
  for name, value in values.items():
    if isinstance(value, dict):
      rows += _plain_cells(value, f'{prefix}{name}.')
    elif isinstance(value, int | float | str):
      shown = value if isinstance(value, str) else number(value)
      rows.append({'what': f'{prefix}{name}', 'value': shown})
  return rows


def draw(result: dict[str, Any], path: Any) -> None:
  """Writes a PNG of the sides, the stages, and the growth of a step."""
  charts.save(charts.bar_chart(bar_panels(result)), path)


def bar_panels(result: dict[str, Any]) -> list[charts.BarPanel]:
  """The panels of `draw`; those without measurements are empty."""

  def panel(title, rows):
    title = f'ms of {title} (line: floor)'
    return charts.BarPanel(title, [_bar(*row) for row in rows])

  sides = [
    (f'{NAMES[name]}: {SIDES[side]}', values, side == 'ours')
    for name, side, values, _ in _sides(result)
  ]
  panels = [panel('a batch', sides)]
  for kind, stages in result.get('stages', {}).items():
    rows = [(x['name'], x) for x in stages]
    panels.append(panel(f'the stages of {_KINDS[kind]}, each alone', rows))
  growth = [
    (f'{row["axis"]} {row["value"]}', row)
    for row in result.get('growth', [])
    if row['seconds']
  ]
  memory = [
    charts.Bar(label, row['program']['memory']['needed'] / 2**30)
    for label, row in growth
  ]
  return [
    *panels,
    panel('a step, one size changed at a time', growth),
    charts.BarPanel('GiB that a step needs', memory),
  ]


def _bar(label, values, is_ours=True) -> charts.Bar:
  """Milliseconds, and the floor if there is one."""
  return charts.Bar(
    label,
    values['seconds']['median'] * 1e3,
    charts.BLUE if is_ours else charts.ORANGE,
    values['floor']['seconds'] * 1e3 if 'floor' in values else None,
  )


if __name__ == '__main__':
  try:
    print(summary(sys.argv[1]))
  except UserError as error:
    sys.exit(str(error))
