"""Reader of COCO instances files."""

import json

import pytest

from maskrcnn_jax.datasets import coco_json
from maskrcnn_jax.datasets.categories import Category
from maskrcnn_jax.datasets.findings import InvalidDataError
from maskrcnn_jax.errors import UserError

CATEGORIES = [{'id': 1, 'name': 'cat'}, {'id': 90, 'name': 'dog'}]
FROM_0 = {'categories': [{'id': 7, 'name': 'dog'}, {'id': 0, 'name': 'cat'}]}
SQUARE = [[1, 1, 9, 1, 9, 9, 1, 9]]


def _image(image_id=7, **changes):
  entry = {'id': image_id, 'file_name': 'a.jpg', 'height': 20, 'width': 30}
  return entry | changes


def _object(annotation_id=70, **changes):
  entry = {'id': annotation_id, 'image_id': 7, 'category_id': 1}
  return entry | {'bbox': [1, 1, 8, 8], 'segmentation': SQUARE} | changes


def _write(tmp_path, images=None, objects=None, categories=CATEGORIES):
  content = {
    'images': [_image()] if images is None else images,
    'annotations': [_object()] if objects is None else objects,
    'categories': categories,
  }
  path = tmp_path / 'instances.json'
  path.write_text(json.dumps(content))
  return path


def _load(tmp_path, **content):
  return coco_json.load(_write(tmp_path, **content))


def test_groups_annotations_by_image(tmp_path):
  dataset = _load(
    tmp_path,
    images=[_image(7), _image(2**62, file_name='b.jpg')],
    objects=[
      _object(70, category_id=90),
      _object(71),
      _object(72, image_id=2**62),
    ],
  )
  assert [image.image_id for image in dataset.images] == [7, 2**62]
  counts = {key: len(found) for key, found in dataset.annotations.items()}
  assert counts == {7: 2, 2**62: 1}
  assert dataset.class_names == {1: 'cat', 90: 'dog'}  # The gap stays.
  assert 'class_id' not in dataset.annotations[7][0]
  assert not dataset.findings


@pytest.mark.parametrize('image_id, given', [(8, ''), ('b7', "'b7'")])
def test_annotation_of_an_unknown_image_is_skipped(tmp_path, image_id, given):
  objects = [_object(), _object(71, image_id=image_id)]
  dataset = _load(tmp_path, objects=objects)
  (finding,) = dataset.findings
  assert (finding.kind, finding.severity) == ('unknown_image', 'warning')
  assert (finding.image_id, finding.annotation_id) == (image_id, 71)
  assert given in str(finding)
  assert len(dataset.annotations[7]) == 1


@pytest.mark.parametrize(
  'content, kind, given',
  [
    ({'categories': [{'id': True}]}, 'category_id', 'True'),
    ({'categories': [{'id': None}]}, 'category_id', 'None'),
    ({'categories': [{'id': -3}]}, 'category_id', '-3'),
    ({'categories': [{'id': 'cat'}]}, 'category_id', 'an integer'),
    ({'categories': CATEGORIES * 2}, 'duplicate_category_id', '1'),
    ({'objects': [_object(category_id=2)]}, 'unknown_category', '(1, 90)'),
    ({'objects': [_object(category_id=0)]}, 'unknown_category', '0'),
    ({'objects': [_object()], **FROM_0}, 'unknown_category', '(0, 7)'),
    ({'objects': [_object(category_id=1.5)]}, 'unknown_category', '1.5'),
    ({'objects': [_object(category_id='2')]}, 'unknown_category', '2'),
    ({'objects': [_object()] * 2}, 'duplicate_annotation_id', 'annotation 70'),
    ({'images': [_image(), _image()]}, 'duplicate_image_id', '7'),
    ({'images': [_image(2**63)]}, 'image_id', str(2**63)),
    ({'images': [_image('07'), _image(7.0)]}, 'duplicate_image_id', '7'),
    ({'images': [_image('a.jpg')]}, 'image_id', "'image_id'"),
    ({'images': [_image(height=None)]}, 'image_entry', 'height'),
    ({'images': [_image(width='30 px')]}, 'image_entry', 'width'),
    ({'images': [_image(width=-1)]}, 'image_entry', '-1'),
    (
      {'categories': [{'id': 10_001, 'name': 'cat'}, {'id': 74673216}]},
      *('huge_category_ids', '10001, 74673216'),
    ),
    ({'images': [_image(width=2**17, height=2**17)]}, 'image_entry', '131072'),
    ({'images': [_image(width=int('9' * 4000))]}, 'image_entry', '999'),
    ({'images': [_image(width=True)]}, 'image_entry', 'True'),
    ({'images': [_image(file_name='a' * 10**6)]}, 'image_entry', 'aaa'),
    ({'images': [_image([1])]}, 'image_id', '[1]'),
    (
      {'categories': [{'id': 1, 'name': 'a' * 10**6}]},
      *('category_name', 'aaa'),
    ),
    ({'objects': [_object([1])]}, 'annotation_id', '[1]'),
    ({'objects': [_object({})]}, 'annotation_id', '{}'),
    ({'objects': [_object(category_id=[1])]}, 'unknown_category', '[1]'),
    ({'objects': [_object(category_id=9**4000)]}, 'unknown_category', '...'),
    ({'images': [_image(file_name='')]}, 'image_entry', 'file_name'),
  ],
)
def test_invalid_entries_are_errors(tmp_path, content, kind, given):
  with pytest.raises(InvalidDataError) as error:
    _load(tmp_path, **content)
  assert error.value.path == str(tmp_path / 'instances.json')
  first = error.value.findings[0]
  assert first.kind == kind and given in str(first)
  assert len(str(error.value)) < 1000
  ids = [first.image_id, first.annotation_id]
  assert error.value.item == next((x for x in ids[::-1] if x is not None), None)


