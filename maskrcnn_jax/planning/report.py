"""Report of a plan: Markdown tables and a bar chart."""

import collections
from collections.abc import Sequence
from typing import Any

from maskrcnn_jax import charts
from maskrcnn_jax.tables import number, table

_BATCH_COLORS = (
  charts.BLUE,
  charts.SKY,
  charts.GREEN,
  charts.ORANGE,
  charts.PINK,
  charts.YELLOW,
)


def text(rows: Sequence[dict]) -> str:
  """Markdown tables of rows of `plan.plan_step`."""
  parts = [
    'Memory of one device, in GiB:',
    table([_memory_cells(row) for row in rows]),
    'Work of one device, and the time of a step:',
    table([_work_cells(row) for row in rows]),
    'Input that each host must deliver at that rate:',
    table([_input_cells(row) for row in rows]),
    'Data that devices exchange in a step, largest first:',
    table([x for row in rows for x in _collective_cells(row)]),
  ]
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

  def capacity_gib(row):
    capacity = row['memory']['capacity']
    return capacity and capacity / 2**30

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


def _memory_cells(row) -> dict[str, str]:
  memory = row['memory']
  return _name_cells(row) | {
    'devices': str(row['devices']),
    'batch': str(row['batch_size']),
    'learning rate': f'{row["learning_rate"]:.4g}',
    **{
      name: _gib(memory.get(name))
      for name in ('arguments', 'temporaries', 'program', 'peak')
    },
    'needed': _gib(memory['needed']),
    'capacity': _gib(memory['capacity']),
    'fits': 'yes' if memory['fits'] else 'NO',
  }


def _work_cells(row) -> dict[str, str]:
  time = row['time'] or {}
  return _name_cells(row) | {
    'GFLOP per image': number(row.get('flops_per_image'), 1e9),
    'GB accessed': number(row['bytes_accessed'], 1e9),
    **{
      f'{name} ms': number(time.get(name), 1e-3)
      for name in ('compute', 'memory', 'network')
    },
    'step ms': number(time.get('step_seconds'), 1e-3),
    'from': time.get('source', '-'),
    'images/s': number(time.get('images_per_second')),
    'compile s': number(row['compile_seconds']),
  }


def _input_cells(row) -> dict[str, str]:
  values = row['input']
  return _name_cells(row) | {
    'hosts': str(row['hosts']),
    'MB per image': number(values['bytes_per_image'], 1e6),
    'images/s per host': number(values.get('images_per_second_per_host')),
    'GB/s per host': number(values.get('bytes_per_second_per_host'), 1e9),
  }


def _collective_cells(row) -> list[dict[str, str]]:
  """Cells of every kind of collective, inside and outside of loops."""
  groups = collections.defaultdict(list)
  for x in row['collectives'] or ():
    groups[x['kind'], x['times'] is None].append(x)
  return [
    _name_cells(row)
    | {
      'kind': kind,
      'count': str(sum(x['count'] * (x['times'] or 1) for x in group)),
      'MB': f'{sum(x["bytes"] for x in group) / 1e6:.4g}',
      'frequency': 'per loop iteration' if in_loop else 'per step',
      'largest source': _short(group[0]['source']),
    }
    for (kind, in_loop), group in groups.items()
  ]


def _name_cells(row) -> dict[str, str]:
  return {
    'topology': row['topology'],
    'per device': str(row['batch_per_device']),
  }


def _short(source: str, length: int = 60) -> str:
  return source if len(source) <= length else f'...{source[3 - length :]}'


def _gib(value) -> str:
  return '-' if value is None else f'{value / 2**30:.2f}'
