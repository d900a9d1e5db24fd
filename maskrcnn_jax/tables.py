"""Markdown tables whose columns line up in a terminal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from maskrcnn_jax.terminal import escaped


def table(cells: Sequence[dict[str, str]]) -> str:
  """A table whose columns line up; '' without rows.

  Args:
    cells: of every row, by the name of the column; the same in each.
  """
  if not cells:
    return ''
  lines = [[*cells[0]], *([*row.values()] for row in cells)]
  lines = [[escaped(text) for text in line] for line in lines]
  widths = [max(map(len, column)) for column in zip(*lines)]
  lines.insert(1, ['-' * width for width in widths])
  return '\n'.join(
    f'| {" | ".join(x.ljust(n) for x, n in zip(line, widths))} |'
    for line in lines
  )


def number(value: float | None, unit: float = 1.0) -> str:
  """Three digits of a value in a unit, all before the point; '-' for None."""
  if value is None:
    return '-'
  value /= unit
  return f'{value:,.0f}' if value >= 1000 else f'{value:.3g}'


def cells(
  row: Mapping[str, Any],
  columns: Sequence[tuple[str, str, float | Callable[[Any], str]]],
) -> dict[str, str]:
  """Cells of nested values; '-' where there is none.

  Args:
    row: dicts of values by name.
    columns: each a title, the path of its value, such as `seconds.median`, and
      its unit for `number` or a function that shows it.
  """
  shown = {}
  for title, path, unit in columns:
    value = row
    for name in path.split('.'):
      value = (value or {}).get(name)
    if callable(unit) and value is not None:
      shown[title] = unit(value)
    else:
      shown[title] = number(value, unit)
  return shown