FLAT = [1, 1, 9, 1, 9, 9, 1, 9]
POINTS = [[1, 1], [9, 1], [9, 9], [1, 9]]
RUNS = {'size': [20, 30], 'counts': [22, 5, 573]}
TEXT_RUNS = {'size': ['20', 30.0], 'counts': ['22', 5.0, 573]}


@pytest.mark.parametrize(
  'field, given, wanted, kind',
  [
    ('id', '70', 70, 'number_format'),
    ('image_id', ' 7 ', 7, 'number_format'),
    ('image_id', '7.0', 7, 'number_format'),
    ('category_id', 1.0, 1, 'number_format'),
    ('area', '64.5', 64.5, 'number_format'),
    ('area', '6.4e1', 64.0, 'number_format'),
    ('area', 'large', 'large', None),
    ('area', None, None, None),
    ('bbox', ['1', 1, '8.5', 8.0], [1, 1, 8.5, 8.0], 'number_format'),
    ('bbox', ['1', 'a'], [1, 'a'], 'number_format'),
    ('bbox', None, None, None),
    ('iscrowd', '0', 0, 'number_format'),
    ('iscrowd', '1', 1, 'number_format'),
    ('iscrowd', 1.0, 1, 'number_format'),
    ('iscrowd', False, 0, 'number_format'),
    ('iscrowd', 'False', 0, 'number_format'),
    ('iscrowd', None, None, None),
    ('iscrowd', 'yes', 'yes', None),
    ('segmentation', FLAT, [FLAT], 'polygon_nesting'),
    ('segmentation', [str(x) for x in FLAT], [FLAT], 'polygon_nesting'),
    ('segmentation', POINTS, [FLAT], 'polygon_nesting'),
    ('segmentation', POINTS[:3], [FLAT[:6]], 'polygon_nesting'),
    ('segmentation', [POINTS, FLAT], [FLAT, FLAT], 'polygon_nesting'),
    ('segmentation', [[*map(str, FLAT)]], [FLAT], 'number_format'),
    ('segmentation', TEXT_RUNS, RUNS, 'number_format'),
    # These can mean several things, or nothing.
    ('segmentation', FLAT[:4], FLAT[:4], None),
    ('segmentation', FLAT[:7], FLAT[:7], None),
    ('segmentation', POINTS[:2], POINTS[:2], None),
    ('segmentation', [POINTS[:2]], [POINTS[:2]], None),
    ('segmentation', [], [], None),
    ('segmentation', [[]], [[]], None),
  ],
)
def test_values_that_are_written_in_other_ways(
  tmp_path, field, given, wanted, kind
):
  objects = [_object(**{field: given}), _object(71, **{field: given})]
  objects[1]['id'] = 71
  dataset = _load(tmp_path, objects=objects)
  assert next(x.get(field) for x in dataset.annotations[7]) == wanted
  found = [(x.kind, x.severity, x.annotation_id) for x in dataset.findings]
  assert found == ([(kind, 'note', 70)] if kind else [])
  count = 1 if field == 'id' else 2
  assert not kind or f'{count} of the annotations' in str(dataset.findings[0])


@pytest.mark.parametrize(
  'changes, crowd, kind',
  [
    ({'ignore': 1}, 1, 'ignored_region'),
    ({'ignore': '1'}, 1, 'ignored_region'),
    ({'ignore': True, 'iscrowd': 0}, 1, 'ignored_region'),
    ({'ignore': 1, 'iscrowd': 1}, 1, None),
    ({'ignore': 0}, None, None),
    ({'ignore': '0'}, None, None),
    ({'ignore': None}, None, None),
  ],
)
def test_ignored_regions_are_crowds(tmp_path, changes, crowd, kind):
  dataset = _load(tmp_path, objects=[_object(**changes)])
  assert dataset.annotations[7][0].get('iscrowd') == crowd
  assert [x.kind for x in dataset.findings] == ([kind] if kind else [])


