"""The report as one self-contained HTML page, which asks no network."""

import html
import pathlib
from collections.abc import Mapping, Sequence

from maskrcnn_jax.datasets.doctor import report as report_lib
from maskrcnn_jax.datasets.doctor import summary
from maskrcnn_jax.datasets.doctor.check import Report
from maskrcnn_jax.datasets.doctor.pictures import Picture

# Findings of a kind that the page writes out; the JSON has all.
_WRITTEN = 2000


def make_page(report: Report, pictures: Mapping[str, Sequence[Picture]]) -> str:
  """The text of the page.

  Args:
    report: what was found.
    pictures: by the heading they stand under.
  """
  numbers = [summary.summarize(split) for split in report.splits]
  parts = [
    f'<p class="verdict">{_text(report_lib.verdict(report))}</p>',
    *(f'<p>{_text(report_lib.describe(each))}</p>' for each in numbers),
    '<h2>Findings</h2>',
    *_findings(report),
    *_galleries(pictures),
    '<h2>Sizes</h2>',
    _table(report_lib.area_rows(numbers)),
    '<p>Sides of boxes in pixels (square root of the area):</p>',
    *(_bars(split) for split in numbers),
    '<h2>Classes</h2>',
    _table(report_lib.class_rows(numbers)),
  ]
  template = pathlib.Path(__file__).with_name('page.html')
  head, tail = template.read_text(encoding='utf-8').split('<!-- content -->\n')
  return head + '\n'.join(parts) + '\n' + tail


def _text(value: object) -> str:
  return html.escape(str(value))


def _findings(report: Report):
  kinds = report.by_kind()
  if not kinds:
    yield '<p>Nothing was found.</p>'
  for kind, found in kinds.items():
    severity = found[0].severity
    yield (
      f'<details class="{severity}"{" open" if severity == "error" else ""}>'
      f'<summary><b>{severity}</b> {_text(kind)} '
      f'<i>{len(found)}</i></summary><ul>'
    )
    yield from (f'<li>{_text(each)}</li>' for each in found[:_WRITTEN])
    if len(found) > _WRITTEN:
      yield f'<li>and {len(found) - _WRITTEN} more: see --json FILE</li>'
    yield '</ul></details>'


def _galleries(pictures: Mapping[str, Sequence[Picture]]):
  for heading, group in pictures.items():
    if not group:
      continue
    yield f'<h2>{_text(heading)}</h2><div class="pictures">'
    for each in group:
      # A hidden box makes a picture large, without any script.
      yield (
        '<label><input type="checkbox"><img loading="lazy" '
        f'alt="{_text(each.caption)}" '
        f'src="data:image/jpeg;base64,{each.jpeg}">'
        f'<span>{_text(each.caption)}</span></label>'
      )
    yield '</div>'


def _table(rows: Sequence[Mapping[str, str]]) -> str:
  if not rows:
    return ''
  head = ''.join(f'<th>{_text(name)}</th>' for name in rows[0])
  body = ''.join(
    '<tr>' + ''.join(f'<td>{_text(x)}</td>' for x in row.values()) + '</tr>'
    for row in rows
  )
  return f'<table><tr>{head}</tr>{body}</table>'


def _bars(split: Mapping) -> str:
  most = max(1, *split['box_sides'].values())
  rows = ''.join(
    f'<tr><td>{_text(name)}</td><td>{count}</td><td class="bar"><div '
    f'style="width:{100 * count / most:.1f}%"></div></td></tr>'
    for name, count in split['box_sides'].items()
  )
  return f'<table class="bars"><caption>{split["name"]}</caption>{rows}</table>'
