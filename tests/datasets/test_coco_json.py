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


def _load(tmp_path, images_dir=None, **content):
  return coco_json.load(_write(tmp_path, **content), images_dir)


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


@pytest.mark.parametrize('image_id, given', [(8, ''), ('7', 'Write 7 without')])
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
    ({'categories': [{'id': '3', 'name': 'cat'}]}, 'category_id', 'Write 3 '),
    ({'categories': [{'id': 'cat'}]}, 'category_id', 'an integer'),
    ({'categories': CATEGORIES * 2}, 'duplicate_category_id', '1'),
    ({'objects': [_object(category_id=2)]}, 'unknown_category', '(1, 90)'),
    ({'objects': [_object(category_id=0)]}, 'unknown_category', '0'),
    ({'objects': [_object()], **FROM_0}, 'unknown_category', '(0, 7)'),
    ({'objects': [_object(category_id=1.0)]}, 'unknown_category', '1.0'),
    ({'objects': [_object(category_id='1')]}, 'unknown_category', 'Write 1 '),
    ({'objects': [_object()] * 2}, 'duplicate_annotation_id', 'annotation 70'),
    ({'images': [_image(), _image()]}, 'duplicate_image_id', '7'),
    ({'images': [_image(2**63)]}, 'image_id', str(2**63)),
    ({'images': [_image('07')]}, 'image_id', 'Write 7 '),
    ({'images': [_image('a.jpg')]}, 'image_id', "'image_id'"),
    ({'images': [_image(height=None)]}, 'image_entry', 'height'),
    ({'images': [_image(width='30')]}, 'image_entry', 'width'),
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


def test_inspection_goes_on_after_errors(tmp_path):
  path = _write(
    tmp_path,
    images=[_image(), _image('8'), None],
    objects=[
      _object(70),
      _object(71, image_id='8'),  # The image has a finding of its own.
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


def test_missing_images_are_listed(tmp_path):
  entries = [_image(k, file_name=f'{k}.jpg') for k in range(14)]
  (tmp_path / '3.jpg').write_bytes(b'')
  with pytest.raises(InvalidDataError) as error:
    _load(tmp_path, images=entries, objects=[], images_dir=tmp_path)
  missing = [each.image_id for each in error.value.findings]
  assert missing == [k for k in range(14) if k != 3]
  text = str(error.value)
  assert f'{tmp_path}/0.jpg' in text
  assert 'and 3 more' in text  # Ten are listed.


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
