"""Report of a plan: Markdown tables and a bar chart."""

import collections
from collections.abc import Sequence
from typing import Any

from maskrcnn_jax import charts
from maskrcnn_jax.tables import cells, table

_BATCH_COLORS = (
  charts.BLUE,
  charts.SKY,
  charts.GREEN,
  charts.ORANGE,
  charts.PINK,
  charts.YELLOW,
)
_GIB = 'arguments', 'temporaries', 'program', 'peak', 'needed', 'capacity'
_NAMES = (
  ('topology', 'topology', str),
  ('per device', 'batch_per_device', str),
)
_MEMORY = (
  ('devices', 'devices', str),
  ('batch', 'batch_size', str),
  ('learning rate', 'learning_rate', '{:.4g}'.format),
  *((x, f'memory.{x}', lambda value: f'{value / 2**30:.2f}') for x in _GIB),
  ('fits', 'memory.fits', lambda fits: 'yes' if fits else 'NO'),
)
_WORK = (
  ('GFLOP per image', 'flops_per_image', 1e9),
  ('GB accessed', 'bytes_accessed', 1e9),
  ('compute ms', 'time.compute', 1e-3),
  ('memory ms', 'time.memory', 1e-3),
  ('network ms', 'time.network', 1e-3),
  ('step ms', 'time.step_seconds', 1e-3),
  ('from', 'time.source', str),
  ('images/s', 'time.images_per_second', 1),
  ('compile s', 'compile_seconds', 1),
)
_INPUT = (
  ('hosts', 'hosts', str),
  ('MB per image', 'input.bytes_per_image', 1e6),
  ('images/s per host', 'input.images_per_second_per_host', 1),
  ('GB/s per host', 'input.bytes_per_second_per_host', 1e9),
)
_STAGES = (
  ('stage', 'stage', str),
  ('pass', 'pass', str),
  ('kernels', 'kernels', str),
  ('GB', 'bytes', 1e9),
  ('on-chip GB', 'on_chip_bytes', 1e9),
  ('GFLOP of products', 'flops', 1e9),
  ('M cycles', 'cycles', 1e6),
  ('without cycles', 'without_cycles', str),
  ('ms', 'seconds', 1e-3),
  ('floor ms', 'floor_seconds', 1e-3),
  ('gap ms', 'gap_seconds', 1e-3),
)


def text(rows: Sequence[dict]) -> str:
  """Markdown tables of rows of `plan.plan_step`."""
  titles = {
    'Memory of one device, in GiB:': _MEMORY,
    'Work of one device, and the time of a step:': _WORK,
    'Input that each host must deliver at that rate:': _INPUT,
  }
  parts = []
  for title, columns in titles.items():
    parts += [title, table([cells(x, _NAMES + columns) for x in rows])]
  found = [x for row in rows for x in _collective_cells(row)]
  parts += [
    'Data that devices exchange in a step, largest first:',
    table(found),
  ]
  parts += map(breakdown_text, rows)
  return '\n\n'.join(part for part in parts if part)


def draw(rows: Sequence[dict], path: Any) -> None:
  """Writes a PNG of memory, collectives and time."""
  charts.save(charts.bar_chart(bar_panels(rows)), path)


def bar_panels(rows: Sequence[dict]) -> list[charts.BarPanel]:
  """The panels of `draw`: a bar for each row; red where it does not fit."""
  batches = sorted({row['batch_per_device'] for row in rows})

  def panel(title, value, limit=None):
    bars = []
    for row in rows:
      index = batches.index(row['batch_per_device']) % len(_BATCH_COLORS)
      color = _BATCH_COLORS[index] if row['memory']['fits'] else charts.RED
      label = f'{row["topology"]}, {row["batch_per_device"]} per device'
      bars.append(charts.Bar(label, value(row), color, limit and limit(row)))
    return charts.BarPanel(title, bars)

  def collective_mb(row):
    found = row['collectives']
    return None if found is None else sum(x['bytes'] for x in found) / 1e6

  panels = [
    panel(
      'GiB per device (line: capacity)',
      lambda row: row['memory']['needed'] / 2**30,
      lambda row: (
        row['memory']['capacity'] and row['memory']['capacity'] / 2**30
      ),
    ),
    panel('MB combined by collectives in a step', collective_mb),
    panel(
      'Estimated ms of a step',
      lambda row: row['time'] and row['time']['step_seconds'] * 1e3,
    ),
  ]
  # Without a known chip there is no time to show.
  return [x for x in panels if any(bar.value is not None for bar in x.bars)]


def _collective_cells(row) -> list[dict[str, str]]:
  """Cells of every kind of collective, inside and outside of loops."""
  groups = collections.defaultdict(list)
  for x in row['collectives'] or ():
    groups[x['kind'], x['times'] is None].append(x)
  return [
    cells(row, _NAMES)
    | {
      'kind': kind,
      'count': str(sum(x['count'] * (x['times'] or 1) for x in group)),
      'MB': f'{sum(x["bytes"] for x in group) / 1e6:.4g}',
      'frequency': 'per loop iteration' if in_loop else 'per step',
      'largest source': _short(group[0]['source']),
    }
    for (kind, in_loop), group in groups.items()
  ]


def breakdown_text(row: dict) -> str:
  """Tables of the stages and instructions of a program; '' without one."""
  found = row['breakdown']
  if not found:
    return ''
  stages = found['stages']
  total = {'stage': 'all', 'pass': ''}
  for name in stages[0]:
    values = [stage[name] for stage in stages]
    if name not in total:
      total[name] = None if None in values else sum(values)
  known = [x for x in _STAGES if total[x[1]] is not None]
  name = f'{row["topology"]}, {row["batch_per_device"]} per device'
  counts = {k: str(x) for k, x in found['instructions'].items()}
  parts = [
    f'Stages of the program for {name}:',
    table([cells(stage, known) for stage in [*stages, total]]),
    f'Instructions of the program for {name}:',
    table([counts]),
  ]
  return '\n\n'.join(parts)


def _short(source: str, length: int = 60) -> str:
  return source if len(source) <= length else f'...{source[3 - length :]}'
