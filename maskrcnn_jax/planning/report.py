"""A plan as tables and as a picture."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from maskrcnn_jax.tables import number, table

# Colours of batch sizes, and of what does not fit; Okabe and Ito's, which all
# eyes tell apart.
_COLOURS = ('#0072b2', '#56b4e9', '#009e73', '#e69f00', '#cc79a7', '#f0e442')
_TOO_LARGE = '#d55e00'
_INK, _GRID = '#222222', '#dddddd'
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 900, 260, 70, 20, 46, 44


def text(rows: Sequence[dict]) -> str:
  """Markdown tables of memory, work, time and input, and of the collectives.

  Args:
    rows: see `plan.plan_step`.
  """
  parts = [
    'Memory of one device, and who shares the step:',
    table([_memory_cells(row) for row in rows]),
    'Work of one device, and the time of a step:',
    table([_work_cells(row) for row in rows]),
    'What each host must feed at that rate:',
    table([_input_cells(row) for row in rows]),
    'What devices send each other in a step, most first:',
    table([x for row in rows for x in _collective_cells(row)]),
  ]
  return '\n\n'.join(part for part in parts if part)


def draw(rows: Sequence[dict]) -> Image.Image:
  """Bars of memory, of collectives and of time, over topologies and batches.

  Args:
    rows: see `plan.plan_step`.
  """
  panels = (
    ('GiB per device (line: what there is)', _memory_gib, _capacity_gib),
    ('MB that collectives combine in a step', _collective_mb, None),
    ('Estimated ms of a step', _step_ms, None),
  )
  # Without a chip that is known there is no time to show.
  panels = [p for p in panels if any(p[1](row) is not None for row in rows)]
  image = Image.new('RGB', (_WIDTH, _HEIGHT * len(panels)), 'white')
  for index, (title, value, limit) in enumerate(panels):
    _draw_panel(
      ImageDraw.Draw(image), index * _HEIGHT, title, rows, value, limit
    )
  return image


def _memory_cells(row) -> dict[str, str]:
  memory = row['memory']
  return _name_cells(row) | {
    'devices': str(row['devices']),
    'batch': str(row['batch_size']),
    'learning rate': f'{row["learning_rate"]:.4g}',
    'arguments': _gib(memory.get('arguments')),
    'temporaries': _gib(memory.get('temporaries')),
    'program': _gib(memory.get('program')),
    'peak': _gib(memory.get('peak')),
    'needed GiB': _gib(memory['needed']),
    'there is': _gib(memory['capacity']),
    'fits': 'yes' if memory['fits'] else 'NO',
  }


def _work_cells(row) -> dict[str, str]:
  time = row['time'] or {}
  return _name_cells(row) | {
    'GFLOP an image': number(row.get('flops_per_image'), 1e9),
    'GB accessed': number(row['bytes_accessed'], 1e9),
    'compute ms': number(time.get('compute'), 1e-3),
    'memory ms': number(time.get('memory'), 1e-3),
    'network ms': number(time.get('network'), 1e-3),
    'step ms': number(time.get('step_seconds'), 1e-3),
    'from': time.get('source', '-'),
    'images/s': number(time.get('images_per_second')),
    'compiled in s': number(row['compile_seconds']),
  }


def _input_cells(row) -> dict[str, str]:
  values = row['input']
  return _name_cells(row) | {
    'hosts': str(row['hosts']),
    'MB an image': number(values['bytes_per_image'], 1e6),
    'images/s a host': number(values.get('images_per_second_per_host')),
    'GB/s a host': number(values.get('bytes_per_second_per_host'), 1e9),
  }


def _collective_cells(row) -> list[dict[str, str]]:
  """Cells for every kind of collective, inside and outside of loops."""
  groups = {}
  for x in row['collectives'] or ():
    group = groups.setdefault((x['kind'], x['times'] is None), [])
    group.append(x)
  return [
    _name_cells(row)
    | {
      'kind': kind,
      'count': str(sum(x['count'] * (x['times'] or 1) for x in group)),
      'MB': f'{sum(x["bytes"] for x in group) / 1e6:.4g}',
      'how often': 'per round of a loop' if in_loop else 'per step',
      'most of it from': _short(group[0]['source']),
    }
    for (kind, in_loop), group in groups.items()
  ]


def _name_cells(row) -> dict[str, str]:
  return {
    'topology': row['topology'],
    'a device': str(row['batch_per_device']),
  }


def _short(source: str, length: int = 60) -> str:
  return source if len(source) <= length else f'...{source[3 - length :]}'


def _gib(value) -> str:
  return '-' if value is None else f'{value / 2**30:.2f}'


def _memory_gib(row) -> float:
  return row['memory']['needed'] / 2**30


def _capacity_gib(row) -> float | None:
  capacity = row['memory']['capacity']
  return capacity and capacity / 2**30


def _collective_mb(row) -> float | None:
  found = row['collectives']
  return None if found is None else sum(x['bytes'] for x in found) / 1e6


def _step_ms(row) -> float | None:
  return row['time'] and row['time']['step_seconds'] * 1e3


def _draw_panel(canvas, top, title, rows, value, limit) -> None:
  """One bar a row, in groups of topologies, above their names."""
  small, large = ImageFont.load_default(12), ImageFont.load_default(14)
  values = [value(row) for row in rows]
  limits = [limit(row) if limit else None for row in rows]
  highest = 1.1 * max([x for x in (*values, *limits) if x] or [1.0])
  batches = sorted({row['batch_per_device'] for row in rows})
  bottom = top + _HEIGHT - _BOTTOM
  height = _HEIGHT - _TOP - _BOTTOM

  def y_of(x):
    return bottom - height * x / highest

  canvas.text((_LEFT, top + 10), title, _INK, large)
  for part in (0.0, 0.5, 1.0):
    y = y_of(part * highest)
    canvas.line([(_LEFT, y), (_WIDTH - _RIGHT, y)], _GRID)
    label = f'{part * highest:.3g}'
    canvas.text((_LEFT - 8, y), label, _INK, small, anchor='rm')
  width = (_WIDTH - _LEFT - _RIGHT) / len(rows)
  for index, (row, x, most) in enumerate(zip(rows, values, limits)):
    left = _LEFT + index * width
    box = [left + 0.15 * width, y_of(x or 0), left + 0.85 * width, bottom]
    colour = _COLOURS[batches.index(row['batch_per_device']) % len(_COLOURS)]
    colour = colour if row['memory']['fits'] else _TOO_LARGE
    canvas.rectangle(box, colour)
    middle = left + width / 2
    shown = '-' if x is None else f'{x:.3g}'
    canvas.text((middle, box[1] - 2), shown, _INK, small, anchor='ms')
    if most:
      y = y_of(most)
      canvas.line([(left, y), (left + width, y)], _TOO_LARGE, width=2)
    name = f'{row["topology"]}\n{row["batch_per_device"]} a device'
    canvas.multiline_text(
      (middle, bottom + 4), name, _INK, small, anchor='ma', align='center'
    )
