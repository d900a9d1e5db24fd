"""All label formats: the same objects from each, and wrong content."""

import copy
import json

import numpy as np
import pytest
from label_sets import (
  MAKERS,
  NUMBERS,
  areas,
  coco,
  decode,
  make,
  make_image,
  save_json,
)

from maskrcnn_jax.datasets.doctor import check
from maskrcnn_jax.datasets.formats import convert
from maskrcnn_jax.datasets.formats.source import Source
from maskrcnn_jax.errors import UserError

WITH_CLASSES = ('instance_png', 'object_png')  # Need --classes for several.


@pytest.mark.parametrize('name', MAKERS)
def test_every_format_is_told_and_gives_the_same_objects(tmp_path, name):
  labels = make(name, tmp_path)
  classes = 'cat,dog' if name in WITH_CLASSES else None
  source = Source(tmp_path / 'images', labels, classes, 1)
  assert convert.find_format('auto', source) == name
  content, findings = convert.read(name, source)
  assert not [x for x in findings if x.severity == 'error']
  (image,) = content['images']
  assert (image['height'], image['width']) == (4, 6)
  names = {x['id']: x['name'] for x in content['categories']}
  wanted = {'cat': NUMBERS == 5, 'dog': NUMBERS == 9}
  if name == 'cityscapes':
    wanted = {'car': NUMBERS == 5, 'person': NUMBERS == 9}
  assert len(content['annotations']) == 2
  for each in content['annotations']:
    mask = wanted.pop(names[each['category_id']])
    np.testing.assert_array_equal(decode(each), mask)
    assert each['area'] == mask.sum()
    box = [1, 0, 3, 2] if mask.sum() == 6 else [5, 1, 1, 2]
    assert each['bbox'] == pytest.approx(box)
    assert (each['image_id'], each['iscrowd']) == (image['id'], 0)
  if name not in ('voc', 'cityscapes', 'yolo'):
    assert names == {1: 'cat', 2: 'dog'}


def test_an_unknown_format_names_what_was_looked_for(tmp_path):
  make_image(tmp_path / 'images' / 'a.png')
  (tmp_path / 'labels').mkdir()
  (tmp_path / 'labels' / 'a.csv').write_text('x')
  source = Source(tmp_path / 'images', tmp_path / 'labels')
  with pytest.raises(UserError) as error:
    convert.find_format('auto', source)
  assert error.value.path == str(tmp_path / 'labels')
  assert error.value.argument == 'format'
  for name in convert.FORMATS[1:]:
    assert name in str(error.value)


def test_labels_of_two_formats_are_ambiguous(tmp_path):
  for name in ('yolo', 'labelme'):
    (tmp_path / name).mkdir()
    make(name, tmp_path / name)
  (tmp_path / 'labelme/labels/a.json').rename(tmp_path / 'yolo/labels/a.json')
  source = Source(tmp_path / 'yolo/images', tmp_path / 'yolo/labels')
  with pytest.raises(UserError) as error:
    convert.find_format('auto', source)
  assert error.value.given == ['labelme', 'yolo']


def test_a_json_of_cocos_lists_stays_coco(tmp_path):
  make_image(tmp_path / 'images' / 'a.png')
  contents = (
    coco(),
    coco(iscrowd=1),
    coco(attributes={}),
    {'images': []},
    {'categories': [], 'regions': []},
  )
  for content in contents:
    save_json(tmp_path / 'labels.json', content)
    source = Source(tmp_path / 'images', tmp_path / 'labels.json')
    assert convert.find_format('auto', source) == 'coco'


JUNK = (None, '', 'x', -1, 1e300, [], {}, [[1]], float('nan'), 10**400, [None])


def places(content, path=()):
  """Paths of all values in a JSON."""
  yield path
  items = ()
  if isinstance(content, dict):
    items = content.items()
  elif isinstance(content, list):
    items = enumerate(content)
  for key, value in items:
    yield from places(value, (*path, key))


@pytest.mark.parametrize(
  'name', ['labelme', 'label_studio', 'via', 'supervisely', 'cvat_coco']
)
def test_wrong_values_anywhere_are_findings_or_user_errors(tmp_path, name):
  labels = make(name, tmp_path)
  (path,) = [x for x in tmp_path.rglob('*.json') if x.name != 'meta.json']
  content = json.loads(path.read_text())
  source = Source(tmp_path / 'images', labels, None, 1)
  outcomes = set()
  for place in places(content):
    for value in JUNK:
      changed = copy.deepcopy(content) if place else value
      if place:
        parent = changed
        for key in place[:-1]:
          parent = parent[key]
        parent[place[-1]] = value
      save_json(path, changed)
      for data_format in (name, 'auto'):
        fresh = Source(source.images_dir, labels, None, 1)
        try:
          data_format = convert.find_format(data_format, fresh)
          _, findings = convert.read(data_format, fresh)
          outcomes.add(bool(findings))
        except UserError:
          outcomes.add('error')
  assert outcomes >= {True, 'error'}


def test_a_json_too_deep_is_named(tmp_path):
  make_image(tmp_path / 'images' / 'a.png')
  path = tmp_path / 'labels.json'
  path.write_text('[' * 100000)
  with pytest.raises(UserError) as error:
    convert.find_format('auto', Source(tmp_path / 'images', path))
  assert error.value.path == str(path)