def test_images_and_categories_with_texts_and_floats(tmp_path):
  dataset = _load(
    tmp_path,
    images=[_image('7', height=20.0, width='30')],
    categories=[{'id': '1'}, {'id': 2.0, 'name': None}, {'id': 3, 'name': ''}],
  )
  assert dataset.images == (coco_json.CocoImage(7, 'a.jpg', 20, 30),)
  assert dataset.class_names == {1: '1', 2: '2', 3: '3'}
  kinds = [each.kind for each in dataset.findings]
  assert kinds.count('unnamed_category') == 1 and len(kinds) == 5
  assert len(dataset.annotations[7]) == 1


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-le'])
def test_other_encodings(tmp_path, encoding):
  path = _write(tmp_path, categories=[{'id': 1, 'name': 'K\xe4fer'}])
  content = json.loads(path.read_text())
  text = json.dumps(content, ensure_ascii=False)
  path.write_bytes(text.encode(encoding))
  assert coco_json.load(path).class_names == {1: 'K\xe4fer'}
  path.write_bytes(text.replace('K\xe4', '\\udcff').encode(encoding))
  with pytest.raises(UserError):
    coco_json.load(path)


def test_inspection_goes_on_after_errors(tmp_path):
  path = _write(
    tmp_path,
    images=[_image(), _image('b8'), None],
    objects=[
      _object(70),
      _object(71, image_id='b8'),  # The image has a finding of its own.
      _object(72, category_id='x'),
      _object(73, image_id=[7]),
      _object([74]),
      'none',
    ],
    categories=[*CATEGORIES, {'id': 'x', 'name': 'bird'}],
  )
  dataset = coco_json.parse(coco_json.read_lists(path), str(path))
  assert [each.kind for each in dataset.findings] == [
    'category_id',
    'image_id',
    'entry',
    'unknown_image',
    'annotation_id',
    'entry',
  ]
  assert "entry 2 (from 0) of 'images'" in str(dataset.findings[2])
  assert [x['id'] for x in dataset.annotations[7]] == [70]
  with pytest.raises(InvalidDataError) as error:
    coco_json.load(path)
  assert len(error.value.findings) == 5


@pytest.mark.parametrize(
  'text, item',
  [
    ('{"images": [', None),
    ('[]', 'images'),
    ('{"images": [], "annotations": []}', 'categories'),
    ('[' * 100_000, None),
    ('{"a": ' * 100_000, None),
    ('{"images": ["\\udcff"], "annotations": [], "categories": []}', None),
    ('{"images": [], "images": [{}]}', None),
    (f'{{"images": [{"9" * 5000}]}}', None),
    ('\ufeff[' + 'NaN,' * 9, None),
    (None, None),
  ],
)
def test_other_files_are_refused(tmp_path, text, item):
  path = tmp_path / 'x.json'
  if text is not None:
    path.write_text(text)
  with pytest.raises(UserError) as error:
    coco_json.load(path)
  assert (error.value.path, error.value.item) == (str(path), item)


def test_images_are_read_without_annotations(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text(json.dumps({'images': [_image()], 'categories': CATEGORIES}))
  dataset = coco_json.load(path, lists=('images', 'categories'))
  assert [image.image_id for image in dataset.images] == [7]
  assert dataset.class_names == {1: 'cat', 90: 'dog'}


@pytest.mark.parametrize('entry', [7, {}, {'image_id': [7], 'caption': 'a'}])
def test_malformed_captions_are_named(tmp_path, entry):
  path = tmp_path / 'captions.json'
  path.write_text(json.dumps({'annotations': [entry]}))
  with pytest.raises(UserError) as error:
    coco_json.load(_write(tmp_path), captions_file=path)
  assert (error.value.path, error.value.item) == (str(path), 0)


def test_ids_from_0_are_shifted_by_one_with_a_note(tmp_path):
  dataset = _load(
    tmp_path,
    objects=[_object(70, category_id=0), _object(71, category_id=7)],
    **FROM_0,
  )
  assert dataset.categories == {8: Category('dog', 7), 1: Category('cat', 0)}
  first, second = dataset.annotations[7]
  assert (first['class_id'], first['category_id']) == (1, 0)
  assert (second['class_id'], second['category_id']) == (8, 7)
  (finding,) = dataset.findings
  assert (finding.kind, finding.severity) == ('ids_from_0', 'note')
