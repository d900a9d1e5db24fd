"""Reports as text for the terminal and as JSON, and statistics of splits."""

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from maskrcnn_jax import tables
from maskrcnn_jax.datasets.doctor import split_checks
from maskrcnn_jax.datasets.doctor.check import Report
from maskrcnn_jax.datasets.doctor.split import Split
from maskrcnn_jax.datasets.findings import SEVERITIES
from maskrcnn_jax.terminal import escaped

MADE_BY = 'maskrcnn-jax check'
_NAMED = 3  # Printed findings of a kind.
_CLASS_ROWS = 100  # Of more classes the most frequent and the rarest.
_BAR = 40  # Characters of the longest bar.
# Sides in pixels where the bins of the histogram begin.
_BINS = (0, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def to_text(report: Report) -> str:
  """The report for a terminal: statistics, findings and their counts."""
  numbers = [summarize(split) for split in report.splits]
  parts = [
    '\n'.join(describe(each) for each in numbers),
    tables.table(_shorten(class_rows(numbers))),
    tables.table(area_rows(numbers)),
    _histogram(numbers),
    _findings(report),
    verdict(report),
  ]
  return '\n\n'.join(part for part in parts if part)


def to_json(report: Report) -> str:
  """All statistics and findings."""
  content = {
    'made_by': MADE_BY,
    **{f'{name}s': report.count(name) for name in SEVERITIES},
    'splits': [summarize(split) for split in report.splits],
    'findings': [dataclasses.asdict(each) for each in report.findings],
  }
  return json.dumps(content, indent=1, default=str) + '\n'


def verdict(report: Report) -> str:
  """Numbers of errors, warnings and notes."""
  counts = {name: report.count(name) for name in SEVERITIES}
  return ', '.join(
    f'{count} {name}{"" if count == 1 else "s"}'
    for name, count in counts.items()
  )


def describe(numbers: Mapping) -> str:
  """A line of statistics of a split."""
  total = numbers['objects'] + numbers['crowds']
  share = 100 * numbers['crowds'] / max(total, 1)
  return escaped(
    f'{numbers["name"]}: {numbers["annotations"]}: images: {numbers["images"]} '
    f'({numbers["images_without_objects"]} without objects), '
    f'objects: {numbers["objects"]}, crowds: {numbers["crowds"]} '
    f'({share:.1f} % of all), classes: {len(numbers["classes"])}'
  )


def class_rows(numbers: Sequence[Mapping]) -> list[dict[str, str]]:
  """A row for every class, the most frequent first."""
  fields, rows = ('objects', 'images', 'crowds'), {}
  for split in numbers:
    for each in split['classes']:
      row = rows.setdefault((each['id'], each['name']), {})
      row |= {f'{split["name"]} {field}': each[field] for field in fields}
  columns = [f'{x["name"]} {field}' for x in numbers for field in fields]
  return [
    {'id': str(class_id), 'class': name}
    | {column: str(row.get(column, '-')) for column in columns}
    for (class_id, name), row in sorted(
      rows.items(), key=lambda each: -each[1].get(columns[0], 0)
    )
  ]


def area_rows(numbers: Sequence[Mapping]) -> list[dict[str, str]]:
  """Objects by COCO's small, medium and large."""
  return [
    {'size': words}
    | {
      split['name']: (
        f'{split["areas"][name]} '
        f'({100 * split["areas"][name] / max(split["objects"], 1):.1f} %)'
      )
      for split in numbers
    }
    for name, words in split_checks.SIZE_WORDS.items()
  ]


def _shorten(rows):
  if len(rows) <= _CLASS_ROWS:
    return rows
  half = _CLASS_ROWS // 2
  gap = dict.fromkeys(rows[0], '..')
  gap['class'] = f'.. {len(rows) - 2 * half} more, see --html or --json ..'
  return [*rows[:half], gap, *rows[-half:]]


def _histogram(numbers: Sequence[Mapping]) -> str:
  """Bars of the sides of boxes, one block for every split."""
  lines = ['sides of boxes in pixels (square root of the area):']
  for split in numbers:
    most = max(1, *split['box_sides'].values())
    for name, count in split['box_sides'].items():
      bar = '#' * -(-_BAR * count // most)
      lines.append(f'  {split["name"]:5} {name:>8} {count:8} {bar}'.rstrip())
  return '\n'.join(lines)


def _findings(report: Report) -> str:
  kinds = report.by_kind()
  rows, lines = [], []
  for kind, found in kinds.items():
    severity, count = found[0].severity, len(found)
    rows.append({'severity': severity, 'finding': kind, 'count': str(count)})
    lines += ['', f'{severity}: {kind} ({count})']
    lines += [f'  {each}' for each in found[:_NAMED]]
    if count > _NAMED:
      lines.append(f'  and {count - _NAMED} more')
  if any(len(found) > _NAMED for found in kinds.values()):
    lines += ['', '--html FILE or --json FILE names all of them.']
  return '\n'.join([tables.table(rows), *lines]) if rows else ''


def summarize(split: Split) -> dict[str, Any]:
  """Statistics of a split, ready for JSON.

  Returns:
    `name`, `annotations` (the json), `images`, `images_without_objects`,
    `objects`, `crowds`; `classes`, a list of `id`, `name`, `objects`, `images`,
    `crowds`; `areas`, objects by COCO's size; `box_sides`, objects by the
    square root of the box's area, in bins `16-32`. Objects are usable ones
    that are no crowds.
  """
  objects = [each for each in split.objects if not each.is_crowd]
  images = {(each.class_id, each.image_id) for each in objects}
  count = collections.Counter
  by_class = {
    'objects': count(each.class_id for each in objects),
    'images': count(class_id for class_id, _ in images),
    'crowds': count(each.class_id for each in split.objects if each.is_crowd),
  }
  areas = count(split_checks.size_name(each.area) for each in objects)
  sides = count(_bin(each.side) for each in objects)
  num_images = len(split.dataset.images)
  return {
    'name': split.name,
    'annotations': split.file,
    'images': num_images,
    'images_without_objects': num_images - len({x for _, x in images}),
    'objects': len(objects),
    'crowds': len(split.objects) - len(objects),
    'classes': [
      {'id': class_id, 'name': name}
      | {field: counts[class_id] for field, counts in by_class.items()}
      for class_id, name in sorted(split.dataset.class_names.items())
    ],
    'areas': {name: areas[name] for name in split_checks.AREA_RANGES},
    'box_sides': {name: sides[name] for name in map(_bin, _BINS)},
  }


def _bin(side: float) -> str:
  """Name of the bin of a side."""
  index = sum(side >= start for start in _BINS[1:])
  return f'{_BINS[index]}-{[*_BINS, ""][index + 1]}'
