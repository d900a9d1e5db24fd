"""Records made of COCO files."""

import glob
import json
import os
import pathlib

import data_sets
import numpy as np
import pytest
from PIL import Image
from pycocotools import coco

from maskrcnn_jax.datasets import categories, prepare, records
from maskrcnn_jax.datasets.doctor import check
from maskrcnn_jax.datasets.findings import InvalidDataError
from maskrcnn_jax.errors import UserError

SQUARE = [[1, 1, 9, 1, 9, 9, 1, 9]]
WIDE = [[0, 2, 30, 2, 30, 8, 0, 8]]
LOW = [[20, 13, 30, 13, 30, 20, 20, 20]]


def _object(annotation_id, image_id=1, **changes):
  entry = {'id': annotation_id, 'image_id': image_id, 'category_id': 3}
  entry |= {'bbox': [1, 1, 8, 8], 'segmentation': SQUARE, 'area': 64}
  return entry | changes


def _write_set(folder, objects=None, num_images=5, height=20, width=30):
  """Makes images 1..n and a json; returns the arguments of `prepare`."""
  rng = np.random.default_rng(0)
  entries = []
  for image_id in range(1, num_images + 1):
    pixels = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f'{image_id}.jpg')
    entry = {'id': image_id, 'file_name': f'{image_id}.jpg'}
    entries.append(entry | {'height': height, 'width': width})
  content = {'images': entries, 'categories': [{'id': 3, 'name': 'cat'}]}
  content['annotations'] = [_object(1)] if objects is None else objects
  (folder / 'a.json').write_text(json.dumps(content))
  return folder, folder / 'a.json', folder / 'out' / 'train-*.tfrecord'


def _counts(summary):
  names = ('num_images', 'num_empty', 'num_objects', 'num_crowd')
  return tuple(getattr(summary, name) for name in names)


def _parsed(files):
  index = records.index_records(list(files))
  return [
    records.parse_record(records.read_record(index, row))
    for row in range(len(index))
  ]


def test_unusable_objects_are_skipped_and_counted(tmp_path):
  rle = {'size': [20, 30], 'counts': [600]}
  objects = [
    _object(1),
    _object(2, bbox=[1, 1, 0, 8]),
    _object(3, bbox=[1, 1, 8, -2]),
    _object(4, bbox=[30, 1, 5, 8]),
    _object(5, bbox=[1, -8, 8, 8]),
    _object(6, bbox=[1, 1, 29, 19]),  # Touches the border.
    _object(7, bbox=[1, 1, 8]),
    _object(8, bbox=[1, 1, 8, float('nan')]),
    _object(9, segmentation=rle),
    _object(10, segmentation=[]),
    _object(11, segmentation={'size': [20, 30], 'counts': [10, 20, 570]}),
    _object(12, iscrowd=1, area=None),
    _object(13, image_id=99),
  ]
  summary = prepare.prepare(*_write_set(tmp_path, objects), num_workers=1)
  assert summary.counts() == {
    'zero_area_box': 2,
    'box_outside_image': 2,
    'unusable_box': 2,
    'empty_mask': 1,
    'unusable_mask': 1,
    'unknown_image': 1,
    'duplicate_object': 1,
  }
  (double,) = [x for x in summary.findings if x.kind == 'duplicate_object']
  assert (double.image_id, double.annotation_id) == (1, 6)
  assert '1 duplicate_object (noted)' in str(summary)
  assert _counts(summary) == (5, 4, 4, 1)
  first = _parsed(summary.files)[0]
  np.testing.assert_array_equal(first['classes'], [3, 3, 3, 3])
  np.testing.assert_array_equal(first['is_crowd'], [0, 0, 0, 1])
  np.testing.assert_array_equal(first['area'], [64, 64, 64, 64])
  text = str(summary)
  assert '2 zero_area_box' in text
  assert '1.jpg, image 1, annotation 2: the box [1, 1, 0, 8]' in text


def _boxes(summary):
  (parsed, *_) = _parsed(summary.files)
  return (parsed['boxes'] * np.array([20, 30, 20, 30])).numpy().tolist()


