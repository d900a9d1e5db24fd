"""Results of the benchmarks as a picture: bars, and the floor of each."""

from typing import Any

from PIL import Image, ImageDraw, ImageFont

from maskrcnn_jax.benchmarks.report import NAMES, SIDES
from maskrcnn_jax.tables import number

# Okabe and Ito's colours, which all eyes tell apart.
_BAR, _OTHER, _FLOOR, _INK = '#0072b2', '#e69f00', '#d55e00', '#222222'
_WIDTH, _LEFT, _RIGHT, _ROW, _TITLE, _GAP = 900, 300, 80, 22, 34, 14


def draw(result: dict[str, Any]) -> Image.Image:
  """Horizontal bars: the sides, the stages, and how a step grows.

  Args:
    result: see `bench.bench`, with floors.
  """
  panels = [panel for panel in _panels(result) if panel[1]]
  heights = [_TITLE + _ROW * len(rows) + _GAP for _, rows in panels]
  image = Image.new('RGB', (_WIDTH, max(sum(heights), 1)), 'white')
  canvas, top = ImageDraw.Draw(image), 0
  for (title, rows), height in zip(panels, heights):
    _draw_panel(canvas, top, title, rows)
    top += height
  return image


def _panels(result):
  """Titles, and rows of a label, a value, a floor or None, and a colour."""
  sides = [
    (
      f'{NAMES[name]}: {SIDES[side]}',
      result[name][side]['seconds']['median'] * 1e3,
      _floor_ms(result[name][side]),
      _BAR if side == 'ours' else _OTHER,
    )
    for name in NAMES
    for side in SIDES
    if side in result.get(name, {})
  ]
  yield 'ms of a batch (line: floor)', sides
  for kind, stages in result.get('stages', {}).items():
    yield (
      f'ms of the stages of {kind}, each alone (line: floor)',
      [
        (x['name'], x['seconds']['median'] * 1e3, _floor_ms(x), _BAR)
        for x in stages
      ],
    )
  growth = [row for row in result.get('growth', []) if row['seconds']]
  labels = [f'{row["axis"]} {row["value"]}' for row in growth]
  yield (
    'ms of a step, one size changed at a time (line: floor)',
    [
      (label, row['seconds']['median'] * 1e3, _floor_ms(row), _BAR)
      for label, row in zip(labels, growth)
    ],
  )
  yield (
    'GiB that a step needs',
    [
      (label, row['program']['memory']['needed'] / 2**30, None, _BAR)
      for label, row in zip(labels, growth)
    ],
  )


def _floor_ms(values) -> float | None:
  return values['floor']['seconds'] * 1e3 if 'floor' in values else None


def _draw_panel(canvas, top, title, rows) -> None:
  small, large = ImageFont.load_default(12), ImageFont.load_default(14)
  canvas.text((12, top + 8), title, _INK, large)
  highest = max(max(value, floor or 0.0) for _, value, floor, _ in rows)
  scale = (_WIDTH - _LEFT - _RIGHT) / max(highest, 1e-12)
  for index, (label, value, floor, colour) in enumerate(rows):
    y = top + _TITLE + index * _ROW
    end = _LEFT + value * scale
    canvas.text((_LEFT - 8, y + _ROW / 2), label, _INK, small, anchor='rm')
    canvas.rectangle([_LEFT, y + 3, end, y + _ROW - 3], colour)
    if floor is not None:
      x = _LEFT + floor * scale
      canvas.line([(x, y + 1), (x, y + _ROW - 1)], _FLOOR, width=2)
      end = max(end, x)
    shown = number(value)
    canvas.text((end + 6, y + _ROW / 2), shown, _INK, small, anchor='lm')
