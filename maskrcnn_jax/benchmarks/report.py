"""Results of the benchmarks as tables."""

from collections.abc import Sequence
from typing import Any

from maskrcnn_jax.benchmarks import floors, other_load
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
  """Markdown tables of everything that was measured.

  Args:
    result: see `bench.bench`, with floors.
  """
  parts = [_heading(result), _warning(result), table(_peak_cells(result))]
  sides = [x for name in NAMES for x in _side_cells(result, name)]
  parts.append(table(sides))
  for kind, stages in result.get('stages', {}).items():
    parts += _stage_parts(kind, stages)
  if 'compilation' in result:
    parts += ['Until a program can run:', table(_compile_cells(result))]
  if 'growth' in result:
    parts += [
      'A step with drawn images, one size changed at a time:',
      table(_growth_cells(result['growth'])),
    ]
  for name in ('input', 'evaluation'):
    if name in result:
      parts += [f'{name.capitalize()}:', table(_plain_cells(result[name]))]
  return '\n\n'.join(part for part in parts if part)


def comparison(results: Sequence[dict[str, Any]]) -> str:
  """One table of several runs, as of several batch sizes.

  Args:
    results: see `text`.
  """
  rows = []
  for result in results:
    subject = result['subject']
    height, width = subject['canvas']
    for name in NAMES:
      for side, values in _sides(result, name):
        rows.append(
          {
            'what': NAMES[name],
            'batch': str(subject['batch_size']),
            'canvas': f'{height}x{width}',
            'dtype': subject['dtype'],
            'images': 'drawn' if subject['images'] == 'synthetic' else 'real',
            'side': SIDES[side],
            'images/s': number(values['images_per_second']),
            'our time / theirs': _ratio(result, name, side),
            'of peak': _share(values),
          }
        )
  return table(rows)


def _heading(result) -> str:
  machine, subject = result['machine'], result['subject']
  height, width = subject['canvas']
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
    f'{height}x{width}, {subject["dtype"]}, {subject["num_classes"]} classes, '
    f'images: {subject["images"]}. Load {machine["load_before"]:.1f} before, '
    f'{machine["load_after"]:.1f} after. Most memory in use: {memory}.'
  )


def _warning(result) -> str:
  """What others did meanwhile, if it was enough to matter; '' otherwise."""
  shares = result['machine']['other_cpus']
  busy = {x: n for x, n in shares.items() if n and n > other_load.QUIET}
  if not busy:
    return ''
  found = ', '.join(f'{number(n)} during {name}' for name, n in busy.items())
  return (
    f'Other processes took of {result["machine"]["cpus"]} CPUs: {found}. That '
    'slows the sides unequally: these ratios are not to be quoted.'
  )


def _peak_cells(result) -> list[dict[str, str]]:
  peaks = result['peaks']
  cells = {
    f'{dtype} GFLOP/s': number(rate, 1e9)
    for dtype, rate in peaks['flops'].items()
  }
  return [{**cells, 'copy GB/s': number(peaks['bandwidth'], 1e9)}]


def _sides(result, name):
  """Sides of a subject and what was measured of them."""
  for side in SIDES:
    if side in result.get(name, {}):
      yield side, result[name][side]


def _side_cells(result, name) -> list[dict[str, str]]:
  """A row for every side of a subject."""
  return [
    {
      'what': NAMES[name],
      'side': SIDES[side],
      **_time_cells(values['seconds']),
      'images/s': number(values['images_per_second']),
      'our time / theirs': _ratio(result, name, side),
      'GFLOP': number(values.get('program', {}).get('flops'), 1e9),
      'of peak': _share(values),
      'needs GiB': number(_needed(values), 2**30),
    }
    for side, values in _sides(result, name)
  ]


def _time_cells(seconds) -> dict[str, str]:
  return {
    'ms': number(seconds['median'], 1e-3),
    'lowest': number(seconds['lowest'], 1e-3),
    'highest': number(seconds['highest'], 1e-3),
  }


def _ratio(result, name, side) -> str:
  """The ratio of our time to theirs, with the spread."""
  ratio = result[name].get('ratios', {}).get(side)
  if ratio is None:
    return '-'
  spread = f'{ratio["lowest"]:.2f} to {ratio["highest"]:.2f}'
  return f'{ratio["median"]:.2f} ({spread})'


def _share(values) -> str:
  share = values.get('peak_share')
  return '-' if share is None else f'{share:.1%}'


def _needed(values) -> float | None:
  return values['program']['memory']['needed'] if 'program' in values else None


def _stage_parts(kind, stages) -> list[str]:
  """The table of stages, and which is furthest from its floor."""
  total = sum(stage['seconds']['median'] for stage in stages)
  worst = floors.largest_gap(stages)
  return [
    f'Stages of {_KINDS[kind]}, each alone, {number(total, 1e-3)} ms in all:',
    table([_stage_cells(stage, total) for stage in stages]),
    f'Furthest from its floor: {worst["name"]}, '
    f'{number(worst["seconds"]["median"], 1e-3)} ms where '
    f'{number(worst["floor"]["seconds"], 1e-3)} ms would do.',
  ]


def _stage_cells(stage, total) -> dict[str, str]:
  work, floor, seconds = stage['program'], stage['floor'], stage['seconds']
  return {
    'stage': stage['name'],
    **_time_cells(seconds),
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


def _growth_cells(rows) -> list[dict[str, str]]:
  nothing = {'median': None, 'lowest': None, 'highest': None}
  return [
    {
      'grows': row['axis'],
      'to': str(row['value']),
      **_time_cells(row['seconds'] or nothing),
      'images/s': number(row['images_per_second']),
      'GFLOP': number(row['program'] and row['program']['flops'], 1e9),
      'needs GiB': number(row['program'] and _needed(row), 2**30),
      'of peak': _share(row),
    }
    for row in rows
  ]


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