def test_boxes_that_reach_outside_are_clipped_and_counted(tmp_path):
  objects = [_object(1), _object(2, bbox=[-3, 2, 40, 6], segmentation=WIDE)]
  objects.append(_object(3, bbox=[20, 12.5, 10, 8], segmentation=LOW))
  paths = _write_set(tmp_path, objects, num_images=1)
  summary = prepare.prepare(*paths, num_workers=1)
  assert summary.counts() == {'box_clipped': 2}
  np.testing.assert_allclose(
    _boxes(summary), [[1, 1, 9, 9], [2, 0, 8, 30], [12.5, 20, 20, 30]], 1e-6
  )


def test_boxes_that_end_outside_can_be_dropped(tmp_path):
  objects = [_object(1), _object(2, bbox=[1, 1, 29.001, 8], segmentation=WIDE)]
  objects.append(_object(3, bbox=[-1, 2, 9, 9], segmentation=LOW))
  paths = _write_set(tmp_path, objects, num_images=1)
  summary = prepare.prepare(*paths, num_workers=1, drop_outside=True)
  assert summary.counts() == {'box_outside_image': 1}
  # As in the reference, a box that begins outside stays as it is.
  np.testing.assert_allclose(
    _boxes(summary), [[1, 1, 9, 9], [2, -1, 11, 8]], 1e-6
  )


def test_an_object_without_a_box_gets_that_of_its_mask(tmp_path):
  runs = {'size': [20, 30], 'counts': [22, 5, 15, 5, 553]}
  objects = [
    _object(1, bbox=None, area=None),
    _object(2, bbox=[], segmentation=runs),
  ]
  paths = _write_set(tmp_path, objects, num_images=1)
  summary = prepare.prepare(*paths, num_workers=1)
  assert summary.counts() == {'missing_box': 2}
  np.testing.assert_allclose(_boxes(summary), [[1, 1, 9, 9], [2, 1, 7, 3]])
  (parsed,) = _parsed(summary.files)
  np.testing.assert_array_equal(parsed['area'], [64, 64])


@pytest.mark.slow
def test_files_do_not_depend_on_the_number_of_workers(tmp_path):
  objects = [_object(k, image_id=k % 20 + 1) for k in range(1, 40)]
  folder, annotations, _ = _write_set(tmp_path, objects, num_images=20)
  contents = []
  for num_workers in (1, 2):
    output = tmp_path / f'out{num_workers}'
    summary = prepare.prepare(
      folder, annotations, output, 3, num_workers=num_workers
    )
    assert [os.path.basename(path) for path in summary.files] == [
      f'out{num_workers}-{k:05d}-of-00003.tfrecord' for k in range(3)
    ]
    contents.append([pathlib.Path(path).read_bytes() for path in summary.files])
    ids = [int(each['image_id']) for each in _parsed(summary.files[:1])]
    assert ids == [1, 4, 7, 10, 13, 16, 19]
  assert contents[0] == contents[1]


def test_existing_files_are_never_overwritten(tmp_path):
  arguments = _write_set(tmp_path)
  summary = prepare.prepare(*arguments, num_workers=1)
  before = pathlib.Path(summary.files[0]).read_bytes()
  with pytest.raises(FileExistsError, match='train-00000-of-00001'):
    prepare.prepare(*arguments, num_shards=2, num_workers=1)
  assert pathlib.Path(summary.files[0]).read_bytes() == before


