import json
import re

import pytest

from maskrcnn_jax.datasets import coco_json as annotations

CATEGORIES = [{'id': 1, 'name': 'cat'}, {'id': 90, 'name': 'dog'}]
SQUARE = [[1, 1, 9, 1, 9, 9, 1, 9]]


def _image(image_id=7, **changes):
  entry = {'id': image_id, 'file_name': 'a.jpg', 'height': 20, 'width': 30}
  return entry | changes


def _object(annotation_id=70, **changes):
  entry = {'id': annotation_id, 'image_id': 7, 'category_id': 1}
  return entry | {'bbox': [1, 1, 8, 8], 'segmentation': SQUARE} | changes


def _load(tmp_path, images=None, objects=None, categories=CATEGORIES, **kwargs):
  path = tmp_path / 'instances.json'
  content = {
    'images': [_image()] if images is None else images,
    'annotations': [_object()] if objects is None else objects,
    'categories': categories,
  }
  path.write_text(json.dumps(content))
  return annotations.load_coco(path, **kwargs)


def test_groups_annotations_by_image(tmp_path):
  dataset = _load(
    tmp_path,
    images=[_image(7), _image(2**62, file_name='b.jpg')],
    objects=[_object(70), _object(71), _object(72, image_id=2**62)],
  )
  assert [image.image_id for image in dataset.images] == [7, 2**62]
  assert {key: len(found) for key, found in dataset.annotations.items()} == {
    7: 2,
    2**62: 1,
  }
  assert dataset.class_names == {1: 'cat', 90: 'dog'}
  assert not dataset.findings


def test_annotation_of_an_unknown_image_is_left_out(tmp_path):
  dataset = _load(tmp_path, objects=[_object(), _object(71, image_id=8)])
  (finding,) = dataset.findings
  assert (finding.kind, finding.severity) == ('unknown_image', 'warning')
  assert (finding.image_id, finding.annotation_id) == (8, 71)
  assert len(dataset.annotations[7]) == 1


@pytest.mark.parametrize(
  'content, message',
  [
    ({'categories': [{'id': True}]}, 'category id True'),
    ({'categories': [{'id': None}]}, 'category id None'),
    ({'categories': [{'id': -3}]}, 'category id -3'),
    ({'categories': CATEGORIES * 2}, 'category id 1 is there twice'),
    ({'objects': [_object(category_id=2)]}, 'annotation 70: category_id 2 is'),
    ({'objects': [_object(category_id=0)]}, 'annotation 70: category_id 0 is'),
    ({'objects': [_object(category_id=1.0)]}, 'category_id 1.0 is not among'),
    (
      {'objects': [_object(), _object()]},
      'annotation 70: the annotation id is',
    ),
    ({'images': [_image(), _image()]}, 'image id 7 is there twice'),
    ({'images': [_image(2**63)]}, 'up to 64 bits'),
    ({'images': [_image(height=None)]}, 'image 7: height must be'),
    ({'images': [_image(width='30')]}, 'image 7: width must be'),
    ({'images': [_image(file_name='')]}, 'image 7: file_name must be'),
  ],
)
def test_ambiguous_files_are_errors_that_name_the_place(
  tmp_path, content, message
):
  with pytest.raises(ValueError, match=re.escape(message)) as caught:
    _load(tmp_path, **content)
  assert 'instances.json' in str(caught.value)


def test_inspection_goes_on_after_errors(tmp_path):
  path = tmp_path / 'instances.json'
  content = {
    'images': [_image(), _image('8'), None],
    'annotations': [
      _object(70),
      _object(71, image_id='8'),  # What it refers to has a finding.
      _object(72, category_id='x'),
      _object(73, image_id=[7]),
      _object([74]),
      'none',
    ],
    'categories': [*CATEGORIES, {'id': 'x', 'name': 'bird'}],
  }
  path.write_text(json.dumps(content))
  dataset = annotations.inspect_coco(path)
  assert [each.kind for each in dataset.findings] == [
    'category_id',
    'image_id',
    'entry',
    'unknown_image',
    'entry',
  ]
  assert "entry 2 (from 0) of 'images' must be" in str(dataset.findings[2])
  assert [x['id'] for x in dataset.annotations[7]] == [70, [74]]
  with pytest.raises(ValueError, match='4 errors in the data'):
    annotations.load_coco(path)