@pytest.mark.parametrize(
  'text',
  [
    '<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>',
    '<?xml version="1.0"?><!DOCTYPE annotations SYSTEM "file:///etc/passwd">'
    '<annotations/>',
    '<annotations>',
    '',
  ],
)
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-16'])
def test_an_xml_with_entities_or_of_no_end_is_refused(tmp_path, text, encoding):
  make_image(tmp_path / 'images' / 'a.png')
  path = tmp_path / 'labels.xml'
  path.write_text(text, encoding=encoding)
  with pytest.raises(UserError) as error:
    convert.read('cvat', Source(tmp_path / 'images', path))
  assert error.value.path == str(path)


def test_names_of_images_are_looked_up_and_never_opened(tmp_path):
  for name in ('a.png', 'day1/b.png', 'day2/b.png', 'c.d.JPG', 'e\u0301.png'):
    make_image(tmp_path / 'images' / name)
  source = Source(tmp_path / 'images', tmp_path)
  cases = {
    'a.png': 'a.png',
    '../images/a.png': 'a.png',
    'C:\\photos\\a.png': 'a.png',
    '/etc/a.png': 'a.png',
    'A.PNG': 'a.png',
    'a.jpg': 'a.png',
    'c.d.jpg': 'c.d.JPG',
    'day1/b.png': 'day1/b.png',
    'x/day2/b.png': 'day2/b.png',
    '\u00e9.jpg': 'e\u0301.png',  # One letter; macOS writes two characters.
    'b.png': None,
    'day3/b.png': None,
    '../../etc/passwd': None,
    '': None,
  }
  assert {name: source.find_image(name) for name in cases} == cases
  assert source.find_images('b.png') == ['day1/b.png', 'day2/b.png']


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-le'])
@pytest.mark.parametrize('name', MAKERS)
def test_labels_in_other_encodings(tmp_path, name, encoding):
  """As editors and shells of Windows write them."""
  labels = make(name, tmp_path)
  for path in tmp_path.rglob('*.*'):
    if path.suffix in ('.json', '.xml', '.txt'):
      text = path.read_text(encoding='utf-8')
      if path.suffix == '.xml' and encoding != 'utf-8-sig':
        text = text.replace('utf-8', 'utf-16')
      path.write_text(text, encoding=encoding)
  classes = 'cat,dog' if name in WITH_CLASSES else None
  source = Source(tmp_path / 'images', labels, classes, 1)
  assert convert.find_format('auto', source) == name
  content, _ = convert.read(name, source)
  assert sorted(area for _, area in areas(content)) == [2, 6]


def as_texts(content):
  """A JSON whose numbers are texts, and whose class `cat` is a number."""
  if isinstance(content, dict):
    return {
      key: value if key in ('origin', 'group_id') else as_texts(value)
      for key, value in content.items()
    }
  if isinstance(content, list):
    return [as_texts(each) for each in content]
  if type(content) in (int, float):
    return str(content)
  return 7 if content == 'cat' else content


@pytest.mark.parametrize(
  'name', ['labelme', 'label_studio', 'via', 'supervisely', 'cvat_coco']
)
def test_numbers_as_texts_and_a_number_as_class(tmp_path, name):
  labels = make(name, tmp_path)
  (path,) = [x for x in tmp_path.rglob('*.json') if x.name != 'meta.json']
  save_json(path, as_texts(json.loads(path.read_text())))
  (split,) = check.check(
    (tmp_path / 'images', labels), num_workers=1, data_format=name
  ).splits
  assert sorted(x.area for x in split.objects) == [2, 6]
  assert not any(x.is_crowd for x in split.objects)
  assert {'7', 'dog'} <= set(split.dataset.class_names.values())


@pytest.mark.parametrize('name', MAKERS)
def test_files_that_are_not_used_are_named(tmp_path, name):
  labels = make(name, tmp_path)
  (tmp_path / 'images' / 'photo.heic').touch()
  (tmp_path / 'images' / '.hidden').touch()
  (tmp_path / 'images' / 'readme.md').touch()
  make_image(tmp_path / 'images' / 'sub' / 'z.png')
  expected = {'photo.heic': 'file_passed_over', 'z.png': 'missing_label'}
  if name in convert.OF_COCO:
    expected['z.png'] = 'image_not_listed'
  elif labels.is_dir():
    (labels / 'SegmentationObject').mkdir(exist_ok=name == 'voc')
    (labels / 'SegmentationObject' / 'a.xyz').touch()
    expected['a.xyz'] = 'file_passed_over'
  found = check.check(
    (tmp_path / 'images', labels),
    num_workers=1,
    data_format=name,
    classes='cat,dog' if name in WITH_CLASSES else None,
  )
  named = {(x.file.rsplit('/', 1)[-1], x.kind) for x in found.findings}
  assert expected.items() <= named
  assert not {'.hidden', 'readme.md'} & {name for name, _ in named}
  passed = found.by_kind()['file_passed_over']
  assert len(passed) == len(expected) - 1


@pytest.mark.parametrize('name', MAKERS)
def test_every_format_can_be_checked(tmp_path, name):
  labels = make(name, tmp_path)
  classes = 'cat,dog' if name in WITH_CLASSES else None
  found = check.check(
    (tmp_path / 'images', labels), num_workers=1, classes=classes
  )
  assert found.count('error') == 0
  (split,) = found.splits
  assert len(split.objects) == 2