def test_bad_images_are_all_named_and_nothing_is_left(tmp_path):
  arguments = _write_set(tmp_path)
  content = (tmp_path / '2.jpg').read_bytes()
  (tmp_path / '2.jpg').write_bytes(content[: len(content) // 2])
  Image.new('RGB', (31, 20)).save(tmp_path / '4.jpg')
  with pytest.raises(InvalidDataError) as error:
    prepare.prepare(*arguments, num_workers=1)
  second, fourth = error.value.findings
  assert (second.file, second.image_id) == (f'{tmp_path}/2.jpg', 2)
  assert (fourth.file, fourth.image_id) == (f'{tmp_path}/4.jpg', 4)
  assert '20 x 31' in str(error.value)
  assert (error.value.path, error.value.item) == (second.file, 2)
  assert not list((tmp_path / 'out').iterdir())


@pytest.mark.parametrize('objects', [[], [_object(1, iscrowd=1)]])
def test_nothing_to_learn_is_an_error(tmp_path, objects):
  arguments = _write_set(tmp_path, objects)
  with pytest.raises(UserError) as error:
    prepare.prepare(*arguments, num_workers=1)
  assert error.value.path == str(arguments[1])
  assert not list((tmp_path / 'out').iterdir())


def test_reasons_why_there_is_nothing_to_learn(tmp_path):
  objects = [_object(1, segmentation=None), _object(2, segmentation=[])]
  arguments = _write_set(tmp_path, objects)
  with pytest.raises(UserError) as error:
    prepare.prepare(*arguments, num_workers=1)
  assert '2 unusable_mask, such as' in str(error.value)


def test_a_class_without_objects_needs_an_option(tmp_path):
  folder, annotations, output = _write_set(tmp_path)
  content = json.loads(annotations.read_text())
  content['categories'].append({'id': 5, 'name': 'dog'})
  annotations.write_text(json.dumps(content))
  with pytest.raises(InvalidDataError) as error:
    prepare.prepare(folder, annotations, output, num_workers=1)
  (finding,) = error.value.findings
  kind = finding.kind
  assert kind == 'class_without_objects' and "5 ('dog')" in finding.message
  assert not (tmp_path / 'out').exists()
  severities = []
  for allow in (False, True):
    report = check.check(
      (folder, annotations), num_workers=1, allow_empty_classes=allow
    )
    severities += [x.severity for x in report.by_kind()[kind]]
  assert severities == ['error', 'warning']
  for place, allow in ((output, True), (tmp_path / 'out' / 'Val_1', False)):
    summary = prepare.prepare(
      *(folder, annotations, place),
      num_workers=1,
      allow_empty_classes=allow,
    )
    assert summary.counts()[kind] == 1


@pytest.mark.parametrize(
  'fields, kind',
  [
    ({'ignore': 1}, None),  # The labels say that it is not to be learnt.
    ({'iscrowd': 1}, 'class_of_crowds'),
    ({'segmentation': None}, 'class_without_objects'),
    # Only the conversion finds out.
    ({'segmentation': [[1, 1, 1, 9, 1, 4]]}, 'class_without_objects'),
  ],
)
def test_objects_that_teach_nothing_of_a_class(tmp_path, fields, kind):
  folder, annotations, output = _write_set(tmp_path)
  content = json.loads(annotations.read_text())
  content['categories'].append({'id': 5, 'name': 'dog'})
  content['annotations'].append(_object(2, category_id=5, **fields))
  annotations.write_text(json.dumps(content))
  report = check.check((folder, annotations), num_workers=1)
  errors = [x.kind for x in report.findings if x.severity == 'error']
  assert kind in errors if kind else not errors
  if kind is None:
    summary = prepare.prepare(folder, annotations, output, num_workers=1)
    assert summary.counts()['class_of_crowds'] == 1
    assert _counts(summary) == (5, 4, 2, 1)
    assert list(categories.read_from_records(list(summary.files))) == [3, 5]
    return
  with pytest.raises(InvalidDataError) as error:
    prepare.prepare(folder, annotations, output, num_workers=1)
  assert [x.kind for x in error.value.findings] == [kind]
  assert not glob.glob(f'{output}*')
  for place, allow in ((output, True), (output.parent / 'my_val2', False)):
    summary = prepare.prepare(
      *(folder, annotations, place), num_workers=1, allow_empty_classes=allow
    )
    assert summary.counts()[kind] == 1


@pytest.mark.parametrize(
  'name, expected',
  [
    *(('val', True), ('Val-1', True), ('instances_val2017', True)),
    *(('a/test', True), ('my_valid', True), ('train', False)),
    *(('val/train', False), ('valves', False), ('train_test', False)),
  ],
)
def test_names_of_held_out_sets(name, expected):
  assert prepare.is_held_out(name) == expected


def test_classes_of_a_project_may_be_without_objects(tmp_path):
  (tmp_path / 'labels').mkdir()
  Image.new('RGB', (30, 20)).save(tmp_path / 'a.png')
  (tmp_path / 'labels' / 'a.txt').write_text('1 0.1 0.1 0.5 0.1 0.5 0.5')
  (tmp_path / 'labels' / 'classes.txt').write_text('cat\ndog\n')
  summary = prepare.prepare(
    tmp_path, tmp_path / 'labels', tmp_path / 'out' / 'train', num_workers=1
  )
  assert summary.counts()['class_without_objects'] == 1
  assert "1 ('cat')" in str(summary)


def test_images_outside_of_the_folder_need_an_option(tmp_path):
  (tmp_path / 'sub').mkdir()
  _, annotations, output = _write_set(tmp_path, num_images=1)
  text = annotations.read_text().replace('1.jpg', '../1.jpg')
  annotations.write_text(text)
  arguments = tmp_path / 'sub', annotations, output
  with pytest.raises(InvalidDataError) as error:
    prepare.prepare(*arguments, num_workers=1)
  (finding,) = error.value.findings
  assert (finding.kind, finding.image_id) == ('outside_folder', 1)
  summary = prepare.prepare(*arguments, num_workers=1, allow_outside=True)
  assert summary.num_images == 1


@pytest.mark.parametrize('output', ['', 'out/', 'a*b', 'x/*.tfrecord'])
def test_output_pattern_must_give_a_name(tmp_path, output):
  folder, annotations, _ = _write_set(tmp_path)
  with pytest.raises(UserError) as error:
    prepare.prepare(folder, annotations, output, num_workers=1)
  assert error.value.argument == 'output_pattern'
  assert error.value.given == output


@pytest.mark.parametrize('output', ['val', 'val.tfrecord', 'val-*.tfrecord'])
def test_forms_of_the_output_pattern(tmp_path, output):
  folder, annotations, _ = _write_set(tmp_path, num_images=1)
  summary = prepare.prepare(
    folder, annotations, tmp_path / output, num_workers=1
  )
  assert summary.files == (str(tmp_path / 'val-00000-of-00001.tfrecord'),)


def test_captions_are_stored(tmp_path):
  folder, annotations, output = _write_set(tmp_path, num_images=2)
  captions = [{'image_id': 2, 'caption': text} for text in ('a', 'b')]
  (tmp_path / 'c.json').write_text(json.dumps({'annotations': captions}))
  summary = prepare.prepare(
    *(folder, annotations, output, 1),
    num_workers=1,
    captions_file=tmp_path / 'c.json',
  )
  index = records.index_records(summary.files[0])
  found = records.tf.train.Example.FromString(records.read_record(index, 1))
  values = found.features.feature['image/caption'].bytes_list.value
  assert list(values) == [b'a', b'b']


@pytest.mark.slow
@pytest.mark.parametrize(
  'folder, images, annotations, counts',
  [
    ('coco-mini', 'train2017', 'instances_train2017', (90, 1, 863, 13)),
    ('coco-mini', 'val2017', 'instances_val2017', (60, 1, 566, 11)),
    ('nuclei-dsb2018', 'val', 'instances_val', (20, 0, 728, 0)),
    ('nuclei-dsb2018', 'val', 'instances_val_rle', (20, 0, 728, 0)),
  ],
)
def test_real_images(tmp_path, folder, images, annotations, counts):
  folder = data_sets.real(folder)
  file = folder / 'annotations' / f'{annotations}.json'
  summary = prepare.prepare(folder / images, file, tmp_path / 'out')
  assert not summary.findings
  assert counts == _counts(summary)
  truth = coco.COCO(file)
  for parsed in _parsed(summary.files):
    entries = truth.imgToAnns[int(parsed['image_id'])]
    for entry, encoded in zip(entries, parsed['masks'].numpy(), strict=True):
      mask = records.tf.io.decode_png(encoded)[..., 0].numpy()
      np.testing.assert_array_equal(mask, truth.annToMask(entry))


def test_takes_some_images_only(tmp_path):
  paths = _write_set(tmp_path, [_object(1, image_id=2), _object(2, image_id=4)])
  summary = prepare.prepare(*paths, num_workers=1, image_ids=[4, 1])
  assert [int(x['image_id']) for x in _parsed(summary.files)] == [1, 4]
  assert _counts(summary) == (2, 1, 1, 0)
  with pytest.raises(UserError) as error:
    prepare.prepare(*paths[:2], tmp_path / 'other', image_ids=[4, 7])
  assert (error.value.argument, error.value.item) == ('image_ids', 7)
