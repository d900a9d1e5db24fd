"""Reports of `check`: text, JSON and page."""

import json

import data_sets
import pytest

from maskrcnn_jax.datasets.doctor import check, page, report


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
  """A set in which five boxes have no area."""
  data = data_sets.draw_set(tmp_path_factory.mktemp('set'))
  for each in data.train['annotations'][:5]:
    each['bbox'][2] = 0
  data.write()
  return data


@pytest.fixture(scope='module')
def found(drawn):
  return check.check(drawn.paths('train'), drawn.paths('val'), num_workers=1)


def test_the_numbers_by_hand(found):
  text = report.to_text(found)
  # 9 rectangles of which 5 are broken, and a crowd.
  assert (
    'images: 3 (1 without objects), objects: 4, crowds: 1 (20.0 % of all)'
    in text
  )
  assert 'objects: 9, crowds: 1 (10.0 % of all), classes: 2' in text
  content = json.loads(report.to_json(found))
  train, val = content['splits']
  assert val['classes'] == [
    {'id': 1, 'name': 'cat', 'objects': 6, 'images': 3, 'crowds': 1},
    {'id': 2, 'name': 'dog', 'objects': 3, 'images': 3, 'crowds': 0},
  ]
  # 10 x 5, 40 x 20, 140 x 70.
  assert val['areas'] == {'small': 6, 'medium': 0, 'large': 3}
  assert [*val['box_sides'].values()] == [0, 3, 0, 3, 0, 3, 0, 0, 0, 0]
  assert [*val['box_sides']][::3] == ['0-4', '16-32', '128-256', '1024-']
  assert train['objects'] == 4 and train['images_without_objects'] == 1


def test_the_terminal_names_the_first_and_counts_the_rest(found):
  text = report.to_text(found)
  assert 'warning: zero_area_box (5)' in text
  assert text.count('has no area.') == 3
  assert 'and 2 more' in text
  assert '--html FILE or --json FILE names all of them.' in text
  assert text.splitlines()[-1] == report.verdict(found)


def test_the_json_has_every_finding(found, drawn):
  content = json.loads(report.to_json(found))
  boxes = [x for x in content['findings'] if x['kind'] == 'zero_area_box']
  assert [x['annotation_id'] for x in boxes] == [10, 11, 12, 20, 21]
  assert boxes[0]['file'] == str(drawn.folder / 'train' / '1.jpg')
  assert content['errors'] == 0
  assert content['warnings'] == found.count('warning') >= 5


def test_the_worst_come_first(found):
  severities = [each.severity for each in found.findings]
  assert severities == sorted(severities, reverse=True)
  assert set(severities) == {'warning', 'note'}


def test_many_classes_are_shortened(drawn, tmp_path):
  data = drawn.copy_to(tmp_path / 'set')
  for content in (data.train, data.val):
    content['categories'] = [
      {'id': number, 'name': f'class {number}'} for number in range(1, 251)
    ]
  data.write()
  shown = check.check(data.paths('train'), num_workers=1)
  text = report.to_text(shown)
  assert '.. 150 more, see --html or --json ..' in text
  assert '| class 1 ' in text and '| class 250 ' in text
  assert len(json.loads(report.to_json(shown))['splits'][0]['classes']) == 250
  assert page.make_page(shown, {}).count('<td>class ') == 250


def test_the_page_escapes_what_the_json_says(drawn, tmp_path):
  data = drawn.copy_to(tmp_path / 'set')
  data.train['categories'][1]['name'] = '<script>alert(1)</script>'
  data.write()
  text = page.make_page(check.check(data.paths('train'), num_workers=1), {})
  assert '<script' not in text
  assert '&lt;script&gt;alert(1)' in text