@pytest.mark.parametrize(
  'changes, message',
  [
    (
      {'image_id': '7'},
      'no such image. It is a text: write the number 7 without',
    ),
    ({'category_id': '90'}, 'is a text. Write the number 90 without quotes'),
    ({'category_id': 91}, '(1, 90). Correct the annotation or add'),
  ],
)
def test_references_that_are_texts(tmp_path, changes, message):
  path = tmp_path / 'instances.json'
  content = {
    'images': [_image()],
    'annotations': [_object(**changes)],
    'categories': CATEGORIES,
  }
  path.write_text(json.dumps(content))
  (finding,) = annotations.inspect_coco(path).findings
  assert message in str(finding)


def test_missing_images_are_listed(tmp_path):
  entries = [_image(k, file_name=f'{k}.jpg') for k in range(14)]
  (tmp_path / '3.jpg').write_bytes(b'')
  with pytest.raises(ValueError) as caught:
    _load(tmp_path, entries, [], images_dir=tmp_path)
  text = str(caught.value)
  assert text.startswith('13 errors in the data:')
  assert f'there is no {tmp_path}/0.jpg' in text
  assert f'{tmp_path}/3.jpg' not in text
  assert text.endswith('and 3 more.')


@pytest.mark.parametrize(
  'text, message',
  [
    ('{"images": [', 'no json file'),
    ('[]', "it needs a list 'images'"),
    ('{"images": [], "annotations": []}', "it needs a list 'categories'"),
  ],
)
def test_other_files_are_refused(tmp_path, text, message):
  (tmp_path / 'x.json').write_text(text)
  with pytest.raises(ValueError, match=message):
    annotations.load_coco(tmp_path / 'x.json')


def test_absent_file_is_named(tmp_path):
  with pytest.raises(ValueError, match=r'none\.json cannot be read'):
    annotations.load_coco(tmp_path / 'none.json')


@pytest.mark.parametrize(
  'content, message',
  [
    (
      {'categories': [{'id': '3', 'name': 'cat'}]},
      "category id '3' ('cat') is a text. Write the number 3 without quotes",
    ),
    (
      {'categories': [{'id': 'cat'}]},
      "category id 'cat' (None) is a text. Give each a whole number",
    ),
    (
      {'objects': [_object(category_id='1')]},
      "category_id '1' is a text. Write the number 1 without quotes",
    ),
    (
      {'images': [_image('07')]},
      "image id '07' is a text and must be a whole number. Write the number 7",
    ),
    (
      {'images': [_image('a.jpg')]},
      "here and as 'image_id' of every annotation",
    ),
  ],
)
def test_texts_as_ids_are_refused_with_the_fix(tmp_path, content, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    _load(tmp_path, **content)


def test_ids_from_0_move_up_by_one_and_say_so(tmp_path):
  dataset = _load(
    tmp_path,
    objects=[_object(70, category_id=0), _object(71, category_id=7)],
    categories=[{'id': 7, 'name': 'dog'}, {'id': 0, 'name': 'cat'}],
  )
  assert dataset.class_names == {8: 'dog', 1: 'cat'}
  first, second = dataset.annotations[7]
  assert (first['class_id'], first['category_id']) == (1, 0)
  assert (second['class_id'], second['category_id']) == (8, 7)
  (finding,) = dataset.findings
  assert (finding.kind, finding.severity) == ('ids_from_0', 'note')
  assert 'class i is category i - 1' in finding.message


def test_gaps_in_ids_stay(tmp_path):
  dataset = _load(tmp_path, objects=[_object(70, category_id=90)])
  assert dataset.class_names == {1: 'cat', 90: 'dog'}
  assert 'class_id' not in dataset.annotations[7][0]
  assert not dataset.findings


def test_an_unknown_category_is_told_in_the_ids_of_the_file(tmp_path):
  with pytest.raises(ValueError, match=r'not among the categories \(0, 1\)'):
    _load(
      tmp_path,
      objects=[_object(category_id=2)],
      categories=[{'id': 0, 'name': 'a'}, {'id': 1, 'name': 'b'}],
    )
